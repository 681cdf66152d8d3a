"""Reading, checking and mixing: images a second against a plain PIL loop, and memory on sets of the published sizes.

    python benchmarks/sources.py check                       # check against `for name: Image.open(name).load()`
    python benchmarks/sources.py read --samples 700000       # RoboPoint's layout, about 0.8 GB of JSON, converted
    python benchmarks/sources.py mix                         # 200,000 samples of 400,000, chosen and written
    python benchmarks/sources.py lvis                        # annotations as long as lvis_v1_train.json's

Everything is made in a temporary folder (--folder keeps it elsewhere) and removed. Memory is the peak of a process of
its own, as the system counts it. The loop and the check take turns (--rounds), because other work on the machine moves
both; the ratio is that of the medians, by the clock and by processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from trace_vlm.core.points import Point, format_points
from trace_vlm.core.prompts import question_text
from trace_vlm.core.reasoning import render
from trace_vlm.core.records import Sample, Turn, write_samples

LOOP = """
import sys
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    Image.open(path).load()
"""
# Runs a command and prints what it cost: (peak bytes of the largest process, seconds, processor seconds).
WATCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss * 1024, time.perf_counter() - start, used.ru_utime + used.ru_stime)
sys.stderr.write(done.stderr if done.returncode not in (0, 1) else "")
sys.exit(done.returncode)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "read", "mix", "lvis"))
    parser.add_argument("--images", type=int, default=2000, help="check: how many")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="check: width and height")
    parser.add_argument("--suffix", choices=("jpg", "png"), default="jpg", help="check: format")
    parser.add_argument("--rounds", type=int, default=3, help="check: turns of loop and check")
    parser.add_argument("--samples", type=int, default=400_000, help="read and mix: in the source; lvis: 4 an image")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, help="JSON of the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = {"check": _check, "read": _read, "mix": _mix, "lvis": _lvis}[args.what](Path(folder), args)
    result |= {"what": args.what, "cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
    print(json.dumps(result, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def watch(*command: str | Path) -> tuple[float, float, float]:
    """(peak bytes, seconds, processor seconds) of a command, which may end with 0 or 1."""
    words = [sys.executable, "-c", WATCH, sys.executable, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    peak, seconds, processor = map(float, done.stdout.split())
    return peak, seconds, processor


# --- check ----------------------------------------------------------------------------------------


def _check(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    images = folder / "images"
    _pictures(images, args.images, tuple(args.size), args.suffix)
    names = sorted(path.name for path in images.iterdir())
    write_samples(folder / "data.json", (_pointing(number, f"images/{name}") for number, name in enumerate(names)))
    check = ("-m", "trace_vlm.data.sources", "check", "--data", folder / "data.json")
    loops, checks = [], []
    for _ in range(args.rounds):
        loops.append(watch("-c", LOOP, images))
        checks.append(watch(*check))
    loop, ours = (_medians(runs) for runs in (loops, checks))
    return {
        "images": f"{args.images} {args.suffix} of {args.size[0]}x{args.size[1]}",
        "loop_images_a_second": round(args.images / loop[1], 1),
        "check_images_a_second": round(args.images / ours[1], 1),
        "ratio": round(loop[1] / ours[1], 2),
        "ratio_of_processor_seconds": round(loop[2] / ours[2], 2),
        "check_peak_mb": round(max(run[0] for run in checks) / 1e6),
    }


def _medians(runs: list[tuple[float, float, float]]) -> list[float]:
    return [statistics.median(values) for values in zip(*runs, strict=True)]


def _pictures(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """Blurred noise with some grain: about 70 kB as a JPEG of 640x480, like a photograph."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = []
    for number in range(min(count, 40)):
        noise = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        smooth = np.asarray(noise.filter(ImageFilter.GaussianBlur(6)), dtype=np.int16) * 4 - 384
        grain = rng.integers(-12, 12, smooth.shape)
        path = folder / f"{number:06d}.{suffix}"
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        contents.append(path.read_bytes())
    for number in range(len(contents), count):
        (folder / f"{number:06d}.{suffix}").write_bytes(contents[number % len(contents)])


# --- memory ---------------------------------------------------------------------------------------


def _read(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    data = folder / "robopoint_1432k.json"
    write_samples(data, _robopoint(args.samples))
    convert = (
        "-m",
        "trace_vlm.data.sources",
        "convert",
        "--kind",
        "robopoint",
        "--path",
        data,
        "--check-images",
        "ignore",
    )
    peak, seconds, _ = watch(*convert, "--out", folder / "out.json")
    return _cost(data, args.samples, peak, seconds)


def _mix(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    write_samples(folder / "robopoint_1432k.json", _robopoint(args.samples // 2))
    write_samples(folder / "cor.json", (_pointing(n, f"{_part(n)}/{n}.png", True) for n in range(args.samples // 2)))
    share = args.samples // 8
    entries = [
        ("object_ref", "trace", "cor.json", "[object_reference]", "cor: true"),
        ("region_ref", "trace", "cor.json", "[free_space]", "cor: true"),
        ("robopoint", "robopoint", "robopoint_1432k.json", "[object_reference, free_space]", "cor: false"),
        ("vqa", "robopoint", "robopoint_1432k.json", "[vqa, text]", "cor: false"),
    ]
    lines = [
        f"- {{name: {name}, kind: {kind}, path: {path}, part: {part}, {cor}, samples: {share}}}"
        for name, kind, path, part, cor in entries
    ]
    (folder / "recipe.yaml").write_text("sources:\n" + "\n".join(lines) + "\n")
    command = ("-m", "trace_vlm.data.mix", "--config", folder / "recipe.yaml", "--data-root", folder)
    peak, seconds, _ = watch(*command, "--out", folder / "out.json", "--check-images", "ignore", "--cor-share", "50")
    return {**_cost(folder / "robopoint_1432k.json", args.samples, peak, seconds), "mixed": 4 * share}


def _lvis(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Annotations with outlines about as long as LVIS's: as many, 1.27 million of 100,000 images, by default."""
    data = folder / "lvis_v1_train.json"
    rng = random.Random(0)
    images = args.samples // 4
    count = 127 * images // 10
    outlines = [[round(rng.random() * 400, 2) for _ in range(80)] for _ in range(50)]
    with open(data, "w") as file:
        file.write('{"info": {}, "annotations": [')
        for number in range(count):
            record = {
                "area": 100.5,
                "id": number,
                "segmentation": [outlines[number % 50]],
                "image_id": rng.randrange(images),
                "bbox": [1.5, 2.5, 100.25, 80.75],
                "category_id": rng.randrange(1203),
            }
            file.write((", " if number else "") + json.dumps(record))
        address = "http://images.cocodataset.org/train2017"
        pictures = [
            {"id": number, "width": 640, "height": 480, "coco_url": f"{address}/{number:012d}.jpg"}
            for number in range(images)
        ]
        names = [{"id": number, "name": f"thing_{number}"} for number in range(1203)]
        file.write(f'], "categories": {json.dumps(names)}, "images": {json.dumps(pictures)}, "licenses": []}}')
    convert = ("-m", "trace_vlm.data.sources", "convert", "--kind", "lvis", "--path", data, "--check-images", "ignore")
    peak, seconds, _ = watch(*convert, "--out", folder / "out.json")
    return _cost(data, images, peak, seconds)


def _cost(data: Path, samples: int, peak: float, seconds: float) -> dict[str, Any]:
    return {
        "samples": samples,
        "file_mb": round(data.stat().st_size / 1e6),
        "peak_mb": round(peak / 1e6),
        "seconds": round(seconds, 1),
        "samples_a_second": round(samples / seconds),
        "own_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _part(number: int) -> str:
    return ("object_ref", "region_ref")[number % 2]


def _robopoint(count: int) -> Iterator[Sample]:
    """RoboPoint's layout: half pointing with 10 to 50 points, half visual questions of which several share an id."""
    rng = random.Random(0)
    for number in range(count):
        if number % 2:
            yield _pointing(number // 2, f"{_part(number // 2)}/{number}_cam05.png", points=rng.randint(10, 50))
        else:
            turns = [Turn("human", "<image>\nWhat is in the picture?"), Turn("gpt", "A table. " * rng.randint(1, 60))]
            name = f"{number // 6:012d}"
            yield Sample(name, f"coco/train2017/{name}.jpg", tuple(turns))


def _pointing(number: int, image: str, reasoning: bool = False, points: int = 4) -> Sample:
    rng = random.Random(number)
    found = [Point(round(rng.random(), 3), round(rng.random(), 3)) for _ in range(points)]
    steps = dict.fromkeys(("reference", "target", "subtype"), "The table in front of the mug is seen from here. " * 3)
    asked = question_text("Pinpoint several points within the vacant space left of the mug.", reasoning)
    answer = render(steps, found) if reasoning else format_points(found)
    identifier = f"{_part(number)}/{number}_left"
    return Sample(identifier, image, (Turn("human", f"<image>\n{asked}"), Turn("gpt", answer)))


if __name__ == "__main__":
    raise SystemExit(main())
