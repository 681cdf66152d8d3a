"""Generate a data set of procedural tabletop scenes: images, questions, exact ground-truth masks.

    python -m trace.data.scenes.generate --config configs/scenes/nano.yaml --size 128 --out DATA --scenes 7000
    python -m trace.data.scenes.generate --config configs/scenes/nano.yaml --size 128 --out B --scenes 200 --benchmark

Writes data.json (LLaVA's format; answers without reasoning), images/, masks/, instances/, views.jsonl, generate.json
and contact_sheet.png; with --benchmark a folder in Where2Place's layout instead of data.json. The result depends on
the seed and the configuration, not on the number of workers. Killed, it continues with the same command; a whole
folder is left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...command import InputError, Parser, output_folder, run

if TYPE_CHECKING:
    from .scene import Job

PARTIAL, PARTS = "generate.partial.json", "parts.jsonl"
SYSTEM_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = Parser(prog="trace.data.scenes.generate", description="Generate procedural tabletop scenes.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes")
    parser.add_argument("--views", type=int, default=1, help="pictures of each scene")
    parser.add_argument("--seed", type=int, default=0, help="every random choice follows from it")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--size", default="336", help="side of the pictures in pixels, or WIDTHxHEIGHT")
    parser.add_argument("--config", type=Path, default=None, help="YAML configuration (default: the built-in values)")
    parser.add_argument("--benchmark", action="store_true", help="write a held-out benchmark in Where2Place's layout")
    args = parser.parse_args(argv)
    for name in ("scenes", "views", "workers"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.seed < 0:
        raise InputError(f"--seed must not be negative, not {args.seed}")

    from .config import load_config

    settings = _settings(args, load_config(args.config))
    out = output_folder(args.out)
    summary = _finished(out, settings)
    if summary is not None:
        _tidy(out)
        print(f"{out} is complete already, with the same configuration: nothing to do")
        return 0
    _require_gl()
    from .scene import Job

    size = _size(args.size)
    job = Job(out, load_config(args.config), size, args.views, args.seed, args.benchmark)
    summary = _generate(job, args.scenes, args.workers, settings)
    print(_report(summary))
    print(f"look at {out / 'contact_sheet.png'}")
    return 0


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and 32 <= int(part) <= 4096 for part in parts):
        raise InputError(f"--size must be N or WIDTHxHEIGHT with sides of 32 to 4096 pixels, not {text!r}")
    return int(parts[0]), int(parts[-1])


def _settings(args: Any, config: Any) -> dict[str, Any]:
    """Everything the data depends on, as it is recorded in generate.json."""
    from .config import as_dict

    return {
        "scenes": args.scenes,
        "views": args.views,
        "seed": args.seed,
        "size": list(_size(args.size)),
        "benchmark": args.benchmark,
        "config": as_dict(config),
    }


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a folder that is complete; InputError if the folder was begun with other settings."""
    from ...records import read_json

    for name in ("generate.json", PARTIAL):
        path = out / name
        if path.exists():
            record = read_json(path)
            before = record.get("settings") if isinstance(record, dict) else None
            if not isinstance(before, dict):
                raise InputError(f"{path} was not written by this command; give another --out")
            difference = _difference(before, settings, "")
            if difference:
                raise InputError(
                    f"{out} was generated with another configuration: {difference}; "
                    "give another --out or remove the folder"
                )
            return record if name == "generate.json" else None
    return None


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


def _require_gl() -> None:
    """InputError with the packages to install when no picture can be rendered on this machine."""
    try:
        from .world import Studio

        Studio(1, (32, 32)).close()
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        raise InputError("generating scenes needs MuJoCo; install it with: pip install 'trace-vlm[scenes]'") from None
    except (ImportError, AttributeError, RuntimeError, OSError):
        # PyOpenGL reports a missing library in any of these ways, depending on which library is missing.
        raise InputError(
            "no OpenGL library was found to render with; install it with: "
            f"apt-get install {SYSTEM_PACKAGES} (or set MUJOCO_GL=osmesa where OSMesa is installed)"
        ) from None


def _generate(job: Job, scenes: int, workers: int, settings: dict[str, Any]) -> dict[str, Any]:
    from ...records import JsonlWriter, write_json
    from .assemble import Parts, assemble
    from .pool import run_scenes

    path = job.out / PARTS
    for folder in ("images", "masks", "instances"):
        output_folder(job.out / folder)
    write_json(job.out / PARTIAL, {"settings": settings})
    started = time.perf_counter()
    with JsonlWriter(path) as writer:
        done = _numbers(path)
        todo = [number for number in range(scenes) if number not in done]
        run_scenes(job, todo, workers, writer.write, total=scenes)
    seconds = time.perf_counter() - started
    summary = {"settings": settings, "versions": _versions(), **assemble(job, Parts(path))}
    summary["timing"] = {
        "scenes_rendered": len(todo),
        "seconds": round(seconds, 1),
        "images_per_second": round(len(todo) * job.views / seconds, 2) if todo else None,
        "workers": workers,
    }
    write_json(job.out / "generate.json", summary)
    _tidy(job.out)
    return summary


def _tidy(out: Path) -> None:
    """Remove what only an unfinished folder needs."""
    for name in (PARTIAL, PARTS):
        (out / name).unlink(missing_ok=True)


def _numbers(path: Path) -> set[int]:
    from ...records import read_jsonl

    return {record["scene"] for _, record in read_jsonl(path)}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("mujoco", "numpy", "scipy", "pillow")}


def _report(summary: dict[str, Any]) -> str:
    lines = [f"{summary['views']} images, {summary['samples']} questions"]
    lines += [f"  {name:24} {count:7}" for name, count in summary["counts"].items()]
    lines.append("drawn again, by reason")
    lines += [f"  {reason:60} {count:7}" for reason, count in summary["rejects"].items()]
    lines.append("point accuracy of shortcuts, percent")
    for kind, names in summary["shortcut_baselines"].items():
        lines.append(f"  {kind:12} " + ", ".join(f"{name} {value}" for name, value in names.items()))
    timing = summary["timing"]
    if timing["images_per_second"]:
        lines.append(
            f"{timing['seconds']} s, {timing['images_per_second']} images a second, {timing['workers']} worker(s)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(main))
