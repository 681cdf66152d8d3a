"""Generate a data set of procedural tabletop scenes: images, questions, exact ground-truth masks.

    python -m trace.data.scenes.generate --out DATA --scenes 2000 --views 4 --seed 0 --workers 2 --size 336
    python -m trace.data.scenes.generate --out BENCH --scenes 200 --size 640x480 --benchmark

The result depends on the seed and the configuration, not on the number of workers or shards (`--shard i/n`, on one
machine or several, in a common folder or in folders copied into one; then `--out DATA --merge`). A killed run continues
with the same command.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.command import (
    Incomplete,
    InputError,
    Parser,
    check_at_least,
    existing_folder,
    install_hint,
    output_folder,
    package_versions,
    run,
)

if TYPE_CHECKING:
    from .config import DatasetSpec
    from .dataset_files import FinishedScenes, Shard

PARTIAL = "generate.partial.json"
SHOWN = 8  # missing scenes that a message names
GL = ("egl", "osmesa", "glfw")  # what MuJoCo knows; the last needs a display
SYSTEM_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse_arguments(argv)
    if args.merge:
        merge_shards(args.out)
        return 0
    from .config import as_dict, load_scene_config
    from .dataset_files import FinishedScenes, Shard
    from .objects.assets import asset_licences

    config = load_scene_config(args.config)
    shard = Shard.parse(args.shard)
    sizes = parse_sizes(args.size)
    # Everything the data depend on, as generate.json records it.
    settings = {
        "scenes": args.scenes, "views": args.views, "seed": args.seed, "sizes": [list(size) for size in sizes],
        "benchmark": args.benchmark, "config": as_dict(config),
    }  # fmt: skip
    if meshes := asset_licences(config.objects.assets):
        settings["meshes"] = meshes
    out = output_folder(args.out)
    if is_finished(out, settings):
        _remove_partial_files(out)
        print(f"{out} is complete already, with the same configuration: nothing to do")
        return 0
    require_renderer()
    from .config import DatasetSpec

    spec = DatasetSpec(out, config, sizes, args.views, args.seed, args.benchmark)
    timing = _render_scenes(spec, args.scenes, shard, args.workers, settings)
    if shard.count > 1:
        print(f"shard {args.shard} is complete; when all are: python -m trace.data.scenes.generate --out {out} --merge")
    else:
        finish_dataset(FinishedScenes(out, args.scenes), settings, timing)
    return 0


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Generate procedural tabletop scenes.", examples=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes")
    parser.add_argument("--views", type=int, default=1, help="pictures of each scene")
    parser.add_argument("--seed", type=int, default=0, help="every random choice follows from it")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--size", default="336", help="side in pixels or WIDTHxHEIGHT; several take turns: A,B")
    parser.add_argument("--config", type=Path, help="YAML configuration; without it the built-in values")
    parser.add_argument("--benchmark", action="store_true", help="write a held-out benchmark in Where2Place's layout")
    parser.add_argument("--shard", default="1/1", help="i/n: only the i-th of n shares, for job arrays")
    parser.add_argument("--merge", action="store_true", help="join the finished shards in --out")
    args = parser.parse_args(argv)
    check_at_least(args, scenes=1, views=1, workers=1, seed=0)
    return args


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "640x480,336" as (width, height) of each."""
    sizes = []
    for size in text.lower().split(","):
        sides = size.strip().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and 32 <= int(side) <= 4096 for side in sides):
            raise InputError(f"--size must be N or WIDTHxHEIGHT (or several: A,B), sides from 32 to 4096, not {text!r}")
        sizes.append((int(sides[0]), int(sides[-1])))
    return tuple(sizes)


def is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder is complete; InputError if it was begun with other settings."""
    for name in ("generate.json", PARTIAL):
        if (out / name).exists():
            if difference := _first_difference(read_settings(out / name), settings):
                raise InputError(f"{out} has another configuration: {difference}. Give another --out or remove it")
            return name == "generate.json"
    return False


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in generate.json or its unfinished form; InputError if something else wrote it."""
    from ...utils.files import read_json

    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise InputError(f"{path} was not written by this command. Give another --out")
    return record["settings"]


def _first_difference(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str | None:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            return _first_difference(old, new, f"{prefix}{key}.")
        if old != new:
            return f"{prefix}{key} was {old}, now {new}"
    return None


def require_renderer() -> None:
    """Raise an InputError with the packages to install if no picture can be rendered on this machine."""
    backend = os.environ.get("MUJOCO_GL", "egl")
    if backend not in GL:
        raise InputError(f"the environment variable MUJOCO_GL is {backend!r}. Without a display use egl or osmesa")
    try:
        from .config import SceneConfig
        from .render import SceneRenderer

        SceneRenderer(SceneConfig(), ((32, 32),)).close()
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        raise InputError(f"generating scenes needs MuJoCo; install it with: {install_hint('scenes')}") from None
    except (ImportError, AttributeError, RuntimeError, OSError):
        # PyOpenGL reports a missing library in any of these ways, depending on which library is missing.
        raise InputError(
            f"no OpenGL library was found to render with; install it with: apt-get install {SYSTEM_PACKAGES} "
            "(or set MUJOCO_GL=osmesa where OSMesa is installed)"
        ) from None


def _render_scenes(
    spec: DatasetSpec, scenes: int, shard: Shard, workers: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Make the missing scenes of a shard on several processes; return the time it took."""
    from tqdm import tqdm

    from ...utils.files import JsonlWriter, write_json
    from ...utils.parallel import Pool, WorkerDied
    from .dataset_files import FinishedScenes

    for folder in ("images", "masks", "instances"):
        output_folder(spec.out / folder)
    if not (spec.out / PARTIAL).exists():
        write_json(spec.out / PARTIAL, {"settings": settings})
    numbers = shard.scenes(scenes)
    failed: dict[int, str] = {}
    with JsonlWriter(shard.file(spec.out)) as writer:
        missing = FinishedScenes(spec.out, scenes).missing(numbers)
        started = time.perf_counter()
        with (
            tqdm(total=len(numbers), initial=len(numbers) - len(missing), unit="scene", desc="scenes") as bar,
            Pool(min(workers, max(1, len(missing))), make_renderer, spec) as pool,
        ):
            for number, line in pool.in_order(missing):
                try:
                    writer.write(line.result())
                except WorkerDied as error:
                    failed[number] = str(error)
                bar.update()
    if failed:
        reasons = "; ".join(f"scene {number}: {reason}" for number, reason in islice(failed.items(), 5))
        raise Incomplete(
            f"{len(failed)} of {len(numbers)} scenes could not be made: {reasons}{', ...' * (len(failed) > 5)}. All "
            "others are done; the same command tries again what is missing"
        )
    seconds = time.perf_counter() - started
    speed = round(len(missing) * spec.views / seconds, 2) if missing else None
    seconds = round(seconds, 1)
    return {"scenes_rendered": len(missing), "seconds": seconds, "images_per_second": speed, "workers": workers}


def make_renderer(spec: DatasetSpec) -> Callable[[int], dict[str, Any]]:
    """What a worker process makes scenes with; it has a GL context of its own."""
    from .render import SceneRenderer
    from .scene import make_scene

    return partial(make_scene, spec, renderer=SceneRenderer(spec.config, spec.sizes))


def finish_dataset(scenes: FinishedScenes, settings: dict[str, Any], timing: dict[str, Any] | None) -> None:
    """Write the files of the complete data set, generate.json last, and print the summary."""
    from ...utils.config import build_config
    from ...utils.files import write_json
    from .config import QuestionsConfig
    from .dataset_files import format_summary, write_dataset

    questions = build_config(QuestionsConfig, settings["config"]["questions"], str(scenes.out))
    versions = package_versions("mujoco", "numpy", "scipy", "pillow")
    content = write_dataset(scenes, questions, settings["benchmark"])
    summary = {"settings": settings, "versions": versions, **content, "timing": timing}
    write_json(scenes.out / "generate.json", summary)
    _remove_partial_files(scenes.out)
    print(format_summary(summary))
    print(f"look at {scenes.out / 'contact_sheet.png'}")


def merge_shards(out: Path) -> None:
    """Turn the shards of a data set into the data set. InputError while a scene is missing or a shard is running."""
    from tqdm import tqdm

    from ...utils.files import JsonlWriter
    from .dataset_files import FinishedScenes, part_files

    if (existing_folder(out, "the folder of the data set") / "generate.json").exists():
        print(f"{out} is complete already: nothing to merge")
        return
    if not (out / PARTIAL).exists():
        raise InputError(f"{out} holds no shards. Start trace.data.scenes.generate --out {out} --shard i/n first")
    settings = read_settings(out / PARTIAL)
    for path in part_files(out):
        JsonlWriter(path).close()  # InputError while a shard holds its lock
    scenes, total = FinishedScenes(out, settings["scenes"]), settings["scenes"]
    missing = scenes.missing(tqdm(range(total), desc="checking", unit=" scenes", mininterval=0.5))
    if missing:
        numbers = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise InputError(
            f"{out} lacks {len(missing)} of {total} scenes (numbers {numbers}). Run the commands of its shards again, "
            "they make only what is missing; then merge"
        )
    finish_dataset(scenes, settings, None)


def _remove_partial_files(out: Path) -> None:
    from .dataset_files import part_files

    for path in (out / PARTIAL, *part_files(out)):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
