"""Loading and converting hold the weights once: the peak of a process of its own, on a small model."""

import json
import subprocess
import sys

import checkpoints_by_hand as hand
import torch

SHAPE = hand.Shape(width=1024, mlp=2816, layers=12, heads=8, groups=8, vision=64, vision_heads=4)
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


def test_loading_holds_the_weights_once_and_converting_not_at_all(recorded, tmp_path):
    """A model of 330 MB in .bin shards; the small one is there to warm up."""
    big, command = tmp_path / "big", [sys.executable, "-c", SCRIPT, str(recorded.folder / "full")]
    text, tower = hand.draw_tensors(SHAPE, 3, torch.float16, linear=True)
    tensors = {name: one for name, one in (text | hand.inside_names(tower)).items() if not name.endswith("inv_freq")}
    hand.write_tokenizer(big, recorded.folder / "tokenizer", legacy=False)
    hand.write_shards(big, sorted(tensors), tensors, 2, "bin")
    (big / "config.json").write_text(json.dumps(hand.llava_config(SHAPE, "../eyes", linear=True)))
    hand.write_clip(tmp_path / "eyes", SHAPE, tower)
    done = subprocess.run([*command, big, tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    size = sum(tensor.nbytes for tensor in tensors.values())
    peaks = {work: peak / size for work, peak in json.loads(done.stdout.splitlines()[-1]).items()}
    assert 0.9 < peaks["float16"] <= 1.15 and 1.8 < peaks["float32"] <= 2 * 1.15 and peaks["convert"] <= 0.5
