"""What generating scenes costs: samples and images a CPU-second, against the bare renderer on the same scenes.

    python benchmarks/scenes.py [--scenes 24] [--views 4] [--sizes 336,640x480] [--config configs/scenes/tabletop.yaml]
    python benchmarks/scenes.py --memory 400      # what a process holds while scenes are made, and while they are merged

The yardstick is MuJoCo's renderer alone: right after a scene was made, the pictures that were kept of it are rendered
once more (color and segmentation, nothing else, the scene already in place), in the same process and run. The ratio is
its time over the whole pipeline's: arrangements, physics, views that were turned down, geometry, questions, points,
PNG and disk. The target is 0.60. CPU seconds are those of the process; one thread renders.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from trace_vlm.data.scenes.config import DatasetSpec, QuestionsConfig, load_scene_config
from trace_vlm.data.scenes.dataset_files import FinishedScenes, write_dataset
from trace_vlm.data.scenes.generate import parse_sizes
from trace_vlm.data.scenes.render import SceneRenderer
from trace_vlm.data.scenes.scene import make_scene

TARGET = 0.60


class Remembering(SceneRenderer):
    """A renderer that remembers what was rendered in color: only pictures that are kept are."""

    def set_scene(self, *what: Any, **more: Any) -> None:
        self.arranged = (what, more)
        super().set_scene(*what, **more)

    def set_camera(self, *what: Any, **more: Any) -> None:
        self.looked = (what, more)
        super().set_camera(*what, **more)

    def color(self) -> Any:
        if not getattr(self, "again", False):
            self.kept.append((self.arranged, self.looked))
        return super().color()

    def replay(self) -> float:
        """Render what was kept once more; CPU seconds of the renderer alone."""
        seconds, self.again = 0.0, True
        for (arranged, more), (looked, details) in self.kept:
            super().set_scene(*arranged, **more)
            super().set_camera(*looked, **details)
            started = time.process_time()
            self.segment()
            super().color()
            seconds += time.process_time() - started
        self.again, self.kept = False, []
        return seconds

    kept: list[Any] = []


@dataclass
class Result:
    seconds: float = 0.0
    raw: float = 0.0
    images: int = 0
    views: int = 0
    samples: int = 0
    megabytes: float = 0.0
    rejects: Counter[str] = field(default_factory=Counter)


def measure(spec: DatasetSpec, scenes: int) -> Result:
    result = Result()
    for folder in ("images", "masks", "instances"):
        (spec.out / folder).mkdir(parents=True)
    with Remembering(spec.config, spec.sizes) as renderer:
        renderer.kept = []
        make_scene(spec, scenes, renderer)  # caches and lazy imports
        renderer.replay()
        for number in range(scenes):
            started = time.process_time()
            line = make_scene(spec, number, renderer)
            text = json.dumps(line)
            result.seconds += time.process_time() - started
            result.images += len(renderer.kept)
            result.raw += renderer.replay()
            result.views += len(line["views"])
            result.samples += len(line["samples"])
            result.rejects.update(line["rejects"])
            result.megabytes += len(text) / 2**20
    files = [path for path in spec.out.rglob("*") if path.is_file() and not path.name.startswith(f"{scenes:06d}_")]
    result.megabytes += sum(path.stat().st_size for path in files) / 2**20
    return result


def memory(scenes: int) -> None:
    """Print what a worker holds as it makes scenes, and the peak of a merge of few and of many."""
    with tempfile.TemporaryDirectory() as folder:
        spec = DatasetSpec(Path(folder), load_scene_config(None), ((160, 120),), 1, 0, False)
        for name in ("images", "masks", "instances"):
            (spec.out / name).mkdir()
        lines = []
        with SceneRenderer(spec.config, spec.sizes) as renderer:
            for number in range(scenes):
                line = make_scene(spec, number, renderer)
                lines = [*lines, line][:SAME]
                if number + 1 in {scenes // 8, scenes // 4, scenes // 2, scenes}:
                    print(f"worker, {number + 1} scenes made: {_resident():.0f} MB")
        for total in (scenes, 10 * scenes):
            with open(spec.out / "parts.jsonl", "w") as file:
                for number in range(total):
                    file.write(json.dumps({**lines[number % len(lines)], "scene": number}) + "\n")
            command = [sys.executable, __file__, "--merge", folder, "--scenes", str(total)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


SAME = 50  # scenes whose pictures stand for all when a merge is measured


def merge(folder: Path, scenes: int) -> None:
    """Assemble a folder and print the peak of this process, in a process of its own."""
    finished = FinishedScenes(folder, scenes)
    started = time.process_time()
    samples = write_dataset(finished, QuestionsConfig(), benchmark=False)["samples"]
    # Not getrusage: its peak begins with what the parent held when it made this process.
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
    print(f"merge, {scenes} scenes, {samples} samples: peak {peak:.0f} MB, {time.process_time() - started:.0f} CPU s")


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--sizes", default="336,640x480")
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0, help="scenes to make while looking at the memory")
    parser.add_argument("--merge", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merge:
        return merge(args.merge, args.scenes)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    if args.memory:
        return memory(args.memory)
    for size in parse_sizes(args.sizes):
        with tempfile.TemporaryDirectory() as folder:
            spec = DatasetSpec(Path(folder), load_scene_config(args.config), (size,), args.views, args.seed, False)
            result = measure(spec, args.scenes)
        ratio = result.raw / result.seconds
        seconds, samples = result.seconds, result.samples
        print(f"{size[0]}x{size[1]}: {result.views} views, {samples} samples in {seconds:.1f} CPU s")
        print(f"    {samples / seconds:.1f} samples and {result.views / seconds:.2f} images a CPU second")
        alone, whole = (1000 * part / result.images for part in (result.raw, seconds))
        print(f"    renderer alone {alone:.0f} ms an image, all {whole:.0f} ms")
        print(f"    ratio {ratio:.2f} (target {TARGET:.2f})")
        print(f"    {1000 * result.megabytes / samples:.0f} MB a thousand samples")
        drawn = sum(result.rejects.values())
        for reason, count in result.rejects.most_common():
            print(f"    {count / args.scenes:8.2f} a scene  {reason}")
        print(f"    {drawn / args.scenes:8.2f} a scene  in all")


if __name__ == "__main__":
    main()
