"""Loading and converting hold the weights once: the peak of a process of its own, on a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoints_by_hand import Shape, llava_config, write_bin_shards, write_clip, write_tokenizer
from checkpoints_by_hand import draw as draw_weights

SHAPE = Shape(width=1024, mlp=2816, layers=12, heads=8, groups=8, vision=64, vision_heads=4)
SCRIPT = """
import json, re, sys
from pathlib import Path
from trace_vlm.model.checkpoint import load
from trace_vlm.model.convert import convert
def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
work, warm, source, target = sys.argv[1:]
run = (lambda folder, to: convert(folder, to)) if work == "convert" else (lambda folder, to: load(folder, dtype=work))
run(warm, target + "-warm")  # a tiny one first: libraries, caches and buffers are in place
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
made = run(source, target)
print(json.dumps(memory("VmHWM") - before))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, recorded):
    """(bytes, folder of a model of 330 MB in .bin shards, folder of a tiny one)."""
    folder = tmp_path_factory.mktemp("big")
    text, tower = draw_weights(SHAPE, 3, torch.float16, linear=True)
    inside = {f"model.vision_tower.vision_tower.{name}": one for name, one in tower.items()}
    whole = {name: one for name, one in {**text, **inside}.items() if not name.endswith("inv_freq")}
    (folder / "big").mkdir()
    write_bin_shards(folder / "big", whole, 2)
    (folder / "big" / "config.json").write_text(json.dumps(llava_config(SHAPE, "../eyes", linear=True)))
    write_tokenizer(folder / "big", recorded.folder / "tokenizer", legacy=False)
    write_clip(folder / "eyes", SHAPE, tower)
    return sum(one.nbytes for one in whole.values()), folder / "big", recorded.folder / "full"


@pytest.mark.parametrize(("work", "wide"), [("float16", 1), ("float32", 2), ("convert", 1)])
def test_the_peak_is_at_most_1_15_times_the_weights(folders, tmp_path, work, wide):
    size, big, tiny = folders
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, work, str(tiny), str(big), str(tmp_path / "made")],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    assert peak <= 1.15 * wide * size, f"{peak / size:.3f} times the files"
    if work == "convert":  # from file to file: not even once
        assert peak <= 0.5 * size, f"{peak / size:.3f} times the files"
