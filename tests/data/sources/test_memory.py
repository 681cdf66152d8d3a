"""Sets of any length are read in little memory: the peak of a process of its own, on a file far larger than allowed."""

import json
import subprocess
import sys

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


def peak(module, flags):
    command = [sys.executable, "-c", PEAK.format(module=module), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("peak ")[1]) * 1024


def test_long_files_are_converted_and_mixed_in_less_than_100_mb(tmp_path):
    path, out, recipe = (tmp_path / name for name in ("robopoint_1432k.json", "out.json", "recipe.yaml"))
    with open(path, "w", encoding="utf-8") as file:
        question, answer = "Find space." + "x" * 65_000, "[(0.461, 0.527)]"
        for number in range(2_000):
            record = hand.record(f"region_ref/{number}", f"region_ref/{number}.png", question, answer)
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(record))
        file.write("\n]")
    assert path.stat().st_size > 120 * MEGABYTE
    flags = f"convert --kind robopoint --path {path} --out {out} --check-images ignore"
    assert peak("trace_vlm.data.sources.__main__", flags) < 100 * MEGABYTE
    assert out.stat().st_size > 120 * MEGABYTE
    recipe.write_text("sources: [{name: a, kind: robopoint, path: robopoint_1432k.json, samples: 500}]")
    flags = f"--config {recipe} --data-root {tmp_path} --out {tmp_path}/mixed.json --check-images ignore"
    assert peak("trace_vlm.data.mix", flags) < 100 * MEGABYTE


def test_long_annotations_are_streamed(tmp_path):
    """LVIS's outlines make most of its file; none of them is kept."""
    path = hand.lvis(tmp_path)
    content = json.loads(path.read_text())
    outline = '["' + "12.34 " * 100_000 + '"]'
    last = content["annotations"][-1]
    content["annotations"] += [{**last, "id": number, "segmentation": "OUTLINE"} for number in range(200)]
    path.write_text(json.dumps(content).replace('"OUTLINE"', outline))
    assert path.stat().st_size > 110 * MEGABYTE
    flags = f"convert --kind lvis --path {path} --out {tmp_path}/out.json --check-images ignore"
    assert peak("trace_vlm.data.sources.__main__", flags) < 100 * MEGABYTE
