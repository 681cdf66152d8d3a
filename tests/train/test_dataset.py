"""Rows: what a shared image computes, what is guided, what is left out, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from parallel_workers import HOW, always_end
from PIL import Image
from rendering import MISSING
from scenes_by_hand import draw_views

from trace_vlm.core.images import patch_coverage
from trace_vlm.core.prompts import IGNORE, template
from trace_vlm.core.records import read_jsonl, read_samples
from trace_vlm.data.scenes import captions, generate
from trace_vlm.data.sources import __main__ as sources_cli
from trace_vlm.train import token_cache
from trace_vlm.train.dataset import Collator, RowDataset
from trace_vlm.train.token_cache import KINDS, TASKS, open_records
from trace_vlm.train.vision_pretraining import PatchLabels
from trace_vlm.utils.command import InputError
from trace_vlm.utils.parallel import WorkerDied


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
    count = len(shared.row(0).branches) + len(shared.row(1).branches)
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


def test_a_batch_beyond_the_limit_is_cut_behind_an_answer_and_never_inside_one(scenes, nano, tmp_path):
    sample = json.loads((scenes / "captions.json").read_text())[0]
    question, answer = sample["conversations"][:2]
    more = {"from": "human", "value": "And now?"}
    long = {"from": "gpt", "value": "No more" + " and so on" * 40 + "."}
    sample["conversations"] = [question, answer, more, dict(answer), more, long]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([sample, {**sample, "id": "short", "conversations": [question, answer]}]))
    whole = RowDataset([path], scenes, nano)
    cut = RowDataset([path], scenes, nano, max_length=140, too_long="cut")
    assert (cut.cut, cut.too_long, len(cut)) == ([sample["id"]], [], 2)
    assert RowDataset([path], scenes, nano, max_length=140).too_long == [sample["id"]]
    item = cut[0]
    assert len(item["input_ids"]) == cut.lengths[0] <= 140 < whole.lengths[0]
    learned = nano.tokenizer.decode(item["labels"][item["labels"] != IGNORE])
    assert learned.split("</s>") == [answer["value"], " " + answer["value"], ""]
    assert torch.equal(item["input_ids"], whole[0]["input_ids"][: len(item["input_ids"])])


def test_a_broken_picture_is_replaced_told_and_not_learned_from(scenes, nano, tmp_path):
    samples = json.loads((scenes / "captions.json").read_text())[:2]
    images = tmp_path / "images"
    images.mkdir()
    samples = [{**sample, "image": f"{index}.png"} for index, sample in enumerate(samples)]
    source = json.loads((scenes / "captions.json").read_text())[0]["image"]
    (images / "0.png").write_bytes((scenes / source).read_bytes()[:200])
    (images / "1.png").write_bytes((scenes / source).read_bytes())
    path = tmp_path / "data.json"
    path.write_text(json.dumps(samples))
    rows = RowDataset([path], images, nano)
    batch = Collator(0)([rows[0], rows[1]])
    assert list(batch["broken"]) == [0] and "0.png cannot be read" in batch["broken"][0]
    assert (batch["labels"][0] == IGNORE).all() and (batch["labels"][1] != IGNORE).any()
    assert torch.equal(batch["pixel_values"][0], rows.blank_pixels())
    with pytest.raises(InputError, match="image_folder: none of 2 images was found"):
        RowDataset([path], tmp_path / "elsewhere", nano)


def test_tokens_know_whether_they_reason_or_answer_and_for_which_task(nano, tmp_path):
    reasoning = "**Reasoning Process:**\n1. **Identify the reference object:** the cup\n\n"
    answer = "**Final Answer:**\n[(0.46, 0.52)]"
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": reasoning + answer}]
    samples = [
        {"id": 1, "conversations": turns, "task": "free_space"},
        {"id": 2, "conversations": [turns[0], {"from": "gpt", "value": "[(0.46, 0.52)]"}], "task": "object_reference"},
        {"id": 3, "conversations": [turns[0], {"from": "gpt", "value": "A red cup."}]},
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(samples))
    rows = RowDataset([path], tmp_path, nano)

    def told(index, task, kind):
        item = rows[index]
        return nano.tokenizer.decode(
            item["input_ids"][item["kinds"] == TASKS.index(task) * len(KINDS) + KINDS.index(kind)]
        )

    assert told(0, "free_space", "reasoning").strip() == reasoning.strip()
    assert told(0, "free_space", "answer").strip() == answer + "</s>"
    assert told(1, "object_reference", "answer") == "[(0.46, 0.52)]</s>"
    assert told(2, "other", "text") == "A red cup.</s>"
    for index in range(3):
        item = rows[index]
        assert torch.equal(item["kinds"] >= 0, item["labels"] != IGNORE)


def test_data_is_converted_once_for_its_content(scenes, nano, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.json"
    path.write_text((scenes / "captions.json").read_text())
    first = open_records(path, nano.tokenizer, template("vicuna_v1"))
    stamp = first.path.stat().st_mtime_ns
    (tmp_path / "copy.json").write_text(path.read_text())
    again = [open_records(one, nano.tokenizer, template("vicuna_v1")) for one in (path, tmp_path / "copy.json")]
    assert {one.path for one in again} == {first.path} and first.path.stat().st_mtime_ns == stamp
    assert open_records(path, nano.tokenizer, template("plain")).path != first.path
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    changed = open_records(path, nano.tokenizer, template("vicuna_v1"))
    assert changed.path != first.path and len(changed) == len(first) - 1
    path.write_text('[{"id": "x", "conversations": []}]')
    with pytest.raises(InputError):
        open_records(path, nano.tokenizer, template("vicuna_v1"))
    assert not list((tmp_path / "cache").glob(".*.tmp*"))


def test_what_a_kill_or_a_full_disk_left_in_the_cache_is_made_again(scenes, nano, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.json"
    path.write_text((scenes / "captions.json").read_text())
    first = open_records(path, nano.tokenizer, template("vicuna_v1"))
    whole = first.path.read_bytes()
    left = tmp_path / "cache" / f".{first.path.stem}.77.tmp.arrow"
    left.write_bytes(b"half")
    first.path.write_bytes(whole[: len(whole) // 2])
    for note in (tmp_path / "cache").glob("*.json"):
        note.write_text("")
    again = open_records(path, nano.tokenizer, template("vicuna_v1"))
    assert again.path.read_bytes() == whole and not left.exists()


def test_a_process_that_is_killed_while_it_tokenises_is_replaced(scenes, nano, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "ROWS", 4)
    path = scenes / "captions.json"
    alone = [
        token_cache._encode_chunk(nano.tokenizer, template("vicuna_v1"), chunk)
        for chunk in token_cache._chunks(read_samples(path))
    ]
    encoded = token_cache._encoded_by(2, path, nano.tokenizer, template("vicuna_v1"))
    first = next(encoded)
    for child in multiprocessing.active_children():
        child.kill()
    assert [first, *encoded] == alone and len(alone) > 4


@pytest.mark.parametrize("how", HOW)
def test_samples_that_end_every_process_which_tokenises_them_are_named(scenes, nano, tmp_path, monkeypatch, how):
    monkeypatch.setattr(token_cache, "ROWS", 4)
    monkeypatch.setattr(token_cache, "_encode_chunk", partial(always_end, how))
    encoded = token_cache._encoded_by(2, scenes / "captions.json", nano.tokenizer, template("vicuna_v1"))
    with pytest.raises(
        WorkerDied, match="captions.json, samples 0 to 3 could not be tokenised: .*" + re.escape(HOW[how])
    ):
        list(encoded)


@pytest.mark.parametrize("share_image", [1, 2])
def test_an_image_that_comes_with_a_later_question_moves_no_label(scenes, nano, tmp_path, share_image):
    samples = json.loads((scenes / "captions.json").read_text())[:2]
    for sample in samples:
        later = sample["conversations"]
        sample["image"] = samples[0]["image"]
        sample["conversations"] = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is 4."}, *later]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(samples))
    rows = RowDataset([path], scenes, nano, share_image=share_image)
    assert len(rows) == 2  # the answer before the image is each sample's own
    for row, sample in enumerate(samples):
        item = rows[row]
        answers = [turn["value"] + "</s>" for turn in sample["conversations"][1::2]]
        assert nano.tokenizer.decode(item["labels"][item["labels"] != IGNORE]) == " ".join(answers)
        assert int((item["labels"] == nano.image_token_id).sum()) == 0
        assert torch.equal(item["kinds"] >= 0, item["labels"] != IGNORE)


MEMORY = """
import sys
import numpy as np, pyarrow as pa
import psutil
from pathlib import Path
from trace_vlm.train.token_cache import ROWS, SCHEMA, Records

rows, tokens, path = int(sys.argv[1]), 330, Path(sys.argv[2])
if not path.exists():
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        ids = pa.array(np.arange(ROWS * tokens, dtype=np.int32) % 32000)
        offsets = pa.array(np.arange(0, ROWS * tokens + 1, tokens, dtype=np.int32))
        spans = pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * ROWS + 1, 3, dtype=np.int32)),
                                         pa.array(np.tile(np.array([250, 330, 0], np.int32), ROWS)))
        guides = pa.ListArray.from_arrays(pa.array(np.zeros(ROWS + 1, np.int32)), pa.array(np.zeros(0)))
        text = pa.array([f"image/{index}.jpg" for index in range(ROWS)])
        numbers = pa.array(np.full(ROWS, tokens, np.int32))
        batch = pa.RecordBatch.from_arrays([text, text, pa.nulls(ROWS, pa.string()), numbers, numbers,
                                            pa.ListArray.from_arrays(offsets, ids), spans, guides], schema=SCHEMA)
        for _ in range(rows // ROWS):
            writer.write_batch(batch)
    sys.exit()
before = psutil.Process().memory_full_info()
records = Records(path)
lengths, pictured = records.column("tokens"), records.with_image()
order = np.random.default_rng(0).permutation(len(records))
for index in order[:20000]:
    record = records[int(index)]
after = psutil.Process().memory_full_info()
print(len(records), (after.uss - before.uss) / 2**20, (after.rss - before.rss) / 2**20, path.stat().st_size / 2**20)
"""


@pytest.mark.parametrize("rows", [51_200, pytest.param(1_400_320, marks=pytest.mark.slow)])
def test_a_process_maps_its_records_instead_of_holding_them(rows, tmp_path):
    command = [sys.executable, "-c", MEMORY, str(rows), str(tmp_path / "big.arrow")]
    subprocess.run(command, check=True)  # writes
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    count, own, resident, size = map(float, told)
    print(f"{count:.0f} records of {size:.0f} MiB: {own:.0f} MiB a process, {resident:.0f} MiB with shared pages")
    assert count == rows and own < 100 + 60 * rows / 1e6 < 300
    (tmp_path / "big.arrow").unlink()


# --- where files lie, and what an instance map says -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["images", "images/images"])
def test_training_finds_pictures_where_the_check_finds_them(scenes, nano, tmp_path, capsys, place):
    """In the folder's images/, and, for names that carry the folder, beside it."""
    sample = json.loads((scenes / "captions.json").read_text())[0]
    path = tmp_path / "data.json"
    names = {"images": "views/0.png", "images/images": "images/0.png"}
    path.write_text(json.dumps([{**sample, "image": names[place]}]))
    folder = tmp_path / "data" / "images"
    target = {"images": folder / "images" / "views" / "0.png", "images/images": folder / "0.png"}[place]
    target.parent.mkdir(parents=True)
    target.write_bytes((scenes / sample["image"]).read_bytes())
    flags = ["--data", str(path), "--image-folder", str(folder), "--workers", "1"]
    assert sources_cli.main(["check", *flags]) in (0, None)
    rows = RowDataset([path], folder, nano)
    assert "broken" not in rows[0] and (rows[0]["labels"] != IGNORE).any()
    pickle.loads(pickle.dumps(rows._images)).find("x")  # for a loader's processes


def test_a_picture_outside_the_folder_is_not_learned_from(scenes, nano, tmp_path):
    sample = json.loads((scenes / "captions.json").read_text())[0]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([sample, {**sample, "id": "out", "image": str(scenes / sample["image"])}]))
    rows = RowDataset([path], scenes, nano)
    assert "leaves the image folder" in rows[1]["broken"] and "broken" not in rows[0]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Two views of a generated room, of which shelves and side tables are seen too."""
    if MISSING:
        pytest.skip(MISSING)
    out = tmp_path_factory.mktemp("rooms") / "data"
    assert generate.main(f"--out {out} --scenes 1 --views 2 --seed 3 --size 128 --workers 1".split()) == 0
    return out


def further_surface(folder):
    """A view, and a place (x, y) on the largest further surface of it: the middle of a window that is nothing else."""
    for _, view in read_jsonl(folder / "views.jsonl"):
        instances = np.asarray(Image.open(folder / view["instances"]))
        windows = np.lib.stride_tricks.sliding_window_view(instances, (3, 3)).reshape(126, 126, 9)
        rows, columns = np.nonzero((windows >= 200).all(2))
        if len(rows):
            middle = len(rows) // 2
            return view, ((columns[middle] + 1.5) / 128, (rows[middle] + 1.5) / 128)
    raise AssertionError("no view shows a further surface: take another seed")


def test_a_free_place_on_a_shelf_guides_nothing(rooms, nano, tmp_path):
    view, (x, y) = further_surface(rooms)
    thing = view["objects"][0]
    turns = {place: [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": f"[({a:.3f}, {b:.3f})]"}]
             for place, (a, b) in {"shelf": (x, y), "thing": thing["center"]}.items()}  # fmt: skip
    path = tmp_path / "data.json"
    path.write_text(json.dumps([
        {"id": name, "image": view["image"], "meta": {"instances": view["instances"]}, "conversations": turns[name]}
        for name in turns
    ]))  # fmt: skip
    rows = RowDataset([path], rooms, nano, grounding=True)
    guides = {rows.names([row])[0]: rows[row]["guides"][0] for row in range(2)}
    assert len(guides["thing"]) > 0 and len(guides["shelf"]) == 0


def test_patches_of_a_shelf_are_labelled_as_a_surface(rooms, nano):
    data = PatchLabels([str(rooms)], nano)
    shelves = 0
    for index, (_, view) in enumerate(data.views):
        instances = np.asarray(Image.open(rooms / view["instances"]))
        floor, main, surfaces, things = (
            patch_coverage(region, nano.patches_per_side).reshape(-1)
            for region in (
                instances == 0,
                instances == 1,
                (instances == 1) | (instances >= 200),
                (instances >= 2) & (instances < 200),
            )
        )
        labels = data[index]["labels"][1].numpy()
        bare = things < 0.02
        assert (labels[bare & (surfaces > floor)] == data.categories.index("surface")).all()
        assert (labels[bare & (surfaces < floor)] == data.categories.index("floor")).all()
        shelves += int((bare & (surfaces > floor) & (main < floor)).sum())
    assert shelves, "no patch shows more of a shelf than of the floor: take another seed"
