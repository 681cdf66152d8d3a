"""A step's rows laid end to end compute what they compute padded; lines keep their budget; grouping saves padding."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from trace_vlm.train.arguments import training_arguments
from trace_vlm.train.batching import by_length, in_order, laid_out, padding_share, passes_needed
from trace_vlm.train.config import TrainConfig
from trace_vlm.train.guards import StopSignal
from trace_vlm.train.sampling import Order, ProcessBatches
from trace_vlm.train.sft import prepare
from trace_vlm.train.varlen_attention import Line, packed_attention
from trace_vlm.utils.command import InputError
from trace_vlm.utils.config import build_config

RNG = np.random.default_rng(0)
# Log-uniform texts, most of them with an image of 576 tokens: the mix of instruction data.
LENGTHS = (np.exp(RNG.uniform(np.log(30), np.log(1200), 4096)) + 576 * (RNG.random(4096) < 0.8)).astype(np.int32)


@pytest.fixture(scope="module")
def mixed(scenes, tmp_path_factory):
    """Samples with and without a picture, short and long, some sharing a picture."""
    samples = json.loads((scenes / "captions.json").read_text())[:12]
    for index, sample in enumerate(samples):
        sample["conversations"][1]["value"] += " and on" * (3 * index)
        if index % 4 == 1:
            del sample["image"]
            sample["conversations"][0]["value"] = "What is two and two?"
    path = tmp_path_factory.mktemp("mixed") / "data.json"
    path.write_text(json.dumps(samples))
    return path


def one_step(scenes, data, model, out, **changes):
    """Loss and gradients of the first step of a run, as its trainer makes them."""
    found = {"model": str(model), "data": [str(data)], "image_folder": str(scenes), "output_dir": str(out)}
    found |= {"precision": "fp32", "gradient_checkpointing": False, "dataloader_workers": 0, "report_to": []}
    found |= {"global_batch_size": 12, "micro_batch_size": 3, "max_length": 512, "pack_tokens": 512} | changes
    config = build_config(TrainConfig, found, "test")
    out.mkdir()
    made = prepare(config, lambda passes: training_arguments(config, out, passes), out, StopSignal())
    trainer = made.trainer
    batches = iter(trainer.get_train_dataloader())
    rows, items = trainer.get_batch_samples(batches, trainer.args.gradient_accumulation_steps, torch.device("cpu"))
    losses = [trainer.compute_loss(trainer.model, row, num_items_in_batch=items) for row in rows]
    sum(losses).backward()
    gradients = {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
    return float(sum(losses)), gradients, trainer


@pytest.mark.parametrize("share_image", [1, 3])
def test_packed_and_padded_steps_have_the_same_loss_and_gradients(scenes, mixed, tiny_folder, tmp_path, share_image):
    rows = {1: 12, 3: 4}[share_image]
    common = {"share_image": share_image, "global_batch_size": rows, "micro_batch_size": rows // 2}
    padded, wanted, plain = one_step(scenes, mixed, tiny_folder, tmp_path / "padded", group_by_length=False, **common)
    grouped, _, _ = one_step(scenes, mixed, tiny_folder, tmp_path / "grouped", group_by_length=True, **common)
    packed, found, line = one_step(scenes, mixed, tiny_folder, tmp_path / "packed", packing=True, **common)
    assert padded == pytest.approx(packed, abs=1e-5) and padded == pytest.approx(grouped, abs=1e-5)
    assert set(wanted) == set(found)
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, found[name], atol=1e-5), name
    seen = [sorted(row for ids in trainer._step_ids for row in ids) for trainer in (plain, line)]
    assert seen[0] == seen[1]  # the same samples in the same step


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_have_the_same_loss_and_gradients(scenes, mixed, tiny_folder, tmp_path):
    plain, wanted, _ = one_step(scenes, mixed, tiny_folder, tmp_path / "plain", packing=True)
    compiled, found, trainer = one_step(scenes, mixed, tiny_folder, tmp_path / "compiled", packing=True, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert plain == pytest.approx(compiled, abs=1e-5)
    assert set(wanted) == set(found)  # names stay, so what is saved is loaded by anybody
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, found[name], atol=1e-5), name


def test_a_line_under_autocast_computes_in_half_precision():
    """Queries and keys come in float32 from the rotary embedding; the kernels for lines on GPUs take half precision."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(2))
    value = torch.randn(1, 2, 9, 8, generator=generator).bfloat16()
    line = Line((4, 9), None, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = packed_attention(torch.nn.Identity(), query, key, value, None, 0.3, line=line)
    wanted, _ = packed_attention(torch.nn.Identity(), query, key, value.float(), None, 0.3, line=line)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), wanted, atol=0.03)


def test_the_average_over_forward_passes_is_another_one_and_is_llavas(scenes, mixed, tiny_folder, tmp_path):
    step, _, trainer = one_step(scenes, mixed, tiny_folder, tmp_path / "step", group_by_length=False)
    means = [float(value) for value in trainer._sums["token_loss"]]
    microbatch, _, _ = one_step(
        scenes, mixed, tiny_folder, tmp_path / "micro", group_by_length=False, loss_norm="microbatch"
    )
    assert microbatch == pytest.approx(sum(means) / len(means), abs=1e-5)
    assert abs(microbatch - step) > 1e-5  # little for a model that knows nothing, but not nothing


def test_a_forward_pass_without_pictures_runs_the_tower_and_changes_nothing(scenes, mixed, tiny_folder, tmp_path):
    _, _, trainer = one_step(scenes, mixed, tiny_folder, tmp_path / "one", global_batch_size=12, micro_batch_size=1)
    texts = [row for row in range(12) if not trainer.train_dataset.row_has_image[row]]
    item = trainer.train_dataset[texts[0]]
    for packed in (False, True):
        trainer.data_collator._packed = packed
        blank = trainer.data_collator([item])
        assert blank["pixel_values"].shape[0] == 1
        assert (
            int((blank["input_ids"] == trainer.checkpoint.image_token_id).sum())
            == trainer.checkpoint.patches_per_side**2
        )
        assert (blank["labels"] != -100).sum() == (item["labels"] != -100).sum()
    trainer.data_collator._packed = False
    with torch.no_grad():
        alone = trainer.checkpoint.model(input_ids=item["input_ids"][None], use_cache=False).logits
        batch = trainer.data_collator([item])
        call = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
        beside = trainer.checkpoint.model(**call, use_cache=False).logits[:, : alone.shape[1]]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_grouping_and_packing_leave_a_step_its_rows_and_save_padding():
    order = Order(LENGTHS, 128, 0, "in_order", 16, 8, 8)
    steps = list(order._all())
    plain = [in_order(rows, 16) for rows in steps]
    grouped = [by_length(rows, LENGTHS, 16) for rows in steps]
    passes = passes_needed(steps, LENGTHS, 16384, 8)
    packed = [laid_out(rows, LENGTHS, passes * 8) for rows in steps]
    for rows, *ways in zip(steps, plain, grouped, packed, strict=True):
        assert all(sorted(row for line in way for row in line) == sorted(rows) for way in ways)
    assert padding_share(grouped, LENGTHS) < 0.15 < 0.4 < padding_share(plain, LENGTHS)
    for way in packed:
        lines = [int(LENGTHS[line].sum()) for line in way]
        assert max(lines) <= 16384 and min(lines) > 0.95 * max(lines)


def test_processes_share_out_a_step_and_do_the_same_number_of_passes():
    for layout, processes in (("in_order", 4), ("by_length", 2), ("packed", 4)):
        order = Order(LENGTHS[:640], 64, 3, layout, 8, processes, 10, 4096 * 4)
        passes = order.passes()
        shares = [list(ProcessBatches(order, process, passes)) for process in range(processes)]
        assert {len(share) for share in shares} == {10 * passes}
        whole = order.shuffled(0)
        for step in range(10):
            rows = [row for share in shares for line in share[step * passes : (step + 1) * passes] for row in line]
            assert sorted(rows) == sorted(whole[step * 64 : step * 64 + 64])


@pytest.mark.parametrize(
    ("budget", "rows", "said"), [(1000, 64, "less than the longest row"), (2000, 12, "raise pack_tokens")]
)
def test_a_budget_that_cannot_hold_is_an_error(budget, rows, said):
    with pytest.raises(InputError, match=f"pack_tokens: .*{said}"):
        Order(np.full(640, 1200, np.int32), rows, 0, "packed", 8, 8, 10, budget).passes()
