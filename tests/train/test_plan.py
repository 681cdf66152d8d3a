"""The plan: parameters as the models have them, memory as GPUs measured it, mistakes named."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from shell import ROOT
from train_together import train_config

from trace_vlm.model.checkpoint import load
from trace_vlm.train import memory, plan, sft
from trace_vlm.train.config import Trainable, load_config
from trace_vlm.train.memory import Sharding, Workload, plan_memory, total_params, trained_params, training_flops
from trace_vlm.train.param_groups import set_trainable, trainable_parameters
from trace_vlm.utils.command import InputError

CONFIG = ROOT / "configs/train_13b_fft.yaml"
LARGE = ["train_13b_fft", "train_7b_lora", "train_7b_fft", "train_13b_lora", "robopoint_13b_fft", "pretrain_projector"]


@pytest.mark.parametrize("llm", ["full", "lora", "frozen"])
@pytest.mark.parametrize("vision", ["full", "frozen"])
def test_parameters_are_counted_as_the_model_has_them(llm, vision):
    lora = {"r": 4, "alpha": 8} if llm == "lora" else None
    config = train_config(Path(), "nano-random", Path(), trainable={"llm": llm, "vision": vision}, lora=lora)
    _, size = plan.model_dimensions(config)
    model = set_trainable(load("nano-random").model, config)
    assert trained_params(size, config.modes, config.lora_rank) == sum(trainable_parameters(model).values())
    total = sum(p.numel() for name, p in model.named_parameters() if ".original_module." not in name)
    assert total_params(size, config.modes, config.lora_rank) == total


def test_a_step_takes_six_operations_a_parameter_and_token_and_less_if_frozen():
    _, size = plan.model_dimensions(train_config(Path(), "trace-13b", Path()))
    assert total_params(size, Trainable(), 0) == pytest.approx(13.35e9, rel=2e-3)
    work = Workload(tokens=1000, squares=1e6, labelled=1000, images=0)
    full = training_flops(size, work, Trainable())
    assert full == pytest.approx(6 * 13e9 * 1000, rel=0.03)
    frozen = training_flops(size, work, Trainable(llm="frozen"))
    assert frozen == pytest.approx(full * 2 / 3, rel=1e-6)
    assert training_flops(size, work, Trainable(llm="lora")) == frozen


@pytest.mark.parametrize("name", LARGE)
def test_every_large_configuration_has_a_plan(name, capsys):
    assert plan.main(["--config", str(ROOT / f"configs/{name}.yaml"), "--gpus", "8", "--gpu-memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "unvalidated" in text and "ZeRO-3" in text and "steps" in text


@pytest.mark.parametrize(("file", "count"), [("train_h100_2026-11-26", 6), ("train_h200_2026-11-26", 10)])
def test_memory_is_close_to_what_a_gpu_measured(file, count, monkeypatch):
    """benchmarks/train_gpu.py wrote the peaks; the prediction is made by the present code."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("train_gpu")
    cases = json.loads((ROOT / f"benchmarks/results/{file}.json").read_text())["cases"]
    assert len(cases) == count
    longest = {8192: 6613, 4096: 4038}  # of the packed batches of the benchmark's 32 rows, which these files lack
    for values in cases:
        fields = [field.name for field in dataclasses.fields(benchmark.Case) if field.name in values]
        case = benchmark.Case(**{name: values[name] for name in fields})
        config = benchmark.configuration(case, tiny=False)
        _, size = plan.model_dimensions(config)
        rows = (values["longest_row"], values["labelled_columns"] / 2) if case.layout == "padded" else None
        rows = rows or (values["tokens_a_row"], values["learned_a_row"], longest[case.line])
        planned = benchmark.plan(config, size, values["optimizer"], *rows)["total"] / 2**30
        assert planned == pytest.approx(values["peak_memory_gib"], rel=0.06), case


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("lora", [{"dropout": 0.05}, {"dropout": 0.0}, None], ids=str)
def test_a_compiled_layer_keeps_what_is_planned(lora):
    trainable = {"llm": "lora" if lora else "full"}
    config = train_config(Path(), "nano-random", Path(), trainable=trainable, lora=lora, compile=True)
    model = set_trainable(load("nano-random").model, config).bfloat16().train()
    llm = next(module for module in model.modules() if type(module).__name__ == "LlamaModel")
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert sft.compile_layers(llm)

    def bytes_a_token(layers, tokens=256):
        """What waits for the backward pass: each storage once."""
        llm.layers, kept = layers, {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            llm(input_ids=torch.arange(tokens)[None], use_cache=False).last_hidden_state.sum().backward()
        return sum(size for address, size in kept.items() if address not in weights) / tokens

    layers = llm.layers
    bytes_a_token(layers)  # compiles
    kept = (bytes_a_token(layers) - bytes_a_token(layers[:1])) / (len(layers) - 1)
    _, size = plan.model_dimensions(config)
    assert memory.bytes_a_token_and_layer(config, size, 2) == pytest.approx(kept, rel=0.03)


def test_sharding_and_offloading_take_less():
    config = load_config(CONFIG)
    _, size = plan.model_dimensions(config)

    def total(stage, processes=8, **options):
        return plan_memory(config, size, Sharding("", stage, **options), processes, 726, 16, 60).total

    assert total(2) > total(3) > total(3, 16) > total(3, offload_optimizer=True)
    assert total(2) > 40e9 and total(3, 1) > 16 * 13e9  # 16 bytes a parameter and more on a single GPU


@pytest.mark.parametrize(("arguments", "name"), [
    ("--gpus 0", "--gpus"), ("--gpu-memory nan", "--gpu-memory"), ("--mfu 40", "--mfu"),
    ("--num-samples 10", "global_batch_size"), ("--gpus 7", "global_batch_size"), ("--set model=nowhere", "nowhere"),
    ("--gpus 512 --set packing=true", "global_batch_size"), ("--tokens 50 --learned 60", "--learned"),
    ("--set modell=x", "modell"), ("--gpu-memory 0", "--gpu-memory"),
])  # fmt: skip
def test_a_mistake_is_named(arguments, name):
    with pytest.raises(InputError, match=name):
        plan.main(["--config", str(CONFIG), *arguments.split()])


def test_hours_and_steps_are_those_of_the_run(capsys):
    def planned(*arguments, name="train_13b_fft"):
        assert plan.main(["--config", str(ROOT / f"configs/{name}.yaml"), *arguments]) == 0
        return capsys.readouterr().out

    assert "TRACE's 200,000" in planned() and "RoboPoint's 1,430,000" in planned(name="robopoint_13b_fft")
    assert "at 24% of peak (measured" in planned() and "at 40% of peak (given)" in planned("--mfu", "0.4")
    fast = planned("--set", "packing=true", "compile=true", "gradient_checkpointing=false", name="train_7b_lora")
    assert "at 43% of peak (measured" in fast
    assert "8 GPUs of 24 GB, 165 TFLOP/s" in planned("--gpu", "4090") and "NO " in planned("--gpu", "4090")
    assert "fewer than 50 steps" in planned("--num-samples", "2000") and "fewer" not in planned()


def test_existing_data_is_counted(scenes, capsys):
    overrides = [f"data={scenes / 'captions.json'}", "model=nano-random", "global_batch_size=8", "micro_batch_size=1"]
    assert plan.main(["--config", str(CONFIG), "--set", *overrides]) == 0
    assert "271 samples" in capsys.readouterr().out.replace(",", "")
