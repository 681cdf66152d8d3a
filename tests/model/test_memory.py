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
import ctypes, gc, json, re, sys
from pathlib import Path
from trace_vlm.model.checkpoint import load
from trace_vlm.model.convert import convert
def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
warm, source, target = sys.argv[1:]
def run(work, folder, to):
    return convert(folder, to) if work == "convert" else load(folder, dtype=work)
peaks = {}
for work in ("convert", "float16", "float32"):
    run(work, warm, target + "-warm-" + work)  # a tiny one first: libraries, caches and buffers are in place
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    made = run(work, source, target)
    peaks[work] = memory("VmHWM") - before
    del made
print(json.dumps(peaks))
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


@pytest.fixture(scope="module")
def peaks(folders, tmp_path_factory):
    """work -> bytes that it took at its peak, as a multiple of the files."""
    size, big, tiny = folders
    target = tmp_path_factory.mktemp("target") / "made"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny), str(big), str(target)],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {work: peak / size for work, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def test_loading_holds_the_weights_once(peaks):
    assert 0.9 < peaks["float16"] <= 1.15
    assert 1.8 < peaks["float32"] <= 2 * 1.15


def test_converting_does_not_hold_them_at_all(peaks):
    assert peaks["convert"] <= 0.5
