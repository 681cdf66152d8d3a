"""Verifying a whole set: what is found, on how many processes, after a kill, and what is written without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sources_by_hand as hand
from parallel_workers import HOW, ends_at
from PIL import Image

from trace_vlm.core.images import decoded_size
from trace_vlm.core.records import read_samples
from trace_vlm.data.sources import check
from trace_vlm.data.sources.__main__ import main
from trace_vlm.utils.command import run


def mask(path: Path, inside: bool, size: tuple[int, int] = (32, 24)) -> None:
    """White where the points of `hand.pointing` lie, or everywhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), 0 if inside else 255, dtype=np.uint8)
    pixels[size[1] // 2 - 3 : size[1] // 2 + 4, size[0] // 2 - 4 : size[0] // 2 + 4] = 255 if inside else 0
    Image.fromarray(pixels).save(path)


def checked(data: Path, *flags: object) -> int:
    """The exit code of the command."""
    return run(main, ["check", "--data", str(data), "--workers", "1", *map(str, flags)])


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    for number in range(4):
        hand.picture(tmp_path / f"images/{number}.jpg", (64, 48), seed=number)
    truncated = (tmp_path / "images/1.jpg").read_bytes()
    (tmp_path / "images/1.jpg").write_bytes(truncated[: len(truncated) - 200])
    (tmp_path / "images/text.jpg").write_text("no image")
    mask(tmp_path / "masks/fits.png", True, (64, 48))
    mask(tmp_path / "masks/beside.png", False, (64, 48))
    mask(tmp_path / "masks/small.png", True, (32, 24))
    Image.new("L", (64, 48)).save(tmp_path / "masks/empty.png")
    records = [
        hand.pointing("good", "images/0.jpg", mask="masks/fits.png"),
        hand.pointing("truncated", "images/1.jpg"),
        hand.pointing("truncated too", "images/1.jpg", reasoning=True),
        hand.pointing("no image", "images/text.jpg"),
        hand.pointing("beside", "images/2.jpg", mask="masks/beside.png"),
        hand.pointing("small", "images/2.jpg", mask="masks/small.png"),
        hand.pointing("empty", "images/2.jpg", mask="masks/empty.png"),
        hand.pointing("no mask", "images/2.jpg", mask="masks/gone.png"),
        hand.pointing("gone", "images/gone.jpg"),
        hand.pointing("good", "images/3.jpg"),
        {"id": 7, "conversations": "none"},
        hand.record("outside", "images/3.jpg", "Point.", "[(1.5, 0.5)]"),
        hand.record("text", None, "Hello", "Hi"),
    ]
    return hand.write(tmp_path / "data.json", records)


FOUND = {
    "truncated": "image broken",
    "truncated too": "image broken",
    "no image": "image broken",
    "beside": "mask",
    "small": "mask",
    "empty": "mask",
    "no mask": "mask",
    "gone": "image missing",
    "good": "duplicate id",
    "7": "record",
    "outside": "points",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_check_names_every_flaw_and_writes_the_rest(workers: int, flawed: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "sound.json"
    assert checked(flawed, "--strict") == 2 and "sample truncated: image broken" in capsys.readouterr().err
    assert checked(flawed, "--images", tmp_path, "--workers", workers, "--out", out) == 1, "a set with problems"
    shown = capsys.readouterr().out
    assert "13 samples, 11 with problems" in shown and "images decoded             3  all 64x48" in shown
    lines = map(json.loads, (tmp_path / "data.json.check.jsonl").read_text().splitlines())
    assert {problem["id"]: problem["kind"] for line in lines for problem in line.get("problems", ())} == FOUND
    assert "masks/small.png is 32x24, the image 64x48" in shown
    assert [sample.id for sample in read_samples(out)] == ["good", "text"]
    assert checked(out, "--images", tmp_path) == 0
    assert "2 samples, 0 with problems" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_at_any_place_is_found(suffix: str, tmp_path: Path) -> None:
    """As a whole decoding finds it, although a JPEG is decoded at an eighth of its size."""
    hand.picture(tmp_path / f"whole.{suffix}", (160, 120))
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    assert decoded_size(tmp_path / f"whole.{suffix}") == (160, 120)
    cut = tmp_path / f"cut.{suffix}"
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        cut.write_bytes(content[: int(len(content) * share)])
        assert isinstance(decoded_size(cut), str), f"cut at {share}"


def test_points_are_compared_with_masks_as_finely_as_they_are_written(tmp_path: Path) -> None:
    """(0.47, 0.53) may stand for a pixel 3 columns further left of 640; three decimals may not."""
    hand.picture(tmp_path / "a.png", (640, 480))
    pixels = np.zeros((480, 640), dtype=np.uint8)
    pixels[:, :298] = 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    for answer, expected in (("[(0.47, 0.53)]", 0), ("[(0.470, 0.530)]", 1)):
        path = hand.write(tmp_path / "data.json", [hand.record("x", "a.png", "Point.", answer, mask="m.png")])
        assert checked(path) == expected, answer


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data", "gone.json"], "gone.json"),
        (["--data", "{data}", "--images", "gone"], "gone"),
        (["--data", "{data}", "--workers", "0"], "--workers"),
        (["--data", "{data}", "--report", "{data}"], "data.json"),
        (["--data", "{folder}/cut.json"], "cut.json"),
        (["--data", "{folder}/nothing.json"], "nothing.json"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], named: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = hand.write(tmp_path / "data.json", [hand.record("a", None, "b", "c")])
    content = data.read_text()
    (tmp_path / "cut.json").write_text(content[:-5])
    (tmp_path / "nothing.json").write_text("[]")
    filled = [word.format(folder=tmp_path, data=data) for word in arguments]
    assert run(main, ["check", *filled]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and named in message
    assert data.read_text() == content


def test_a_killed_check_continues_with_what_it_had(tmp_path: Path) -> None:
    hand.picture(tmp_path / "0.jpg", (640, 480))
    content = (tmp_path / "0.jpg").read_bytes()
    names = [f"{number}.jpg" for number in range(640)]
    for name in names[1:]:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "5.jpg").write_bytes(content[:5000])
    data = hand.write(tmp_path / "data.json", [hand.pointing(name, name) for name in names])
    report = tmp_path / "data.json.check.jsonl"
    command = [sys.executable, "-m", "trace_vlm.data.sources", "check", "--data", str(data), "--workers", "1"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not (report.exists() and report.read_bytes().count(b"\n") >= 3):
            time.sleep(0.02)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    kept = report.read_bytes().rpartition(b"\n")[0] + b"\n"
    assert 3 <= kept.count(b"\n") < 11, "killed in the middle"
    assert b"5.jpg" in kept
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "640 samples, 1 with problems" in done.stdout
    assert report.read_bytes().startswith(kept)
    numbers = [record["chunk"] for record in map(json.loads, report.read_text().splitlines()) if "chunk" in record]
    assert numbers == list(range(10)), "no chunk was looked at twice"


def test_a_changed_file_is_looked_at_again(tmp_path: Path) -> None:
    data = hand.write(tmp_path / "data.json", [hand.record("a", None, "b", "c")])
    report = tmp_path / "data.json.check.jsonl"
    for texts in (("b", "c"), ("b", " ")):
        hand.write(data, [hand.record("a", None, *texts)])
        lines = report.read_text().splitlines() if report.exists() else []
        report.write_text("\n".join(lines[:-1]) + "\n" if lines else "")  # as if killed before its end
        assert checked(data) == (0 if texts[1] == "c" else 1)


def test_masks_of_every_kind_and_turned_pictures_are_checked_as_they_are_scored(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    """`hand.pointing` points at the middle. Its picture is stored on its side."""
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (24, 32)).save(tmp_path / "a.jpg", exif=exif)
    for inside, name in ((True, "in"), (False, "out")):
        mask(tmp_path / f"{name}.png", inside)
        grey = Image.open(tmp_path / f"{name}.png")
        white = Image.new("RGBA", grey.size, "white")
        white.putalpha(grey)
        white.save(tmp_path / f"{name}_alpha.png")
    mask(tmp_path / "stored.png", True, (24, 32))
    names = ["in", "in_alpha", "out", "out_alpha", "stored"]
    data = hand.write(tmp_path / "data.json", [hand.pointing(name, "a.jpg", mask=f"{name}.png") for name in names])
    report = tmp_path / "report.jsonl"
    assert checked(data, "--images", tmp_path, "--report", report) == 1
    lines = map(json.loads, report.read_text().splitlines())
    problems = [problem for line in lines for problem in line.get("problems", ())]
    assert [problem["id"] for problem in problems] == ["out", "out_alpha", "stored"]
    assert "24x32, the image 32x24, upright by its EXIF orientation" in problems[-1]["detail"]


def test_an_image_that_a_malformed_record_shows_first_is_decoded_for_the_others(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    hand.picture(tmp_path / "cut.jpg", (64, 48))
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) - 200])
    records = [{"id": "bad", "image": "cut.jpg", "conversations": "none"}, hand.pointing("second", "cut.jpg")]
    data = hand.write(tmp_path / "data.json", records)
    assert checked(data, "--images", tmp_path) == 1
    assert "2 samples, 2 with problems" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("how", HOW)
def test_a_picture_that_ends_every_worker_is_named_and_all_others_are_looked_at(
    how, tmp_path, monkeypatch, capsys
) -> None:  # type: ignore[no-untyped-def]
    names = [f"{number}.jpg" for number in range(70)]
    for name in names:
        hand.picture(tmp_path / name, (64, 48))
    data = hand.write(tmp_path / "data.json", [hand.pointing(name, name) for name in names])
    monkeypatch.setattr(check, "chunk_checker", partial(ends_at, how, "7.jpg"))
    assert checked(data, "--workers", 2) == 1
    printed = capsys.readouterr().out
    assert "70 samples, 1 with problems" in printed
    assert f"7.jpg: its worker process ended 3 times, the last time by {HOW[how]}" in printed
