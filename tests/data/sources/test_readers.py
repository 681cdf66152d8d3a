"""Every kind of source, read from a small copy in exactly the layout of the public one."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
import sources_by_hand as hand
from PIL import Image
from shell import ROOT

from trace_vlm.core.images import Images
from trace_vlm.core.points import parse_points
from trace_vlm.core.records import Sample, read_samples
from trace_vlm.data.sources import Problems, Source, read_source
from trace_vlm.data.sources.cli import main
from trace_vlm.data.sources.sample_checks import part_of
from trace_vlm.data.sources.stream import read_members
from trace_vlm.utils.command import InputError, run


def read(kind: str, path: Path, **more: object) -> tuple[list[Sample], Problems]:
    problems = Problems()
    return list(read_source(Source(kind, path, **more), problems)), problems  # type: ignore[arg-type]


# --- public sets ----------------------------------------------------------------------------------


def test_robopoints_archive_by_its_parts(tmp_path: Path) -> None:
    samples, problems = read("robopoint", hand.robopoint(tmp_path, 3))
    assert not problems.counts
    parts = [part_of(sample) for sample in samples]
    assert {part: parts.count(part) for part in set(parts)} == {
        "object_reference": 3,
        "free_space": 3,
        "detection": 3,
        "vqa": 3,
        "text": 1,
    }
    assert len({sample.id for sample in samples}) == len(samples), "an id that the archive repeats is numbered"
    assert "000000000001#2" in {sample.id for sample in samples}


def test_the_folder_of_trace_with_its_reasoning(tmp_path: Path) -> None:
    samples, problems = read("trace", hand.trace(tmp_path, 2))
    assert not problems.counts and len(samples) == 4
    assert all("**Final Answer:**" in sample.conversations[1].text for sample in samples)


def test_llavas_mix_with_its_peculiarities(tmp_path: Path) -> None:
    samples, problems = read("llava_mix", hand.llava_mix(tmp_path))
    assert not problems.counts
    assert [sample.id for sample in samples] == ["000000033471", "000000033471#2", "2354786", "wgByO4Y_0", "t_1"]
    assert [part_of(sample) for sample in samples] == ["vqa", "vqa", "vqa", "text", "text"]
    assert samples[3].image is None and len(samples[3].conversations) == 4
    assert samples[4].conversations[0].text == "a", "an answer to nothing is left out, as LLaVA's training does"


def test_lvis_boxes_become_normalised_lists(tmp_path: Path) -> None:
    samples, problems = read("lvis", hand.lvis(tmp_path))
    assert not problems.counts
    first, second = samples
    assert (first.id, first.image) == ("lvis/30", "train2017/000000000030.jpg")
    assert "cup (drinking)" in first.conversations[0].text and first.conversations[0].text.startswith("<image>\n")
    assert first.conversations[1].text == "[(0.000, 0.000, 0.050, 0.050), (0.100, 0.100, 0.300, 0.300)]"
    assert len(first.conversations) == 2, "the alarm clocks of this image are not all annotated"
    answers = {turn.text for turn in second.conversations[1::2]}
    assert answers == {"[(0.938, 0.833, 1.000, 1.000)]", "[(0.500, 0.500, 1.000, 1.000)]"}
    assert not any("bead" in turn.text for turn in second.conversations), "21 of them are too many to list"


def test_lvis_asks_as_many_categories_as_wanted_and_the_seed_decides(tmp_path: Path) -> None:
    path = hand.lvis(tmp_path)
    assert [len(sample.conversations) for sample in read("lvis", path, max_turns=1)[0]] == [2, 2]
    assert read("lvis", path, seed=3)[0] == read("lvis", path, seed=3)[0]
    wordings = {sample.conversations[0].text for seed in range(8) for sample in read("lvis", path, seed=seed)[0]}
    assert len(wordings) > 4


def test_lvis_does_not_ask_for_a_category_of_which_a_box_lies_outside(tmp_path: Path) -> None:
    path = hand.lvis(tmp_path)
    content = json.loads(path.read_text())
    before = len(read("lvis", path)[0])
    for annotation in content["annotations"]:
        if annotation["image_id"] == content["images"][0]["id"]:
            annotation["bbox"] = [5000, 5000, 20, 20]
    path.write_text(json.dumps(content))
    assert len(read("lvis", path)[0]) == before - 1
    content["images"][0]["width"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="not as LVIS v1 writes it: image .* is 0 x"):
        read("lvis", path)


def test_a_generated_folder_and_its_captions_are_told_apart(tmp_path: Path) -> None:
    hand.picture(tmp_path / "images/0.png")
    hand.write(tmp_path / "data.json", [hand.pointing("0", "images/0.png", kind="free")])
    hand.write(tmp_path / "captions.json", [hand.record("c", "images/0.png", "What?", "A mug.")])
    samples, _ = read("scenes", tmp_path)
    assert [sample.id for sample in samples] == ["0"]


def test_a_folder_of_several_files_is_read_whole(tmp_path: Path) -> None:
    for name in ("object_reference", "free_space"):
        hand.picture(tmp_path / f"images/{name}.png")
        hand.write(tmp_path / f"{name}.json", [hand.pointing(name, f"{name}.png")])
    (tmp_path / "notes.json").write_text('{"not": "samples"}')
    assert [sample.id for sample in read("llava", tmp_path)[0]] == ["free_space", "object_reference"]


# --- one's own points -----------------------------------------------------------------------------


def test_own_points_from_csv(tmp_path: Path) -> None:
    hand.picture(tmp_path / "kitchen.jpg")
    (tmp_path / "points.csv").write_text(
        "image,instruction,x,y,place\n"
        "kitchen.jpg,Point to the mug.,0.41,0.62,home\n"
        'kitchen.jpg,"Find space left of the mug, please.",0.2,0.6,home\n'
        "kitchen.jpg,Point to the mug.,0.43,0.60,home\n\n"
    )
    samples, problems = read("points", tmp_path)
    assert not problems.counts
    assert [sample.conversations[1].text for sample in samples] == [
        "[(0.410, 0.620), (0.430, 0.600)]",
        "[(0.200, 0.600)]",
    ]
    assert samples[0].conversations[0].text.startswith("<image>\nPoint to the mug. Your answer should be formatted")
    assert samples[0].meta["place"] == "home"


def test_own_points_in_pixels(tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.png", (200, 100))
    (tmp_path / "points.csv").write_text("image,instruction,x_px,y_px\na.png,Point.,50,25\n")
    assert parse_points(read("points", tmp_path)[0][0].conversations[1].text)[0].x == 0.25  # type: ignore[union-attr]
    (tmp_path / "points.csv").unlink()
    (tmp_path / "mine.jsonl").write_text(
        '{"id": "m", "image": "a.png", "instruction": "Point.", "points_px": [[50, 25]]}'
    )
    (sample,) = read("points", tmp_path / "mine.jsonl")[0]
    assert (sample.id, sample.conversations[1].text) == ("m", "[(0.250, 0.250)]")


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("a.png,Point.,120,40", "points", "x_px"),
        ("a.png,Point.,left,0.4", "points", "pairs of numbers"),
        ("a.png,Point.,0.5", "points", "pairs of numbers"),
        ("a.png,,0.5,0.5", "record", '"instruction" is missing'),
        ("b.png,Point.,0.5,0.5", "image missing", "b.png is not in"),
        ("a.png,Point.,nan,0.5", "points", "not finite"),
    ],
)
def test_a_bad_line_of_own_points_is_named(line: str, kind: str, words: str, tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.png")
    (tmp_path / "points.csv").write_text(f"image,instruction,x,y\na.png,Point there.,0.5,0.5\n{line}\n")
    samples, problems = read("points", tmp_path)
    assert len(samples) == 1 and problems.counts == {kind: 1}
    assert words in problems.examples[kind][0].detail
    with pytest.raises(InputError, match="sample points/2"):
        list(read_source(Source("points", tmp_path), Problems(strict=True)))


def test_a_csv_without_the_columns_says_which(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("file,text\na.png,Point.\n")
    with pytest.raises(InputError, match="image, instruction, x, y .* found file, text"):
        read("points", tmp_path)


def test_lines_of_a_csv_with_different_masks_are_no_sample(tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.png")
    (tmp_path / "points.csv").write_text(
        "image,instruction,x,y,mask\na.png,Point.,0.5,0.5,left.png\na.png,Point.,0.6,0.5,\na.png,Point.,0.7,0.5,right.png\n"
        "a.png,Point there.,0.5,0.5,left.png\na.png,Point there.,0.5,0.5,left.png\n"
    )
    samples, problems = read("points", tmp_path)
    assert [sample.meta["mask"] for sample in samples] == ["left.png"]
    assert "the mask is left.png, but right.png in line 4" in problems.examples["record"][0].detail


def test_a_csv_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(b"image,instruction,x,y\na.png,Point.,0.5,0.5\na.png,Caf\xe9.,0.5,0.5\n")
    with pytest.raises(InputError, match=r"points\.csv, line 3 is not UTF-8; save the file as UTF-8"):
        read("points", tmp_path)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs/data.md").read_text()
    section = text.split("## Your own points", 1)[1]
    example = dedent(section.split("```csv\n", 1)[1].split("   ```", 1)[0])
    (tmp_path / "points.csv").write_text(example)
    for name in {line.split(",")[0] for line in example.splitlines()[1:]}:
        hand.picture(tmp_path / name)
    out = tmp_path / "mine.json"
    assert run(main, ["convert", "--kind", "points", "--path", str(tmp_path), "--out", str(out)]) == 0
    assert run(main, ["check", "--data", str(out), "--workers", "1"]) == 0
    assert len(list(read_samples(out))) == len({tuple(line.split(",")[:2]) for line in example.splitlines()[1:]})


# --- what is wrong with a sample ------------------------------------------------------------------

BAD = {
    "tag": (hand.record("tag", "a.png", "Where?", "There."), "conversation", "no <image>"),
    "two tags": (hand.record("two tags", "a.png", "<image><image>", "x"), "conversation", "turn 1 is empty"),
    "order": ({"id": "order", "conversations": [{"from": "gpt", "value": "x"}]}, "conversation", "turn 1 is by 'gpt'"),
    "open": ({"id": "open", "conversations": [{"from": "human", "value": "x"}]}, "conversation", "without an answer"),
    "empty": (hand.record("empty", None, "Hello", " "), "conversation", "turn 2 is empty"),
    "who": ({"id": "who", "conversations": [{"from": "user", "value": "x"}]}, "record", '"from" must be'),
    "nothing": ({"id": "nothing"}, "record", '"conversations" is missing'),
    "missing": (hand.pointing("missing", "gone.png"), "image missing", "gone.png is not in"),
    "escape": (hand.pointing("escape", "../../etc/passwd"), "image missing", "leaves the image folder"),
    "absolute": (hand.pointing("absolute", "/etc/passwd"), "image missing", "leaves the image folder"),
    "outside": (hand.record("outside", "a.png", "Point.", "[(0.5, 1.2)]"), "points", "(0.5, 1.2) is outside"),
    "half read": (
        hand.record("half read", "a.png", "Point.", "[(0.5, 0.2), (0.5 0.2)]"),
        "points",
        "2 tuples of which 1",
    ),
    "unread": (hand.record("object_ref/1", "a.png", "Point.", "over there"), "points", "no coordinates"),
    "good again": (hand.pointing("good", "a.png"), "duplicate id", "used before"),
}


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    hand.picture(tmp_path / "a.png")
    bad = [record for record, _, _ in BAD.values()]
    bad[0]["conversations"][0]["value"] = "Where?"
    return hand.write(tmp_path / "data.json", [hand.pointing("good", "a.png"), *bad])


def test_each_flaw_is_counted_and_named(flawed: Path, tmp_path: Path) -> None:
    found: dict[str, str] = {}
    problems = Problems(log=lambda problem: found.__setitem__(problem.id, f"{problem.kind}: {problem.detail}"))
    samples = list(read_source(Source("llava", flawed), problems))
    assert [sample.id for sample in samples] == ["good"]
    assert sum(problems.counts.values()) == len(BAD)
    for record, kind, words in BAD.values():
        assert found[record["id"]].startswith(f"{kind}: ") and words in found[record["id"]]


@pytest.mark.parametrize("name", BAD)
def test_strict_stops_at_each_flaw_and_names_the_sample(name: str, tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.png")
    record, kind, words = BAD[name]
    if name == "tag":
        record["conversations"][0]["value"] = "Where?"
    path = hand.write(tmp_path / "data.json", [hand.pointing("good", "a.png"), record])
    with pytest.raises(InputError) as caught:
        list(read_source(Source("llava", path), Problems(strict=True)))
    assert str(caught.value).startswith(f"sample {record['id']}: {kind}: ") and words in str(caught.value)


def test_convert_writes_what_is_sound_and_a_log_of_the_rest(flawed: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out/clean.json"
    command = ["convert", "--kind", "llava", "--path", str(flawed), "--out", str(out)]
    assert run(main, command) == 0
    assert [sample.id for sample in read_samples(out)] == ["good"]
    log = [json.loads(line) for line in (tmp_path / "out/clean.json.problems.jsonl").read_text().splitlines()]
    assert len(log) == len(BAD) and {"id", "problem", "detail"} == set(log[0])
    assert "1 samples, 14 left out" in capsys.readouterr().out
    out.unlink()
    assert run(main, [*command, "--strict"]) == 2
    assert not out.exists(), "nothing half written"


def test_a_truncated_jpeg_is_found_when_images_are_decoded(tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.jpg", (320, 240))
    content = (tmp_path / "a.jpg").read_bytes()
    path = hand.write(tmp_path / "data.json", [hand.pointing("x", "a.jpg"), hand.pointing("y", "b.jpg")])
    (tmp_path / "b.jpg").write_bytes(content[: len(content) // 2])
    out = tmp_path / "out.json"
    assert run(main, ["convert", "--kind", "llava", "--path", str(path), "--out", str(out), "--images", "decode"]) == 0
    assert [sample.id for sample in read_samples(out)] == ["x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "llava", "--path", "gone.json"], "gone.json (llava) does not exist"),
        (["--kind", "lvis", "--path", "{folder}/broken.json"], "broken JSON"),
        (["--kind", "lvis", "--path", "{folder}/empty.json"], "has no categories and no images and no annotations"),
        (["--kind", "llava", "--path", "{folder}/none"], "holds no JSON or JSONL file of samples"),
        (["--kind", "scenes", "--path", "{folder}/none"], "has no data.json"),
        (["--kind", "points", "--path", "{folder}/none"], "must hold one .csv or .jsonl file of points, found none"),
        (["--kind", "llava", "--path", "{folder}/nothing.json"], "no sample of"),
        (["--kind", "hub", "--path", "a/b"], "needs --image-folder"),
        (["--kind", "llava", "--path", "{folder}/empty.json", "--limit", "0"], "--limit must be at least 1"),
        (["--kind", "llava", "--path", "{folder}/empty.json", "--unpack-to", "x"], "--unpack-to is for a zip"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "none").mkdir()
    (tmp_path / "broken.json").write_text('{"categories": [{"id": 1, "name": "cup"}, {"id": ')
    (tmp_path / "empty.json").write_text('{"images": []}')
    (tmp_path / "nothing.json").write_text("[]")
    filled = [word.format(folder=tmp_path) for word in arguments]
    assert run(main, ["convert", *filled, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error and not (tmp_path / "out.json").exists()


# --- small parts ----------------------------------------------------------------------------------


def test_members_are_streamed_whatever_their_order_and_length(tmp_path: Path) -> None:
    long = "x" * (3 << 20)  # longer than what is read at a time
    whole = {"info": {"a": [1]}, "empty": [], "items": [1.5, "é", {"long": long}, [2]], "none": None, "last": 12345}
    path = tmp_path / "a.json"
    path.write_text("\ufeff  " + json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    assert list(read_members(path)) == [
        ("info", {"a": [1]}),
        *(("items", item) for item in whole["items"]),  # type: ignore[union-attr, attr-defined]
        ("none", None),
        ("last", 12345),
    ]


@pytest.mark.parametrize(
    "text", ["[]", "", '{"a" 1}', '{"a": [1 2]}', '{"a": [1,]}', '{"a": 1', "{1: 2}", '{"a": [tru]}']
)
def test_broken_members_are_an_input_error_with_their_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json, character \d+ is broken JSON"):
        list(read_members(path))


def test_images_are_found_where_names_carry_the_folder(tmp_path: Path) -> None:
    hand.picture(tmp_path / "set/images/a.png")
    for folder in ("set", "set/images"):
        images = Images(tmp_path / folder)
        assert images.find("a.png") == tmp_path / "set/images/a.png" == images.find("images/a.png")
        assert images.find("set/../set/images/a.png") is None


def converted(*words: object) -> int:
    return run(main, ["convert", *map(str, words)])


def test_images_found_in_images_are_named_so_that_training_finds_them(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    hand.picture(folder / "images/region_ref/1.png", (32, 24))
    data = hand.write(folder / "data.json", [hand.pointing("a", "region_ref/1.png")])
    assert converted("--kind", "llava", "--path", data, "--out", tmp_path / "out.json") == 0
    (sample,) = read_samples(tmp_path / "out.json")
    assert sample.image == "images/region_ref/1.png" and (folder / sample.image).is_file()


def test_what_is_written_is_not_read_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand.write(tmp_path / "data.json", [hand.record("text", None, "Hello", "Hi")])
    words = ("--kind", "llava", "--path", tmp_path, "--out", tmp_path / "out.json")
    assert converted(*words) == 0 and converted(*words) == 2
    assert "lies among the files that are read" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "a" * 300 + ".png", "\ud800.png", "../x.png"])
def test_a_strange_image_name_is_a_problem_and_no_traceback(name: str, tmp_path: Path) -> None:
    data = hand.write(tmp_path / "data.json", [hand.pointing("a", name), hand.record("text", None, "Hello", "Hi")])
    assert converted("--kind", "llava", "--path", data, "--out", tmp_path / "out.json") == 0
    assert [sample.id for sample in read_samples(tmp_path / "out.json")] == ["text"]


def test_a_conversation_without_a_question_is_left_out(tmp_path: Path) -> None:
    only = {"id": "only", "conversations": [{"from": "gpt", "value": "I begin."}]}
    data = hand.write(tmp_path / "data.json", [only, hand.record("text", None, "Hello", "Hi")])
    assert converted("--kind", "llava_mix", "--path", data, "--out", tmp_path / "out.json") == 0
    assert [sample.id for sample in read_samples(tmp_path / "out.json")] == ["text"]


def test_pixels_of_a_turned_picture_are_counted_as_people_see_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 x 30, seen 30 x 40
    Image.new("RGB", (40, 30)).save(tmp_path / "phone.jpg", exif=exif)
    (tmp_path / "points.csv").write_text("image,instruction,x_px,y_px\nphone.jpg,Point.,15,36\n")
    samples, _ = read("points", tmp_path / "points.csv")
    assert samples[0].conversations[1].text == "[(0.500, 0.900)]"


def test_half_a_character_in_an_instruction_is_a_problem(tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.png")
    line = '{"image": "a.png", "instruction": "the \\ud83d cup", "points": [[0.5, 0.5]]}\n'
    (tmp_path / "points.jsonl").write_text(line)
    samples, problems = read("points", tmp_path / "points.jsonl")
    assert not samples and 'line 1: "instruction" holds half a character' in " ".join(problems.table())
