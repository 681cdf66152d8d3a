"""Turn the shards of a data set into the data set, once every scene is there.

    python -m trace.data.scenes.merge --out DATA

What `trace.data.scenes.generate --shard i/n` made, on one machine or several with a common folder (or with folders
copied into one: no two shards write a file of the same name). The result is what the same command without --shard
writes, to the byte. Nothing is written while a scene is missing, has a broken picture, or a shard is still running.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...utils.command import InputError, Parser, existing_folder, run

SHOWN = 8  # missing scenes that the message names


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = Parser(prog="trace.data.scenes.merge", description="Merge the shards of a generated data set.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the data set, as given to generate")
    args = parser.parse_args(argv)
    from .generate import PARTIAL, finish, read_record

    out = existing_folder(args.out, "the folder of the data set")
    if (out / "generate.json").exists():
        print(f"{out} is complete already: nothing to merge")
        return 0
    if not (out / PARTIAL).exists():
        raise InputError(f"{out} holds no shards: start trace.data.scenes.generate --out {out} --shard i/n first")
    settings = read_record(out / PARTIAL)["settings"]
    job = _job(out, settings)
    from .shards import Parts
    from .totals import report

    _nobody_writes(out)
    parts = Parts(out, settings["scenes"])
    _require_complete(parts, settings["scenes"])
    print(report(finish(job, parts, settings, None)))
    print(f"look at {out / 'contact_sheet.png'}")
    return 0


def _job(out: Path, settings: dict[str, Any]) -> Any:
    from ...utils.config import build_config
    from .config import SceneConfig
    from .scene import Job

    source = str(out)
    config = build_config(SceneConfig, settings["config"], source)
    sizes = tuple((width, height) for width, height in settings["sizes"])
    return Job(out, config, sizes, settings["views"], settings["seed"], settings["benchmark"])


def _nobody_writes(out: Path) -> None:
    """InputError while a shard is being written: its lock is held."""
    from ...core.records import JsonlWriter
    from .shards import part_files

    for path in part_files(out):
        JsonlWriter(path).close()


def _require_complete(parts: Any, total: int) -> None:
    from tqdm import tqdm

    missing = parts.unfinished(tqdm(range(total), desc="checking", unit=" scenes", mininterval=0.5))
    if missing:
        named = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise InputError(
            f"{parts.out} lacks {len(missing)} of {total} scenes (numbers {named}): run the commands of its shards "
            "again, they make only what is missing; then merge"
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
