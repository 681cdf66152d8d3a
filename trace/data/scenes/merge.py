"""Turn the shards of a data set into the data set, once every scene is there.

    python -m trace.data.scenes.merge --out DATA

Shards are what `trace.data.scenes.generate --shard i/n` made, on one machine or several, in a common folder or in
folders copied into one (no two shards write a file of the same name). The result is, to the byte, what the same command
without --shard writes. Nothing is written while a scene is missing or broken, or a shard is still running.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...utils.command import InputError, Parser, existing_folder, run

SHOWN = 8  # missing scenes that the message names


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Merge the shards of a generated data set.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the data set, as given to generate")
    args = parser.parse_args(argv)
    from tqdm import tqdm

    from ...utils.files import JsonlWriter
    from .dataset_files import FinishedScenes, part_files
    from .generate import PARTIAL, finish_dataset, read_settings

    out = existing_folder(args.out, "the folder of the data set")
    if (out / "generate.json").exists():
        print(f"{out} is complete already: nothing to merge")
        return 0
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
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
