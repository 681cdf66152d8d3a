"""One's own points, from CSV and JSONL, in fractions and in pixels; a bad line is named."""

from textwrap import dedent

import pytest
import sources_by_hand as hand
from PIL import Image
from shell import ROOT
from sources_by_hand import converted, read

from trace_vlm.core.records import read_samples
from trace_vlm.data.sources.__main__ import main
from trace_vlm.utils.command import InputError, run


def test_own_points_from_csv(tmp_path):
    hand.picture(tmp_path / "a.png")
    lines = ["image,instruction,x,y,place", "a.png,Point to the mug.,0.41,0.62,home"]
    lines += ['a.png,"Find space left of the mug, please.",0.2,0.6,home', "a.png,Point to the mug.,0.43,0.60,home"]
    (tmp_path / "points.csv").write_text("\n".join([*lines, "", ""]))
    (first, second), problems = read("points", tmp_path)
    assert not problems.counts and first.meta["place"] == "home"
    assert first.conversations[0].text.startswith("<image>\nPoint to the mug. Your answer should be formatted")
    assert first.conversations[1].text == "[(0.410, 0.620), (0.430, 0.600)]"
    assert second.conversations[1].text == "[(0.200, 0.600)]"


def test_own_points_in_pixels_of_the_picture_as_people_see_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 x 30, seen 30 x 40
    Image.new("RGB", (40, 30)).save(tmp_path / "phone.jpg", exif=exif)
    (tmp_path / "points.csv").write_text("image,instruction,x_px,y_px\nphone.jpg,Point.,15,36\n")
    line = '{"id": "m", "image": "phone.jpg", "instruction": "Point.", "points_px": [[15, 36]]}'
    (tmp_path / "mine.jsonl").write_text(line)
    for name, identifier in (("points.csv", "points/1"), ("mine.jsonl", "m")):
        (sample,) = read("points", tmp_path / name)[0]
        assert (sample.id, sample.conversations[1].text) == (identifier, "[(0.500, 0.900)]")


@pytest.mark.parametrize("line,kind,named", [
    ("a.png,Point.,120,40", "points", "x_px"), ("a.png,Point.,left,0.4", "points", "left"),
    ("a.png,Point.,0.5", "points", "line 3"), ("a.png,,0.5,0.5", "record", "instruction"),
    ("b.png,Point.,0.5,0.5", "image missing", "b.png"), ("a.png,Point.,nan,0.5", "points", "line 3")])  # fmt: skip
def test_a_bad_line_of_own_points_is_named(line, kind, named, tmp_path):
    hand.picture(tmp_path / "a.png")
    (tmp_path / "points.csv").write_text(f"image,instruction,x,y\na.png,Point there.,0.5,0.5\n{line}\n")
    samples, problems = read("points", tmp_path)
    assert len(samples) == 1 and problems.counts == {kind: 1}
    (problem,) = problems.examples[kind]
    assert problem.id == "points/2" and named in problem.detail


def test_a_csv_without_the_columns_or_not_in_utf8_is_named(tmp_path):
    for content, named in (("file,text\na.png,P.\n", "file, text"), ("image,instruction,x,y\na.png,é,0,1", "line 2")):
        (tmp_path / "points.csv").write_text(content, encoding="latin-1")
        with pytest.raises(InputError, match=rf"points\.csv.*{named}"):
            read("points", tmp_path)


def test_lines_of_a_csv_with_different_masks_are_no_sample(tmp_path):
    hand.picture(tmp_path / "a.png")
    lines = ["Point.,0.5,0.5,left.png", "Point.,0.6,0.5,", "Point.,0.7,0.5,right.png", *["There.,0.5,0.5,left.png"] * 2]
    (tmp_path / "points.csv").write_text("\na.png,".join(["image,instruction,x,y,mask", *lines]))
    samples, problems = read("points", tmp_path)
    assert [sample.meta["mask"] for sample in samples] == ["left.png"]
    assert "right.png in line 4" in problems.examples["record"][0].detail


def test_the_example_of_the_documentation(tmp_path):
    section = (ROOT / "docs/data.md").read_text().split("## Your own points", 1)[1]
    example = dedent(section.split("```csv\n", 1)[1].split("   ```", 1)[0])
    (tmp_path / "points.csv").write_text(example)
    for name in {line.split(",")[0] for line in example.splitlines()[1:]}:
        hand.picture(tmp_path / name)
    out = tmp_path / "mine.json"
    assert converted("points", tmp_path, out) == 0
    assert run(main, ["check", "--data", str(out), "--workers", "1"]) == 0
    assert len(list(read_samples(out))) == len({tuple(line.split(",")[:2]) for line in example.splitlines()[1:]})


def test_half_a_character_in_an_instruction_is_a_problem(tmp_path):
    path = tmp_path / "points.jsonl"
    path.write_text('{"image": "a.png", "instruction": "the \\ud83d cup", "points": [[0.5, 0.5]]}\n')
    samples, problems = read("points", path)
    assert not samples and 'line 1: "instruction"' in " ".join(problems.table())
