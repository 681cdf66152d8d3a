"""A step's rows packed compute what they compute padded; batches keep their budget; grouping saves padding."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from train_together import first_step, train_config

from trace_vlm.train.batching import BatchSchedule, ProcessBatchSampler
from trace_vlm.train.varlen_attention import PackedRows, packed_attention
from trace_vlm.utils.command import InputError

RNG = np.random.default_rng(0)
# Log-uniform texts, most of them with an image of 576 tokens: the mix of instruction data.
LENGTHS = (np.exp(RNG.uniform(np.log(30), np.log(1200), 4096)) + 576 * (RNG.random(4096) < 0.8)).astype(np.int32)


@pytest.fixture(scope="module")
def mixed(scenes, tmp_path_factory):
    """Samples with and without an image, short and long, some sharing an image."""
    samples = json.loads((scenes / "captions.json").read_text())[:12]
    for index, sample in enumerate(samples):
        sample["conversations"][1]["value"] += " and on" * (3 * index)
        if index % 4 == 1:
            del sample["image"]
            sample["conversations"][0]["value"] = "What is two and two?"
    path = tmp_path_factory.mktemp("mixed") / "data.json"
    path.write_text(json.dumps(samples))
    return path


@pytest.fixture
def one_step(scenes, mixed, tiny_folder, tmp_path):
    """Loss and gradients of the first step of a run, as its trainer computes them."""

    def run(name, **changes):
        values = {"data": [str(mixed)], "global_batch_size": 12, "micro_batch_size": 3, "max_length": 512}
        config = train_config(scenes, tiny_folder, tmp_path / name, **values | {"pack_tokens": 512} | changes)
        return first_step(config)

    return run


def assert_same_gradients(one, other):
    assert set(one) == set(other) and one
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], atol=1e-5), name


@pytest.mark.parametrize("share_image", [1, 3])
def test_packed_grouped_and_padded_steps_have_the_same_loss_and_gradients(one_step, share_image):
    rows = {1: 12, 3: 4}[share_image]
    common = {"share_image": share_image, "global_batch_size": rows, "micro_batch_size": rows // 2}
    padded, gradients, plain = one_step("padded", group_by_length=False, **common)
    grouped, _, _ = one_step("grouped", group_by_length=True, **common)
    packed, packed_gradients, packing = one_step("packed", packing=True, **common)
    assert padded == pytest.approx(packed, abs=1e-5) and padded == pytest.approx(grouped, abs=1e-5)
    assert_same_gradients(gradients, packed_gradients)
    seen = [sorted(name for ids in trainer.step_ids for name in ids) for trainer in (plain, packing)]
    assert seen[0] == seen[1]  # the same samples in the same step


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_have_the_same_loss_and_gradients(one_step):
    plain, gradients, _ = one_step("plain", packing=True)
    compiled, compiled_gradients, _ = one_step("compiled", packing=True, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert plain == pytest.approx(compiled, abs=1e-5)
    assert_same_gradients(gradients, compiled_gradients)  # names stay, so that saved weights load anywhere


def test_packed_rows_under_autocast_compute_in_half_precision():
    """Queries and keys come in float32 from the rotary embedding; the kernels on GPUs take half precision."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(3))
    rows = PackedRows((4, 9), None, torch.device("cpu"))
    expected, _ = packed_attention(torch.nn.Identity(), query, key, value, None, 0.3, packed_rows=rows)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = packed_attention(torch.nn.Identity(), query, key, value.bfloat16(), None, 0.3, packed_rows=rows)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), expected, atol=0.03)


def test_loss_norms_are_means_over_the_step_or_over_forward_passes(one_step):
    step, _, trainer = one_step("step", group_by_length=False)
    microbatch, _, _ = one_step("microbatch", group_by_length=False, loss_norm="microbatch")
    model, losses = trainer.checkpoint.model, []
    for batch in islice(trainer.get_train_dataloader(), 4):
        call = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
        logits = model(**call, use_cache=False).logits[:, :-1, : trainer.checkpoint.text_vocab_size].detach()
        labels = batch["labels"][:, 1:].flatten()
        single = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
        losses.append(single[labels != -100])
    assert step == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert microbatch == pytest.approx(float(torch.stack([loss.mean() for loss in losses]).mean()), abs=1e-5)


def test_a_forward_pass_without_images_runs_the_tower_and_changes_nothing(one_step):
    _, _, trainer = one_step("one", micro_batch_size=1)
    collate, checkpoint = trainer.data_collator, trainer.checkpoint
    item = trainer.train_dataset[int(np.flatnonzero(~trainer.train_dataset.row_has_image)[0])]
    for collate.packed in (True, False):
        batch = collate([item])
        assert batch["pixel_values"].shape[0] == 1
        assert int((batch["input_ids"] == checkpoint.image_token_id).sum()) == checkpoint.patches_per_side**2
        assert (batch["labels"] != -100).sum() == (item["labels"] != -100).sum()
    with torch.no_grad():
        alone = checkpoint.model(input_ids=item["input_ids"][None], use_cache=False).logits
        call = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
        beside = checkpoint.model(**call, use_cache=False).logits[:, : alone.shape[1]]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_grouping_saves_padding_and_packed_batches_keep_their_budget():
    padding = {}
    for layout in ("in_order", "by_length", "packed"):
        schedule = BatchSchedule(LENGTHS, 128, 0, layout, 16, 8, 8, budget=16384)
        passes, real, padded = schedule.passes(), 0, 0
        for rows in islice(schedule.steps_of(0), 8):
            batches = schedule.batches(rows, passes)
            tokens = [int(LENGTHS[batch].sum()) for batch in batches]
            real += sum(tokens)
            padded += sum(int(LENGTHS[batch].max()) * len(batch) for batch in batches)
            assert layout != "packed" or 0.95 * max(tokens) < min(tokens) <= max(tokens) <= 16384
        padding[layout] = 1 - real / padded
    assert padding["by_length"] < 0.15 < 0.4 < padding["in_order"]


@pytest.mark.parametrize(("layout", "processes"), [("in_order", 4), ("by_length", 2), ("packed", 4)])
def test_processes_divide_a_step_into_the_same_number_of_passes(layout, processes):
    schedule = BatchSchedule(LENGTHS[:640], 64, 3, layout, 8, processes, 10, 4096 * 4)
    passes = schedule.passes()
    shares = [list(ProcessBatchSampler(schedule, process, passes)) for process in range(processes)]
    assert {len(share) for share in shares} == {10 * passes}
    for step, expected in enumerate(schedule.steps_of(0)):
        batches = [batch for share in shares for batch in share[step * passes : (step + 1) * passes]]
        assert sorted(row for batch in batches for row in batch) == sorted(expected)


@pytest.mark.parametrize(("budget", "rows"), [(1000, 64), (2000, 12)])
def test_a_budget_that_cannot_hold_is_an_error(budget, rows):
    with pytest.raises(InputError, match="pack_tokens"):
        BatchSchedule(np.full(640, 1200, np.int32), rows, 0, "packed", 8, 8, 10, budget).passes()
