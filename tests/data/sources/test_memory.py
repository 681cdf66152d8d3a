"""Sets of any length are read in little memory: the peak of a process of its own, on a file far larger than allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import sources_by_hand as hand

MEGABYTE = 1 << 20
PEAK = """
import sys
from trace_vlm.utils.command import run
from {module} import main
code = run(main, sys.argv[1:])
# Of this program alone: getrusage would also count the process that it was started from.
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak(module: str, flags: str) -> int:
    """Bytes of the largest resident set while the command ran."""
    command = [sys.executable, "-c", PEAK.format(module=module), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[1]) * 1024


def long_set(path: Path, count: int, length: int = 0) -> int:
    """RoboPoint's file with `count` samples whose questions have `length` characters more; its size in bytes."""
    asked, answer = "Find space." + "x" * length, "[(0.461, 0.527)]"
    template = json.dumps(hand.record("region_ref/NUMBER_left", "region_ref/NUMBER.png", asked, answer))
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(("[\n" if number == 0 else ",\n") + template.replace("NUMBER", str(number)))
        file.write("\n]")
    return path.stat().st_size


def test_a_file_of_300_mb_is_converted_in_less_than_100_mb(tmp_path: Path) -> None:
    path, out = tmp_path / "robopoint_1432k.json", tmp_path / "out.json"
    size = long_set(path, 5_000, 65_000)
    assert size > 300 * MEGABYTE
    flags = f"convert --kind robopoint --path {path} --out {out} --check-images ignore"
    assert peak("trace_vlm.data.sources.__main__", flags) < 100 * MEGABYTE
    assert out.stat().st_size > 300 * MEGABYTE


def test_a_mix_grows_with_what_it_takes_and_not_with_its_sources(tmp_path: Path) -> None:
    long_set(tmp_path / "robopoint_1432k.json", 4_000, 50_000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sources: [{name: a, kind: robopoint, path: robopoint_1432k.json, samples: 500}]")
    flags = f"--config {recipe} --data-root {tmp_path} --out {tmp_path}/out.json --check-images ignore"
    assert peak("trace_vlm.data.mix", flags) < 100 * MEGABYTE


def test_long_annotations_are_streamed(tmp_path: Path) -> None:
    """LVIS's outlines make most of its file; none of them is kept."""
    path = hand.lvis(tmp_path)
    whole = json.loads(path.read_text())
    outline = '["' + "12.34 " * 100_000 + '"]'
    long = [{**whole["annotations"][-1], "id": number, "segmentation": "OUTLINE"} for number in range(200)]
    whole["annotations"] += long
    path.write_text(json.dumps(whole).replace('"OUTLINE"', outline))
    assert path.stat().st_size > 110 * MEGABYTE
    flags = f"convert --kind lvis --path {path} --out {tmp_path}/out.json --check-images ignore"
    assert peak("trace_vlm.data.sources.__main__", flags) < 100 * MEGABYTE
