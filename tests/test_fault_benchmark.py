"""benchmarks/faults.py on a small command of its own: what it counts as lost, repeated, different and half written."""

import importlib
import importlib.util
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image
from shell import ROOT

SAFE = """
import time
from pathlib import Path
from trace_vlm.utils.command import run
from trace_vlm.utils.files import JsonlWriter, read_jsonl, write_json

def main(argv):
    path = Path("answers.jsonl")
    done = {record["id"] for _, record in read_jsonl(path, skip_partial_line=True)} if path.exists() else set()
    with JsonlWriter(path) as writer:
        for number in {*range(10)} - done:
            writer.write({"id": number, "time": time.time()})
            time.sleep(0.02)
    write_json("summary.json", {"records": 10, "pad": "x" * 9000, "seconds": time.time()})

raise SystemExit(run(main))
"""


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("faults")


def test_a_command_that_survives_kills_and_other_faults(faults, tmp_path, monkeypatch):
    monkeypatch.setattr(faults.os, "geteuid", lambda: 1)  # nothing is mounted
    (tmp_path / "safe.py").write_text(SAFE)
    command = faults.Command("safe", f"-P {tmp_path}/safe.py ", "answers.jsonl")
    row, rows = faults.measure(command, tmp_path / "safe", kills=2, port=0)
    assert row["kills"] == 2 and row["records"] == 10 and row["files"] == 2 and row["notes"] == ""
    assert all(row[key] == 0 for key in faults.FOUND if key != "times only")
    full, term = rows
    assert full["exit code"] == 2 and full["output"].startswith("error: summary.json cannot be written")
    assert term["exit code"] in (143, -signal.SIGTERM)  # the second before the command has begun
    for fault in rows:
        assert fault["then the same"] and not fault["traceback"] and not fault["half-written"]


def test_what_is_lost_repeated_different_left_over_or_half_written_is_named(faults, tmp_path):
    outputs = importlib.import_module("outputs")
    reference, trial = tmp_path / "reference", tmp_path / "trial"
    for folder, ids in ((reference, [1, 2, 3]), (trial, [1, 3, 3])):
        folder.mkdir()
        (folder / "a.jsonl").write_text("".join(json.dumps({"id": number}) + "\n" for number in ids))
        (folder / "run.json").write_text(json.dumps({"seconds": len(os.listdir(trial.parent)), "n": 3}))
        Image.fromarray(np.zeros((50, 50), np.uint8)).save(folder / "same.png", compress_level=len(ids) and ids[1])
        (folder / "page.html").write_text("<html>" + "x" * 100)
    assert outputs.half_written(trial, reference) == []
    found = outputs.compare(trial, reference, "a.jsonl")
    assert found["lost"] == ["id 2"] and found["twice"] == ["id 3"] and found["differ"] == ["a.jsonl"]
    assert "run.json" in found["times only"] and not found["missing"] and not found["left over"]
    (trial / "page.html").write_text("<html>")
    (trial / "same.png").write_bytes((trial / "same.png").read_bytes()[:-20])
    (trial / "run.json").unlink()
    (trial / ".run.json.tmp").write_text("{")
    assert sorted(outputs.half_written(trial, reference)) == ["page.html", "same.png"]
    (trial / "same.png").unlink()
    found = outputs.compare(trial, reference, "a.jsonl")
    assert found["missing"] == ["run.json", "same.png"] and found["left over"] == [".run.json.tmp"]


def test_every_command_of_the_benchmark_exists(faults, tmp_path):
    for command in faults.commands(tmp_path, 8000):
        words = command.words.split()
        if words[0].endswith(".py"):
            assert os.path.isfile(words[0])
        else:
            assert importlib.util.find_spec(f"trace_vlm.{words[0]}")
