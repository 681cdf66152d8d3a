"""Every kind of source, read from a small copy in exactly the layout of the public one, and what is wrong with samples."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import sources_by_hand as hand
from sources_by_hand import converted, read

from trace_vlm.core.images import Images
from trace_vlm.core.records import read_samples
from trace_vlm.data.sources.__main__ import main
from trace_vlm.data.sources.sample_checks import part_of
from trace_vlm.utils.command import InputError, run


def test_robopoints_archive_by_its_parts(tmp_path):
    samples, problems = read("robopoint", hand.robopoint(tmp_path, 3))
    assert not problems.counts
    counts = {"object_reference": 3, "free_space": 3, "detection": 3, "vqa": 3, "text": 1}
    assert Counter(map(part_of, samples)) == counts
    assert len({sample.id for sample in samples}) == len(samples), "an id that the archive repeats is numbered"
    assert "000000000001#2" in {sample.id for sample in samples}


def test_llavas_mix_with_its_peculiarities(tmp_path):
    samples, problems = read("llava_mix", hand.llava_mix(tmp_path))
    assert problems.counts == {"conversation": 1}, "the sample without a question"
    assert [sample.id for sample in samples] == ["000000033471", "000000033471#2", "2354786", "wgByO4Y_0", "t_1"]
    assert [part_of(sample) for sample in samples] == ["vqa", "vqa", "vqa", "text", "text"]
    assert samples[3].image is None and len(samples[3].conversations) == 4
    assert samples[4].conversations[0].text == "a", "an answer to nothing is left out, as LLaVA's training does"


def test_lvis_boxes_become_normalised_lists(tmp_path):
    (first, second), problems = read("lvis", hand.lvis(tmp_path))
    assert not problems.counts
    assert (first.id, first.image) == ("lvis/30", "train2017/000000000030.jpg")
    assert "cup (drinking)" in first.conversations[0].text and first.conversations[0].text.startswith("<image>\n")
    assert first.conversations[1].text == "[(0.000, 0.000, 0.050, 0.050), (0.100, 0.100, 0.300, 0.300)]"
    assert len(first.conversations) == 2, "the alarm clocks of this image are not all annotated"
    answers = {turn.text for turn in second.conversations[1::2]}
    assert answers == {"[(0.938, 0.833, 1.000, 1.000)]", "[(0.500, 0.500, 1.000, 1.000)]"}
    assert not any("bead" in turn.text for turn in second.conversations), "21 of them are too many to list"


def test_lvis_asks_as_many_categories_as_wanted_and_none_of_which_a_box_lies_outside(tmp_path):
    path = hand.lvis(tmp_path)
    assert [len(sample.conversations) for sample in read("lvis", path, max_turns=1)[0]] == [2, 2]
    wordings = {sample.conversations[0].text for seed in range(8) for sample in read("lvis", path, seed=seed)[0]}
    assert read("lvis", path, seed=3)[0] == read("lvis", path, seed=3)[0] and len(wordings) > 4
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] == 30:
            annotation["bbox"] = [5000, 5000, 20, 20]
    path.write_text(json.dumps(content))
    assert [sample.id for sample in read("lvis", path)[0]] == ["lvis/34"]
    content["images"][0]["width"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="lvis_v1_train.json.*images"):
        read("lvis", path)


def test_a_folder_of_several_files_is_read_whole_but_a_generated_one_without_its_captions(tmp_path, capsys):
    for name in ("data", "captions"):
        hand.picture(tmp_path / f"images/{name}.png")
        hand.write(tmp_path / f"{name}.json", [hand.pointing(name, f"{name}.png")])
    (tmp_path / "notes.json").write_text('{"not": "samples"}')
    for kind, expected in (("llava", ["captions", "data"]), ("scenes", ["data"])):
        assert [sample.id for sample in read(kind, tmp_path)[0]] == expected
    assert [converted("llava", tmp_path, tmp_path / "out.json") for _ in range(2)] == [0, 2]
    assert "out.json" in capsys.readouterr().err, "the output is not read as well"


IMAGES = {"missing": "gone.png", "escape": "../../etc/passwd", "absolute": "/etc/passwd", "folder": "."}
IMAGES["long"] = "a" * 300
BAD = {
    "conversation": [
        {**hand.record("tag", None, "Where?", "There."), "image": "a.png"}, hand.record("empty", None, "Hello", " "),
        hand.record("two tags", "a.png", "<image><image>", "x"), hand.record("open", None, "x"),
        {"id": "order", "conversations": [{"from": "gpt", "value": "x"}]}],
    "record": [
        {"id": "who", "conversations": [{"from": "user", "value": "x"}]}, {"id": "nothing"},
        hand.pointing("surrogate", "\ud800.png")],
    "image missing": [hand.pointing(name, image) for name, image in IMAGES.items()],
    "points": [
        hand.record("outside", "a.png", "Point.", "[(0.5, 1.2)]"), hand.record("object_ref/1", "a.png", "Point.", "there"),
        hand.record("half read", "a.png", "Point.", "[(0.5, 0.2), (0.5 0.2)]")],
    "duplicate id": [hand.pointing("good", "a.png")]}  # fmt: skip


def test_convert_writes_what_is_usable_and_names_each_flaw(tmp_path, capsys):
    hand.picture(tmp_path / "a.png")
    kinds = {record["id"]: kind for kind, records in BAD.items() for record in records}
    data = hand.write(tmp_path / "data.json", [hand.pointing("good", "a.png"), *itertools.chain(*BAD.values())])
    out, log = tmp_path / "out/clean.json", tmp_path / "out/clean.json.problems.jsonl"
    assert converted("llava", data, out) == 0
    assert [sample.id for sample in read_samples(out)] == ["good"]
    problems = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["id"]: line["problem"] for line in problems} == kinds
    assert len(problems) == 17 and "1 samples, 17 left out" in capsys.readouterr().out
    out.unlink()
    assert converted("llava", data, out, "--strict") == 2 and not out.exists(), "nothing half written"
    assert "sample tag: conversation" in capsys.readouterr().err


def test_a_truncated_jpeg_is_found_when_images_are_decoded(tmp_path):
    content = hand.picture(tmp_path / "a.jpg", (320, 240))
    path = hand.write(tmp_path / "data.json", [hand.pointing("x", "a.jpg"), hand.pointing("y", "b.jpg")])
    (tmp_path / "b.jpg").write_bytes(content[: len(content) // 2])
    assert converted("llava", path, tmp_path / "out.json", "--check-images", "decode") == 0
    assert [sample.id for sample in read_samples(tmp_path / "out.json")] == ["x"]


@pytest.mark.parametrize("kind,words,named", [
    ("llava", "gone.json", "gone.json"), ("llava", "list.json", "list.json"), ("llava", "none", "none"),
    ("lvis", "broken.json", "broken.json"), ("lvis", "list.json", "list.json"), ("lvis", "empty.json", "categories"),
    ("scenes", "none", "data.json"), ("points", "none", "none"), ("hub", "a/b", "--images"),
    ("hub", "nothing/here --images images", "nothing/here"),
    ("llava", "empty.json --limit 0", "--limit"), ("llava", "empty.json --unpack-to x", "--unpack-to"),
    ("check", "gone.json", "gone.json"), ("check", "data.json --images gone", "gone"),
    ("check", "data.json --workers 0", "--workers"), ("check", "data.json --report data.json", "data.json"),
    ("check", "cut.json", "cut.json"), ("check", "list.json", "list.json")])  # fmt: skip
def test_a_mistake_is_one_sentence(kind, words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("none").mkdir()
    content = hand.write(Path("data.json"), [hand.record("a", None, "b", "c")]).read_text()
    texts = {"broken": '{"categories": [{"id": 1, "name": "cup"}, {"id": ', "empty": '{"images": []}', "list": "[]"}
    for name, text in (texts | {"cut": content[:-5]}).items():
        Path(f"{name}.json").write_text(text)
    command = ["check", "--data"] if kind == "check" else ["convert", "--out", "out.json", "--kind", kind, "--path"]
    assert run(main, [*command, *words.split()]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message
    assert Path("data.json").read_text() == content and not Path("out.json").exists()


def test_images_are_found_and_named_with_and_without_their_folder(tmp_path):
    hand.picture(tmp_path / "set/images/a.png")
    for folder in ("set", "set/images"):
        images = Images(tmp_path / folder)
        assert images.find("a.png") == tmp_path / "set/images/a.png" == images.find("images/a.png")
        assert images.find("set/../set/images/a.png") is None
    (sample,), _ = read("llava", hand.write(tmp_path / "set/data.json", [hand.pointing("a", "a.png")]))
    assert sample.image == "images/a.png", "so that training finds it"
