"""Generate a data set of procedural tabletop scenes: images, questions, exact ground-truth masks.

    python -m trace.data.scenes.generate --out DATA --scenes 2000 --views 4 --seed 0 --workers 2 --size 336
    python -m trace.data.scenes.generate --out BENCH --scenes 200 --size 640x480 --benchmark
    python -m trace.data.scenes.generate --out DATA --scenes 20000 --views 4 --shard $SLURM_ARRAY_TASK_ID/8
    python -m trace.data.scenes.merge --out DATA

Writes data.json (LLaVA's format; answers without reasoning), images/, masks/, instances/, views.jsonl, generate.json
and contact_sheet.png; with --benchmark a folder in Where2Place's layout instead of data.json. The result depends on
the seed and the configuration, not on the number of workers or shards. Killed, it continues with the same command; a
whole folder is left as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.command import Incomplete, InputError, Parser, install_hint, output_folder, package_versions, run

if TYPE_CHECKING:
    from .scene import Job
    from .shards import Parts, Shard

PARTIAL = "generate.partial.json"
GL = ("egl", "osmesa", "glfw")  # what MuJoCo knows; the last needs a display
SYSTEM_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"


def main(argv: Sequence[str] | None = None) -> int | None:
    args = _arguments(argv)
    from .config import load_config
    from .shards import Shard

    config = load_config(args.config)
    shard = Shard.parse(args.shard or "1/1")
    settings = _settings(args, config)
    out = output_folder(args.out)
    summary = finished(out, settings)
    if summary is not None:
        tidy(out)
        print(f"{out} is complete already, with the same configuration: nothing to do")
        return 0
    require_renderer()
    from .scene import Job

    job = Job(out, config, parse_sizes(args.size), args.views, args.seed, args.benchmark)
    timing = _render(job, args.scenes, shard, args.workers, settings)
    if shard.count > 1:
        print(f"shard {shard} is complete; when all are: python -m trace.data.scenes.merge --out {out}")
        return 0
    from .shards import Parts
    from .totals import report

    print(report(finish(job, Parts(out, args.scenes), settings, timing)))
    print(f"look at {out / 'contact_sheet.png'}")
    return 0


def _arguments(argv: Sequence[str] | None) -> Any:
    parser = Parser(prog="trace.data.scenes.generate", description="Generate procedural tabletop scenes.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes")
    parser.add_argument("--views", type=int, default=1, help="pictures of each scene")
    parser.add_argument("--seed", type=int, default=0, help="every random choice follows from it")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument(
        "--size",
        default="336",
        help="side of the pictures in pixels or WIDTHxHEIGHT; several take turns: A,B",
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML configuration (default: the built-in values)")
    parser.add_argument("--benchmark", action="store_true", help="write a held-out benchmark in Where2Place's layout")
    parser.add_argument("--shard", default=None, help="i/n: only the i-th of n shares, for job arrays")
    args = parser.parse_args(argv)
    for name in ("scenes", "views", "workers"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.seed < 0:
        raise InputError(f"--seed must not be negative, not {args.seed}")
    return args


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "640x480,336" as (width, height) of each."""
    sizes = []
    for size in text.lower().split(","):
        parts = size.strip().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and 32 <= int(part) <= 4096 for part in parts):
            raise InputError(
                f"--size must be N or WIDTHxHEIGHT (or several: A,B) with sides of 32 to 4096 pixels, not {text!r}"
            )
        sizes.append((int(parts[0]), int(parts[-1])))
    return tuple(sizes)


def _settings(args: Any, config: Any) -> dict[str, Any]:
    """Everything the data depends on, as it is recorded in generate.json."""
    from .config import as_dict
    from .objects.assets import asset_licences

    settings = {
        "scenes": args.scenes,
        "views": args.views,
        "seed": args.seed,
        "sizes": [list(size) for size in parse_sizes(args.size)],
        "benchmark": args.benchmark,
        "config": as_dict(config),
    }
    meshes = asset_licences(config.objects.assets)
    return settings | {"meshes": meshes} if meshes else settings


def finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a folder that is complete; InputError if the folder was begun with other settings."""
    for name in ("generate.json", PARTIAL):
        if (out / name).exists():
            record = read_record(out / name)
            difference = _difference(record["settings"], settings, "")
            if difference:
                raise InputError(
                    f"{out} was generated with another configuration: {difference}; "
                    "give another --out or remove the folder"
                )
            return record if name == "generate.json" else None
    return None


def read_record(path: Path) -> dict[str, Any]:
    """generate.json or its unfinished form; InputError if something else wrote it."""
    from ...core.records import read_json

    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise InputError(f"{path} was not written by this command; give another --out")
    return record


def _difference(before: dict[str, Any], now: dict[str, Any], prefix: str) -> str | None:
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found = _difference(old, new, f"{prefix}{key}.")
            if found:
                return found
        elif old != new:
            return f"{prefix}{key} was {old}, now {new}"
    return None


def require_renderer() -> None:
    """InputError with the packages to install when no picture can be rendered on this machine."""
    wanted = os.environ.get("MUJOCO_GL", "egl")
    if wanted not in GL:
        raise InputError(
            f"the environment variable MUJOCO_GL is {wanted!r}; without a display it must be egl or osmesa"
        )
    try:
        from .config import SceneConfig
        from .render import SceneRenderer

        SceneRenderer.from_config(SceneConfig(), ((32, 32),)).close()
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        raise InputError(f"generating scenes needs MuJoCo; install it with: {install_hint('scenes')}") from None
    except (ImportError, AttributeError, RuntimeError, OSError):
        # PyOpenGL reports a missing library in any of these ways, depending on which library is missing.
        raise InputError(
            "no OpenGL library was found to render with; install it with: "
            f"apt-get install {SYSTEM_PACKAGES} (or set MUJOCO_GL=osmesa where OSMesa is installed)"
        ) from None


def _render(job: Job, scenes: int, shard: Shard, workers: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Make what is missing of a shard; returns how long it took."""
    from ...core.records import JsonlWriter, write_json
    from .pool import run_scenes
    from .shards import Parts

    for folder in ("images", "masks", "instances"):
        output_folder(job.out / folder)
    if not (job.out / PARTIAL).exists():
        write_json(job.out / PARTIAL, {"settings": settings})
    mine = shard.scenes(scenes)
    with JsonlWriter(shard.file(job.out)) as writer:
        todo = Parts(job.out, scenes).unfinished(mine)
        started = time.perf_counter()
        failed = run_scenes(job, todo, workers, writer.write, total=len(mine))
    if failed:
        raise Incomplete(
            f"{len(failed)} of {len(mine)} scenes could not be made: "
            + "; ".join(f"scene {number}: {reason}" for number, reason in islice(failed.items(), 5))
            + (", ..." if len(failed) > 5 else "")
            + ". All others are done; the same command tries again what is missing"
        )
    seconds = time.perf_counter() - started
    return {
        "scenes_rendered": len(todo),
        "seconds": round(seconds, 1),
        "images_per_second": round(len(todo) * job.views / seconds, 2) if todo else None,
        "workers": workers,
    }


def finish(job: Job, parts: Parts, settings: dict[str, Any], timing: dict[str, Any] | None) -> dict[str, Any]:
    """Write the files of the whole data set from its scenes, generate.json last; returns the summary."""
    from ...core.records import write_json
    from .assemble import assemble

    versions = package_versions("mujoco", "numpy", "scipy", "pillow")
    summary = {"settings": settings, "versions": versions, **assemble(job, parts), "timing": timing}
    write_json(job.out / "generate.json", summary)
    tidy(job.out)
    return summary


def tidy(out: Path) -> None:
    """Remove what only an unfinished folder needs."""
    from .shards import part_files

    for path in (out / PARTIAL, *part_files(out)):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
