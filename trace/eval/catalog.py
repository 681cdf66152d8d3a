"""The benchmarks by name: where each is looked for, how it is had, and how published files become a folder.

    python -m trace.eval.catalog      # the names, what is here, and the commands to get the rest
    python -m trace.eval.catalog where2place --from DOWNLOADED.parquet --out datasets/where2place
    python -m trace.eval.catalog roborefit --from final_dataset/testA --out datasets/roborefit [--ids FILE]

A name is looked for under $TRACE_DATASETS, datasets/ and data_samples/, in the current folder and in the repository.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.command import InputError, Parser, run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Known:
    """A benchmark by name: its folder under datasets/, what it is, and the commands that fetch it ("": it is here)."""

    folder: str
    what: str
    get: str


_REFSPATIAL = (
    "hf download BAAI/RefSpatial-Bench --repo-type dataset --local-dir datasets/downloads/refspatial && "
    "python -m trace.eval.catalog refspatial-{part} --from datasets/downloads/refspatial/data/{part}-*.parquet "
    "--out datasets/refspatial/{part}"
)
KNOWN = {
    "where2place": Known(
        "where2place",
        "Where2Place: 100 images, free space and objects; category unseen is its hard part",
        "hf download wentao-yuan/where2place --repo-type dataset --local-dir datasets/where2place",
    ),
    "roborefit": Known(
        "roborefit",
        "RoboRefIt as RoboPoint scores it: points inside the object's mask, 750 images",
        "gdown 1pdGF1HaU_UiKfh5Z618hy3nRjVbq_VuW -O datasets/downloads/roborefit.zip && "
        "unzip datasets/downloads/roborefit.zip -d datasets/downloads && python -m trace.eval.catalog roborefit "
        "--from datasets/downloads/final_dataset/testA --out datasets/roborefit",
    ),
    **{
        f"refspatial-{part}": Known(
            f"refspatial/{part}", f"RefSpatial-Bench, {part}: {count} questions", _REFSPATIAL.format(part=part)
        )
        for part, count in (("location", 100), ("placement", 100), ("unseen", 77))
    },
    "tabletop": Known("tabletop", "TableTop: rendered tables with exact masks, ships with the repository", ""),
}


def locate(name: str | Path) -> Path:
    """The folder of a benchmark given by name, folder or parquet file (unpacked beside itself, once).

    Raises:
        InputError: a known name that is not here (the message says how to get it), or a broken file.
    """
    path = Path(name)
    if path.suffix == ".parquet":
        from .importing import unpacked

        return unpacked(path)
    if path.exists() or str(name) not in KNOWN:
        return path
    known = KNOWN[str(name)]
    for root in _roots():
        if (root / known.folder / "point_questions.jsonl").is_file():
            return root / known.folder
    how = f"get it with: {known.get}" if known.get else "a clone of the repository has it in data_samples/"
    raise InputError(f"the benchmark {name} is not here (looked in {', '.join(map(str, _roots()))}); {how}")


def _roots() -> list[Path]:
    own = [Path(os.environ["TRACE_DATASETS"])] if os.environ.get("TRACE_DATASETS") else []
    return [*own, *dict.fromkeys(root / part for root in (Path.cwd(), ROOT) for part in ("datasets", "data_samples"))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="catalog", description="The benchmarks by name, and how to get them.")
    parser.add_argument("name", nargs="?", choices=list(KNOWN), help="the one to make a folder of")
    parser.add_argument("--from", dest="source", type=Path, nargs="+", help="what was downloaded: parquet or a folder")
    parser.add_argument("--out", type=Path, help="the folder to write")
    parser.add_argument("--ids", type=Path, help="RoboRefIt: the questions to take, a JSON list or one id a line")
    parser.add_argument("--count", type=int, default=750, help="RoboRefIt: questions to draw where no --ids are given")
    parser.add_argument("--seed", type=int, default=0, help="RoboRefIt: of that draw")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.seed < 0:
        raise InputError(f"--count {arguments.count} must be at least 1 and --seed {arguments.seed} at least 0")
    if arguments.name is None:
        print(overview())
        return 0
    if arguments.source is None or arguments.out is None:
        raise InputError(f"to make a folder of {arguments.name}, say --from what and --out where")
    from .importing import from_parquet, from_roborefit

    if arguments.name == "roborefit":
        if len(arguments.source) != 1:
            raise InputError("RoboRefIt is made from one folder: give --from final_dataset/testA")
        count = from_roborefit(arguments.source[0], arguments.out, arguments.ids, arguments.count, arguments.seed)
    else:
        count = from_parquet(arguments.source, arguments.out, arguments.name)
    print(f"{arguments.out}: {count} questions")
    return 0


def overview() -> str:
    lines = []
    for name, known in KNOWN.items():
        found = [root / known.folder for root in _roots() if (root / known.folder / "point_questions.jsonl").is_file()]
        lines += [
            f"{name}: {known.what}",
            f"  {found[0] if found else 'not here. ' + (known.get or 'clone the repository')}",
        ]
    return "\n".join([*lines, "", "Any folder with images/, masks/ and point_questions.jsonl is a benchmark too."])


if __name__ == "__main__":
    raise SystemExit(run(main))
