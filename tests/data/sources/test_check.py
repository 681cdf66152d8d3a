"""Verifying a whole set: what is found, on how many processes, after a kill, and what is written without it."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import sources_by_hand as hand
from parallel_workers import HOW, ends_at
from PIL import Image
from shell import kill_when

from trace_vlm.core.images import decoded_size
from trace_vlm.core.records import read_samples
from trace_vlm.data.sources import check
from trace_vlm.data.sources.__main__ import main
from trace_vlm.utils.command import run


def mask(path, inside, size=(32, 24)):
    """White where the points of `hand.pointing` lie, or everywhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), bool)
    pixels[size[1] // 2 - 3 : size[1] // 2 + 4, size[0] // 2 - 4 : size[0] // 2 + 4] = True
    Image.fromarray(np.where(pixels == inside, 255, 0).astype(np.uint8)).save(path)


def checked(data, *flags):
    return run(main, ["check", "--data", str(data), "--workers", "1", *map(str, flags)])


def problems_in(report):
    lines = map(json.loads, report.read_text().splitlines())
    return [problem for line in lines for problem in line.get("problems", ())]


GOOD = [hand.pointing("good", "images/0.jpg", mask="masks/fits.png"), hand.record("text", None, "Hello", "Hi")]
MASKS = ("beside", "small", "empty", "missing")
FLAWS = [  # the first to show an image is decoded for all
    ({"id": "7", "image": "images/1.jpg", "conversations": "none"}, "record"),
    (hand.pointing("truncated", "images/1.jpg"), "image broken"),
    (hand.pointing("truncated too", "images/1.jpg", reasoning=True), "image broken"),
    (hand.pointing("no image", "images/text.jpg"), "image broken"),
    *((hand.pointing(name, "images/2.jpg", mask=f"masks/{name}.png"), "mask") for name in MASKS),
    (hand.pointing("gone", "images/gone.jpg"), "image missing"),
    (hand.pointing("good", "images/3.jpg"), "duplicate id"),
    (hand.record("outside", "images/3.jpg", "Point.", "[(1.5, 0.5)]"), "points"),
]


@pytest.fixture
def flawed(tmp_path):
    for number in range(4):
        hand.picture(tmp_path / f"images/{number}.jpg", (64, 48), seed=number)
    (tmp_path / "images/1.jpg").write_bytes((tmp_path / "images/1.jpg").read_bytes()[:-200])
    (tmp_path / "images/text.jpg").write_text("no image")
    for name, inside, size in (("fits", True, (64, 48)), ("beside", False, (64, 48)), ("small", True, (32, 24))):
        mask(tmp_path / f"masks/{name}.png", inside, size)
    Image.new("L", (64, 48)).save(tmp_path / "masks/empty.png")
    return hand.write(tmp_path / "data.json", [*GOOD, *(record for record, _ in FLAWS)])


@pytest.mark.parametrize("workers", [1, 2])
def test_check_names_every_flaw_and_writes_the_rest(workers, flawed, tmp_path, capsys):
    out = tmp_path / "sound.json"
    assert checked(flawed, "--strict") == 2 and "sample 7: image broken" in capsys.readouterr().err
    assert checked(flawed, "--images", tmp_path, "--workers", workers, "--out", out) == 1, "a set with problems"
    shown = capsys.readouterr().out
    assert "13 samples, 11 with problems" in shown and "images decoded             3  all 64x48" in shown
    found = {problem["id"]: problem["kind"] for problem in problems_in(tmp_path / "data.json.check.jsonl")}
    assert found == {record["id"]: kind for record, kind in FLAWS}
    assert "masks/small.png is 32x24, the image 64x48" in shown
    assert [sample.id for sample in read_samples(out)] == ["good", "text"]
    assert checked(out, "--images", tmp_path) == 0
    assert "2 samples, 0 with problems" in capsys.readouterr().out
    with Image.open(tmp_path / "sound.json.check.png") as sheet:  # the one with a picture
        pixels = np.asarray(sheet).reshape(-1, 3).tolist()
    assert {tuple(pixel) for pixel in pixels} >= {(255, 0, 0), (0, 255, 255)}, "its point and its mask"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_at_any_place_is_found(suffix, tmp_path):
    """As a whole decoding finds it, although a JPEG is decoded at an eighth of its size."""
    cut = tmp_path / f"cut.{suffix}"
    content = hand.picture(cut, (160, 120))
    assert decoded_size(cut) == (160, 120)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        cut.write_bytes(content[: int(len(content) * share)])
        assert isinstance(decoded_size(cut), str), f"cut at {share}"


def test_points_are_compared_with_masks_as_finely_as_they_are_written(tmp_path):
    """(0.47, 0.53) may stand for a pixel 3 columns further left of 640; three decimals may not."""
    hand.picture(tmp_path / "a.png", (640, 480))
    Image.fromarray(np.tile(np.where(np.arange(640) < 298, 255, 0).astype(np.uint8), (480, 1))).save(tmp_path / "m.png")
    for answer, expected in (("[(0.47, 0.53)]", 0), ("[(0.470, 0.530)]", 1)):
        path = hand.write(tmp_path / "data.json", [hand.record("x", "a.png", "Point.", answer, mask="m.png")])
        assert checked(path) == expected, answer


def test_a_killed_check_continues_with_what_it_had(tmp_path):
    content = hand.picture(tmp_path / "0.jpg", (640, 480))
    names = [f"{number}.jpg" for number in range(640)]
    for name in names[1:]:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "5.jpg").write_bytes(content[:5000])
    data = hand.write(tmp_path / "data.json", [hand.pointing(name, name) for name in names])
    report = tmp_path / "data.json.check.jsonl"
    command = [sys.executable, "-m", "trace_vlm.data.sources", "check", "--data", str(data), "--workers", "1"]
    kill_when(lambda: report.exists() and report.read_bytes().count(b"\n") >= 3, command)
    kept = report.read_bytes().rpartition(b"\n")[0] + b"\n"
    assert 3 <= kept.count(b"\n") < 11 and b"5.jpg" in kept, "killed in the middle"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "640 samples, 1 with problems" in done.stdout
    assert report.read_bytes().startswith(kept)
    numbers = [record["chunk"] for record in map(json.loads, report.read_text().splitlines()) if "chunk" in record]
    assert numbers == list(range(10)), "no chunk was looked at twice"


def test_a_report_that_was_cut_after_any_line_is_completed_to_the_same_bytes(tmp_path):
    data = hand.write(tmp_path / "data.json", [hand.record(f"{number}", None, "b", "c") for number in range(100)])
    report = tmp_path / "data.json.check.jsonl"
    assert checked(data) == 0
    complete = report.read_bytes()
    lines = complete.splitlines(keepends=True)
    for kept in range(len(lines)):
        report.write_bytes(b"".join(lines[:kept]))
        assert checked(data) == 0 and report.read_bytes() == complete


def test_an_unfinished_report_of_another_file_or_version_is_begun_anew(tmp_path):
    data = hand.write(tmp_path / "data.json", [hand.record("a", None, "b", "c")])
    report = tmp_path / "data.json.check.jsonl"
    assert checked(data) == 0
    for change in ("file", "version"):
        head, chunk, _ = map(json.loads, report.read_text().splitlines())
        if change == "version":
            del head["keys"], chunk["broken"]
        hand.write(data, [hand.record("a", None, "b", " ")])
        report.write_text(f"{json.dumps(head)}\n{json.dumps(chunk)}\n")  # as if killed before its end
        assert checked(data) == 1


def test_masks_of_every_kind_and_turned_pictures_are_checked_as_they_are_scored(tmp_path):
    """`hand.pointing` points at the middle. Its picture is stored on its side."""
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (24, 32)).save(tmp_path / "a.jpg", exif=exif)
    for name in ("in", "out"):
        mask(tmp_path / f"{name}.png", name == "in")
        white = Image.new("RGBA", (32, 24), "white")
        white.putalpha(Image.open(tmp_path / f"{name}.png"))
        white.save(tmp_path / f"{name}_alpha.png")
    mask(tmp_path / "stored.png", True, (24, 32))
    names = ["in", "in_alpha", "out", "out_alpha", "stored"]
    data = hand.write(tmp_path / "data.json", [hand.pointing(name, "a.jpg", mask=f"{name}.png") for name in names])
    assert checked(data, "--images", tmp_path, "--report", tmp_path / "report.jsonl") == 1
    problems = problems_in(tmp_path / "report.jsonl")
    assert [problem["id"] for problem in problems] == ["out", "out_alpha", "stored"]
    assert "24x32, the image 32x24, upright by its EXIF orientation" in problems[-1]["detail"]


def test_a_picture_that_ends_every_worker_is_named_and_all_others_are_checked(tmp_path, monkeypatch, capsys):
    names = [f"{number}.jpg" for number in range(70)]
    for name in names:
        hand.picture(tmp_path / name, (64, 48))
    data = hand.write(tmp_path / "data.json", [hand.pointing(name, name) for name in names])
    monkeypatch.setattr(check, "chunk_checker", partial(ends_at, "SEGV", "7.jpg"))
    assert checked(data, "--workers", 2) == 1
    printed = capsys.readouterr().out
    assert "70 samples, 1 with problems" in printed and HOW["SEGV"] in printed
