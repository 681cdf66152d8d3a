"""`lora.shared_dropout`: one mask for each input, the same under recomputation and compilation, and less memory."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from trace_vlm.model.checkpoint import load
from trace_vlm.train import plan
from trace_vlm.train.config import Lora, Trainable, TrainConfig
from trace_vlm.train.dropout import SharedDropout, _Input, share_dropout
from trace_vlm.train.memory import _kept_by_a_layer
from trace_vlm.train.param_groups import LORA_TARGETS, choose
from trace_vlm.train.torch_compile import compile_layers
from trace_vlm.utils.command import InputError
from trace_vlm.utils.config import build_config

LORA = {"trainable": {"llm": "lora"}, "lora": {"r": 4, "alpha": 8, "dropout": 0.3, "shared_dropout": True}}
NOWHERE = {"model": "m", "data": ["d"], "image_folder": "i", "output_dir": "o"}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def readers(number, share=0.5):
    source = _Input(number)
    return [SharedDropout(share, source) for _ in range(number)], source


def test_readers_of_an_input_see_one_mask_and_nothing_is_kept_behind_the_last():
    modules, source = readers(3)
    values = torch.ones(64, 64)
    first, second, third = (module(values) for module in modules)
    assert first is second is third
    assert set(first.unique().tolist()) == {0.0, 2.0} and abs(float(first.mean()) - 1) < 0.1
    assert source.seen is None and source.masked is None
    assert not torch.equal(modules[0](values), first)  # the next pass draws anew, though the tensor is the same


def test_a_pass_that_was_broken_off_among_its_readers_leaves_nothing_to_the_next():
    modules, source = readers(3)
    modules[0](torch.ones(8))
    values = torch.full((1000,), 3.0)
    masked = [module(values) for module in modules]
    assert all(one is masked[0] for one in masked) and set(masked[0].unique().tolist()) == {0.0, 6.0}
    assert source.masked is None


def test_answering_sees_the_input_as_it_is():
    modules, _ = readers(2)
    values = torch.ones(8)
    assert all(module.eval()(values) is values for module in modules)


def test_without_dropout_there_is_nothing_to_share():
    lora = {"trainable": {"llm": "lora"}, "lora": {"dropout": 0.0, "shared_dropout": True}}
    with pytest.raises(InputError, match=r"lora\.shared_dropout: there is no dropout to share"):
        build_config(TrainConfig, NOWHERE | lora, "test")


def small(lora, seed=0):
    """A language model with adapters whose second matrices are not zero, under the names that LoRA's targets have."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=4, **sizes)).bfloat16()
    targets = LORA_TARGETS.replace(r"model\.language_model", "model")
    settings = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    model = get_peft_model(model, settings, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    if lora.shared_dropout:
        assert share_dropout(model) == 6  # three layers, two inputs each
    return model.train()


def forward(model, tokens=256):
    ids = torch.arange(tokens)[None] % 64
    return model.base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state


@needs_compiler
def test_compiled_queries_and_keys_see_one_mask():
    model = small(Lora(4, 8, 0.5, shared_dropout=True))
    attention = model.base_model.model.model.layers[0].self_attn
    alone = torch.compile(lambda values: [one.lora_dropout["default"](values) for one in readers_of(attention)])
    masked = alone(torch.ones(8, 256, dtype=torch.bfloat16))
    assert torch.equal(masked[0], masked[1]) and torch.equal(masked[0], masked[2])
    assert set(masked[0].unique().tolist()) == {0.0, 2.0}


def readers_of(attention):
    return attention.q_proj, attention.k_proj, attention.v_proj


def test_recomputation_draws_the_masks_of_the_forward_pass():
    found = []
    for recompute in (False, True):
        model = small(Lora(4, 8, 0.3, shared_dropout=True))
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss = forward(model).float().square().mean()
        loss.backward()
        found.append((loss, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}))
        assert all(one.source.masked is None for one in model.modules() if isinstance(one, SharedDropout))
    (loss, wanted), (again, gradients) = found
    assert loss == again and set(wanted) == set(gradients) and len(wanted) == 3 * 7 * 2
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in wanted.items())


def test_a_run_shares_when_it_is_asked_to(tiny_folder):
    lora = build_config(TrainConfig, NOWHERE | LORA, "test")
    model = choose(load(tiny_folder).model, lora)
    shared = [one for one in model.modules() if isinstance(one, SharedDropout)]
    assert len(shared) == 5 * model.config.text_config.num_hidden_layers
    assert {one.share for one in shared} == {0.3}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [Lora(8, 16), Lora(8, 16, shared_dropout=True), Lora(8, 16, 0.0)],
    ids=["each_its_own", "shared", "no_dropout"],
)
def test_the_plan_knows_what_a_compiled_layer_keeps(lora):
    model = small(lora)
    compile_layers(model)
    forward(model).sum().backward()  # compiles
    layers = model.base_model.model.model.layers
    three = kept_bytes(model)
    model.base_model.model.model.layers = layers[:1]
    counted = (three - kept_bytes(model)) / 2
    config = TrainConfig(
        "trace-7b", ["d"], "i", trainable=Trainable(llm="lora"), lora=lora, compile=True, gradient_checkpointing=False
    )
    _, size = plan.model_dimensions(config)
    size = dataclasses.replace(size, hidden=256, mlp=688, heads=4, kv_heads=4)
    assert _kept_by_a_layer(config, size, 2) == pytest.approx(counted, rel=0.03)


def kept_bytes(model):
    """A token's bytes that wait for the backward pass: each storage once, the weights not."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        last = forward(model)
    return sum(kept.values()) / last.shape[1]
