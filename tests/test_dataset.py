"""Rows: what a shared image computes, what is guided, what is left out, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from scenes_by_hand import draw_views

from trace_vlm.command import InputError
from trace_vlm.data.dataset import Collator, RowDataset
from trace_vlm.data.scenes import captions
from trace_vlm.prompts import IGNORE


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = draw_views(tmp_path_factory.mktemp("scenes") / "data", size=(128, 96))
    assert captions.main(["--data", str(folder), "--out", str(folder / "captions.json")]) == 0
    return folder


def dataset(scenes, nano, **options):
    return RowDataset([scenes / "captions.json"], scenes, nano, **options)


def answer_logits(nano, batch):
    """Logits of the labelled positions, in order of (row, position)."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        logits = nano.model(**inputs, use_cache=False).logits[:, :-1]
    return logits[batch["labels"][:, 1:] != IGNORE]


def test_questions_that_share_an_image_compute_what_separate_rows_compute(scenes, nano):
    shared, single = dataset(scenes, nano, share_image=3), dataset(scenes, nano, share_image=1)
    assert len(single) == single.samples == shared.samples > len(shared)
    collate = Collator(0)
    together = answer_logits(nano, collate([shared[0], shared[1]]))
    count = len(shared.rows[0].branches) + len(shared.rows[1].branches)
    apart = answer_logits(nano, collate([single[index] for index in range(count)]))
    assert together.shape == apart.shape
    assert torch.allclose(together, apart, atol=2e-5)


def test_a_branch_does_not_see_its_neighbours(scenes, nano):
    rows = dataset(scenes, nano, share_image=3)
    item = rows[0]
    before = answer_logits(nano, Collator(0)([item]))
    changed = {**item, "input_ids": item["input_ids"].clone()}
    last = item["branch"] == item["branch"].max()
    changed["input_ids"][last] = 5
    after = answer_logits(nano, Collator(0)([changed]))
    kept = int(((item["labels"] != IGNORE) & ~last).sum())
    assert torch.equal(before[:kept], after[:kept])
    assert not torch.allclose(before[kept:], after[kept:])


def test_a_guide_ties_the_digits_to_the_object_under_them(scenes, nano):
    rows = dataset(scenes, nano, share_image=1, grounding=True)
    item = rows[0]
    positions, patches = item["guides"]
    sample = json.loads((scenes / "captions.json").read_text())[0]
    digits = sample["conversations"][1]["value"].split("(0.")[1].split(", 0.")
    written = nano.tokenizer.convert_ids_to_tokens(item["input_ids"][positions + 1].tolist())
    assert written == [*digits[0], ",▁0.", *digits[1].rstrip(")")]
    center = [float(part) for part in ("0." + digits[0], "0." + digits[1].rstrip(")"))]
    column = int(center[0] * 8)
    row = int((center[1] * 96 + 16) / 128 * 8)  # the image is padded above and below
    assert patches.shape == (len(positions), 64)
    assert patches.view(-1, 8, 8)[:, row, column].eq(1).all()
    assert 1 <= patches[0].sum() <= 16


def test_labels_cover_the_answer_and_its_stop(scenes, nano):
    item = dataset(scenes, nano)[0]
    text = nano.tokenizer.decode(item["labels"][item["labels"] != IGNORE])
    sample = json.loads((scenes / "captions.json").read_text())[0]
    assert text == sample["conversations"][1]["value"] + "</s>"


def test_too_long_samples_are_named_and_never_cut(scenes, nano, tmp_path):
    samples = json.loads((scenes / "captions.json").read_text())[:3]
    samples[1]["conversations"][1]["value"] += " and so on" * 60
    path = tmp_path / "data.json"
    path.write_text(json.dumps(samples))
    rows = RowDataset([path], scenes, nano, max_length=128)
    assert rows.too_long == [samples[1]["id"]]
    assert rows.samples == 2
    with pytest.raises(InputError, match="3 were too long"):
        RowDataset([path], scenes, nano, max_length=70)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conversations": [{"from": "human", "value": "no tag"}, {"from": "gpt", "value": "x"}]}, "0 <image> tags"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "alternate"),
    ],
)
def test_a_broken_sample_is_named(scenes, nano, tmp_path, change, said):
    sample = {**json.loads((scenes / "captions.json").read_text())[0], "id": "the-broken-one", **change}
    path = tmp_path / "data.json"
    path.write_text(json.dumps([sample]))
    with pytest.raises(InputError, match=f"the-broken-one.*{said}"):
        RowDataset([path], scenes, nano)


def test_text_only_samples_go_beside_pictures(scenes, nano, tmp_path):
    text = {"id": "t", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
    path = tmp_path / "data.json"
    path.write_text(json.dumps([text, json.loads((scenes / "captions.json").read_text())[0]]))
    rows = RowDataset([path], scenes, nano)
    batch = Collator(0)([rows[0], rows[1]])
    assert batch["pixel_values"].shape[0] == 1
    assert torch.isfinite(answer_logits(nano, batch)).all()
