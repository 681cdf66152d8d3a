"""Downloading with the Hub's own client from a local server, and rows with pictures as `datasets` reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sources_by_hand as hand
from hub_server import COMMIT, hub

from trace_vlm.core.records import read_samples
from trace_vlm.data.sources.cli import main
from trace_vlm.utils.command import run

pytest.importorskip("datasets", reason="comes with the extra [train]")
REPOSITORY = "wentao-yuan/robopoint-data"


def download(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    command = [sys.executable, "-m", "trace_vlm.data.sources", "download", *arguments]
    return subprocess.run(command, env=environment, cwd=home.parent, capture_output=True, text=True, timeout=120)


def test_a_data_set_is_downloaded_once_and_then_read(tmp_path: Path) -> None:
    served = hand.robopoint(tmp_path / "served", 2)
    with hub(REPOSITORY, served) as (address, log):
        arguments = ("--repo", REPOSITORY, "--out", str(tmp_path / "got"))
        done = download(address, tmp_path / "home", *arguments)
        assert done.returncode == 0, done.stderr
        assert sum(f"/resolve/{COMMIT}/" in line for line in log) > 0
        log.clear()
        assert download(address, tmp_path / "home", *arguments).returncode == 0
        assert not any("/resolve/" in line for line in log), "what is there is not fetched again"
    out = tmp_path / "out.json"
    assert run(main, ["convert", "--kind", "robopoint", "--path", str(tmp_path / "got"), "--out", str(out)]) == 0
    assert len(list(read_samples(out))) == 9


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with hub(REPOSITORY, hand.robopoint(tmp_path / "served", 1)) as (address, _):
        out = str(tmp_path / "got")
        only = download(address, tmp_path / "home", "--repo", REPOSITORY, "--out", out, "--include", "*.json")
        assert only.returncode == 0 and ": 1 files of" in only.stdout
        unknown = download(address, tmp_path / "home", "--repo", "nobody/nothing", "--out", out)
    assert unknown.returncode == 2 and "there is no data set 'nobody/nothing'" in unknown.stderr
    away = download(address, tmp_path / "home", "--repo", REPOSITORY, "--out", out)
    assert away.returncode == 2 and "the same command continues" in away.stderr and "Traceback" not in away.stderr


def parquet(folder: Path, rows: list[dict[str, object]]) -> Path:
    from datasets import Dataset, Image

    folder.mkdir()
    pictured = Dataset.from_list(rows).cast_column("image", Image())
    pictured.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_rows_with_pictures_become_files_and_samples(tmp_path: Path) -> None:
    hand.picture(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    rows = [
        {**hand.pointing(name, "x"), "image": {"bytes": content, "path": "a.jpg"}, "meta": '{"kind": "free"}'}
        for name in ("one", "two")
    ]
    rows += [
        {**hand.record("text", None, "Hello", "Hi"), "image": None, "meta": None},
        {**hand.pointing("odd", "x"), "image": {"bytes": b"no picture", "path": None}, "meta": None},
    ]
    folder, images, out = parquet(tmp_path / "rows", rows), tmp_path / "images", tmp_path / "out.json"
    command = ["convert", "--kind", "hub", "--path", str(folder), "--image-folder", str(images), "--out", str(out)]
    assert run(main, command) == 0
    one, two, text = read_samples(out)
    assert one.image == two.image and (images / str(one.image)).read_bytes() == content
    assert one.meta == {"kind": "free"} and text.image is None
    assert "its picture cannot be identified" in (tmp_path / "out.json.problems.jsonl").read_text()


@pytest.mark.parametrize(("path", "words"), [("nothing/here", "cannot be loaded"), ("{folder}", "no column id")])
def test_a_mistake_is_one_sentence(path: str, words: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    hand.picture(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    folder = parquet(tmp_path / "rows", [{"name": "x", "image": {"bytes": content, "path": None}}])
    command = ["--kind", "hub", "--path", path.format(folder=folder), "--image-folder", str(tmp_path / "images")]
    assert run(main, ["convert", *command, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
