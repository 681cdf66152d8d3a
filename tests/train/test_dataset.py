"""Rows and the token cache: what is labelled and guided, what shares an image, what is left out or refused."""

import json
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from parallel_workers import HOW, always_end
from PIL import Image
from scenes_by_hand import draw_views

from trace_vlm.core.prompts import IGNORE, template
from trace_vlm.data.scenes import captions
from trace_vlm.train import token_cache
from trace_vlm.train.dataset import Collator, RowDataset
from trace_vlm.train.token_cache import KINDS, TASKS, TokenEncoder, encode_file, open_cache
from trace_vlm.train.vision_pretraining import PatchLabels
from trace_vlm.utils.command import InputError
from trace_vlm.utils.parallel import WorkerDied

STYLE = template("vicuna_v1")
MEMORY = """
import sys
from pathlib import Path
import numpy as np, psutil
from trace_vlm.train.token_cache import TokenCache

before = psutil.Process().memory_full_info().uss
cache = TokenCache(Path(sys.argv[1]))
lengths, has_image = cache.lengths(), cache.has_image()
for index in np.random.default_rng(0).permutation(len(cache))[:20000]:
    sample = cache[int(index)]
print(len(cache), (psutil.Process().memory_full_info().uss - before) / 2**20)
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = draw_views(tmp_path_factory.mktemp("scenes") / "data", size=(128, 96))
    assert captions.main(["--data", str(folder), "--out", str(folder / "captions.json")]) == 0
    return folder


@pytest.fixture
def samples(scenes):
    return json.loads((scenes / "captions.json").read_text())


@pytest.fixture
def rows_of(scenes, nano, tmp_path):
    def make(samples, folder=scenes, **options):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(samples))
        return RowDataset([path], folder, nano, **options)

    return make


def turns(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def answer_logits(nano, batch):
    """Logits of the labelled positions, in order of (row, position)."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        logits = nano.model(**inputs, use_cache=False).logits[:, :-1]
    return logits[batch["labels"][:, 1:] != IGNORE]


def test_questions_that_share_an_image_compute_what_separate_rows_compute(rows_of, samples, nano):
    shared, single = rows_of(samples, share_image=3), rows_of(samples)
    assert len(single) == single.samples == shared.samples > len(shared)
    together = answer_logits(nano, Collator(0)([shared[0], shared[1]]))
    apart = answer_logits(nano, Collator(0)([single[index] for index in range(len(shared.names([0, 1])))]))
    assert together.shape == apart.shape and torch.allclose(together, apart, atol=2e-5)


def test_a_guide_ties_the_digits_to_the_object_under_them(rows_of, samples, nano):
    item = rows_of(samples, grounding=True)[0]
    positions, patches = item["guides"]
    digits = samples[0]["conversations"][1]["value"].split("(0.")[1].split(", 0.")
    written = nano.tokenizer.convert_ids_to_tokens(item["input_ids"][positions + 1].tolist())
    assert written == [*digits[0], ",▁0.", *digits[1].rstrip(")")]
    x, y = (float(part) for part in ("0." + digits[0], "0." + digits[1].rstrip(")")))
    row, column = int((y * 96 + 16) / 128 * 8), int(x * 8)  # the image is padded above and below
    assert patches.shape == (len(positions), 64) and 1 <= patches[0].sum() <= 16
    assert patches.view(-1, 8, 8)[:, row, column].eq(1).all()


def test_a_shelf_is_a_surface_that_guides_nothing(rows_of, nano, tmp_path):
    """The instance map has floor (0), a table (1), an object (2) and a shelf (200), a quarter each."""
    quarters = np.array([[0, 1], [2, 200]], np.uint8).repeat(64, 0).repeat(64, 1)
    Image.fromarray(quarters).save(tmp_path / "instances.png")
    Image.fromarray(quarters).convert("RGB").save(tmp_path / "image.png")
    mug = {"instance": 2, "name": "red mug", "category": "mug", "color": "red", "center": [0.25, 0.75]}
    view = {"view": "0", "image": "image.png", "instances": "instances.png", "objects": [mug]}
    (tmp_path / "views.jsonl").write_text(json.dumps(view) + "\n")
    common = {"image": "image.png", "meta": {"instances": "instances.png"}}
    points = {"shelf": "[(0.750, 0.750)]", "table": "[(0.750, 0.250)]", "object": "[(0.250, 0.750)]"}
    samples = [{"id": name, **common, "conversations": turns("<image>\n?", point)} for name, point in points.items()]
    rows = rows_of(samples, tmp_path, grounding=True)
    assert [len(rows[row]["guides"][0]) > 0 for row in range(3)] == [False, False, True]
    data = PatchLabels([str(tmp_path)], nano)
    categories = data[0]["labels"][1].view(8, 8)[[0, 0, 7, 7], [0, 7, 0, 7]].tolist()
    assert [data.categories[category] for category in categories] == ["floor", "surface", "mug", "surface"]


def test_labels_know_their_kind_and_task(rows_of, nano, tmp_path):
    reasoning = "**Reasoning Process:**\n1. **Identify the reference object:** the cup\n\n"
    answer = "**Final Answer:**\n[(0.46, 0.52)]"
    rows = rows_of([
        {"id": 1, "conversations": turns("Where?", reasoning + answer), "task": "free_space"},
        {"id": 2, "conversations": turns("Where?", "[(0.46, 0.52)]"), "task": "object_reference"},
        {"id": 3, "conversations": turns("Where?", "A red cup.")},
    ], tmp_path)  # fmt: skip

    def text(index, task, kind):
        item, cell = rows[index], TASKS.index(task) * len(KINDS) + KINDS.index(kind)
        return nano.tokenizer.decode(item["input_ids"][item["kinds"] == cell])

    assert text(0, "free_space", "reasoning").strip() == reasoning.strip()
    assert text(0, "free_space", "answer").strip() == answer + "</s>"
    assert text(1, "object_reference", "answer") == "[(0.46, 0.52)]</s>"
    assert text(2, "other", "text") == "A red cup.</s>"
    assert all(torch.equal(rows[index]["kinds"] >= 0, rows[index]["labels"] != IGNORE) for index in range(3))


@pytest.mark.parametrize("share_image", [1, 2])
def test_an_image_that_comes_with_a_later_question_moves_no_label(rows_of, samples, nano, share_image):
    for sample in samples[:2]:
        sample["image"] = samples[0]["image"]
        sample["conversations"] = [*turns("2+2?", "It is 4."), *sample["conversations"]]
    rows = rows_of(samples[:2], share_image=share_image)
    assert len(rows) == 2  # the answer before the image is each sample's own
    for row, sample in enumerate(samples[:2]):
        labels, learned = rows[row]["labels"], rows[row]["labels"] != IGNORE
        answers = [turn["value"] + "</s>" for turn in sample["conversations"][1::2]]
        assert nano.tokenizer.decode(labels[learned]) == " ".join(answers)
        assert int((labels == nano.image_token_id).sum()) == 0 and torch.equal(rows[row]["kinds"] >= 0, learned)


def test_a_long_conversation_is_cut_after_an_answer_and_never_inside_one(rows_of, samples, nano):
    question, answer = samples[0]["conversations"][:2]
    short = {**samples[0], "id": "short", "conversations": [question, answer]}
    more = turns("And now?", answer["value"], "And now?", "No more" + " and so on" * 40 + ".")
    data = [{**samples[0], "conversations": [question, answer, *more]}, short]
    complete, cut = rows_of(data), rows_of(data, max_length=140, too_long="cut")
    assert (cut.cut, cut.too_long, len(cut)) == ([samples[0]["id"]], [], 2)
    dropped = rows_of(data, max_length=140)
    assert (dropped.too_long, dropped.samples) == ([samples[0]["id"]], 1)
    with pytest.raises(InputError, match=r"data\.json"):  # nothing is left
        rows_of(data, max_length=70)
    item = cut[0]
    assert len(item["input_ids"]) == cut.lengths[0] <= 140 < complete.lengths[0]
    text = nano.tokenizer.decode(item["labels"][item["labels"] != IGNORE])
    assert text == f"{answer['value']}</s> {answer['value']}</s>"
    assert torch.equal(item["input_ids"], complete[0]["input_ids"][: len(item["input_ids"])])


@pytest.mark.parametrize("conversation", [turns("no tag", "x"), turns("x", "x")[1:]])
def test_a_broken_sample_is_named(rows_of, samples, conversation):
    with pytest.raises(InputError, match="the-broken-one"):
        rows_of([{**samples[0], "id": "the-broken-one", "conversations": conversation}])


def test_a_broken_image_is_replaced_and_not_learned_from(rows_of, samples, scenes, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    content = (scenes / samples[0]["image"]).read_bytes()
    (folder / "0.png").write_bytes(content[:200])
    (folder / "1.png").write_bytes(content)
    data = [{**sample, "image": f"{index}.png"} for index, sample in enumerate(samples[:2])]
    rows = rows_of([*data, {**data[1], "id": "out", "image": str(scenes / samples[0]["image"])}], folder)
    batch = Collator(0)([rows[0], rows[1], rows[2]])
    assert list(batch["broken"]) == [0, 2] and "0.png" in batch["broken"][0]  # 2: outside of the folder
    assert [bool((labels != IGNORE).any()) for labels in batch["labels"]] == [False, True, False]
    assert torch.equal(batch["pixel_values"][0], rows.blank_pixels())
    with pytest.raises(InputError, match="image_folder: "):
        rows_of(data, tmp_path / "elsewhere")


@pytest.fixture
def data(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.json"
    path.write_text((scenes / "captions.json").read_text())
    return path


def test_data_is_tokenized_once_for_its_content(data, nano, tmp_path):
    encoder = TokenEncoder(nano.tokenizer, STYLE)
    first = open_cache(data, encoder)
    stamp = first.path.stat().st_mtime_ns
    (tmp_path / "copy.json").write_text(data.read_text())
    assert open_cache(tmp_path / "copy.json", encoder).path == first.path
    assert first.path.stat().st_mtime_ns == stamp
    assert open_cache(data, TokenEncoder(nano.tokenizer, template("plain"))).path != first.path
    data.write_text(json.dumps(json.loads(data.read_text())[1:]))
    changed = open_cache(data, encoder)
    assert changed.path != first.path and len(changed) == len(first) - 1
    data.write_text('[{"id": "x", "conversations": []}]')
    with pytest.raises(InputError):
        open_cache(data, encoder)
    assert not list((tmp_path / "cache").glob(".*.tmp*"))


def test_what_a_kill_or_a_full_disk_left_is_made_again(data, nano, tmp_path):
    encoder = TokenEncoder(nano.tokenizer, STYLE)
    first = open_cache(data, encoder)
    content = first.path.read_bytes()
    leftover = tmp_path / "cache" / f".{first.path.stem}.77.tmp.arrow"
    leftover.write_bytes(b"half")
    first.path.write_bytes(content[: len(content) // 2])
    for note in (tmp_path / "cache").glob("*.json"):
        note.write_text("")
    again = open_cache(data, encoder)
    assert again.path.read_bytes() == content and not leftover.exists()


def test_samples_that_end_every_process_which_tokenizes_them_are_named(data, nano, monkeypatch):
    monkeypatch.setattr(token_cache, "ROWS", 4)
    monkeypatch.setattr(token_cache, "encode_chunk", partial(always_end, "SEGV"))
    with pytest.raises(WorkerDied, match=r"samples 0 to 3 of .*data\.json.*" + re.escape(HOW["SEGV"])):
        list(encode_file(data, TokenEncoder(nano.tokenizer, STYLE), workers=2))


@pytest.mark.parametrize("rows", [51_200, pytest.param(1_400_320, marks=pytest.mark.slow)])
def test_a_process_maps_its_samples_instead_of_holding_them(rows, tmp_path):
    row = {"id": "a", "image": "image/1.jpg", "instances": None, "task": 0, "tokens": 330, "ids": list(range(330))}
    batch = [row | {"learned": [250, 330, 0], "guides": []}] * token_cache.ROWS
    batch, path = pa.RecordBatch.from_pylist(batch, schema=token_cache.SCHEMA), tmp_path / "big.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, token_cache.SCHEMA) as writer:
        for _ in range(rows // token_cache.ROWS):
            writer.write_batch(batch)
    command = [sys.executable, "-c", MEMORY, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, own = map(float, output.split())  # MiB of this process alone, without the shared pages
    assert count == rows and own < 100 + 60 * rows / 1e6 < 300
    path.unlink()
