"""Check, convert and download training data.

    python -m trace.data.sources check --data train.json --images IMAGES
    python -m trace.data.sources convert --kind points --path my_points.csv --images IMAGES --out train.json
    python -m trace.data.sources download --repo wentao-yuan/robopoint-data --out datasets/robopoint

docs/data.md describes the kinds of sources.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from ...core.records import Sample, read_records, write_samples
from ...utils.command import InputError, Parser, check_at_least, existing_file, existing_folder, run
from .check import check_set, draw_samples
from .hub import download
from .registry import KINDS, Source
from .sample_checks import ImageCheck, logged_problems, part_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Check, convert and download training data.", examples=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, help: str) -> Callable[..., argparse.Action]:
        return commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.").add_argument

    add = command("check", "verify a whole training set on all cores; exit code 1 if samples have problems")
    add("--data", type=Path, required=True, help="training file (LLaVA's JSON or JSONL)")
    add("--images", type=Path, help="folder of the pictures (default: the file's folder)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    add(
        "--report",
        type=Path,
        help="JSONL file of the findings (default: DATA.check.jsonl); a .png beside it shows samples",
    )
    add("--out", type=Path, help="also write the samples without problems to this file")
    add("--strict", action="store_true", help="stop at the first problem")
    add = command("convert", "write the usable samples of a source of any kind as one JSON file")
    add("--kind", choices=KINDS, required=True, help="what the source is (see docs/data.md)")
    add("--path", type=Path, required=True, help="its file, folder or zip; for hub also OWNER/NAME")
    add("--images", type=Path, help="folder of the pictures (default: the file's folder)")
    add("--out", type=Path, required=True, help="JSON file to write; problems go to OUT.problems.jsonl")
    add("--check-images", choices=get_args(ImageCheck), default="exist", help="what is required of images")
    add("--limit", type=int, help="only the first LIMIT samples")
    add("--max-turns", type=int, default=5, help="lvis: categories asked of one image")
    add("--seed", type=int, default=0, help="lvis: seed of the categories and the wording")
    add("--unpack-to", type=Path, help="folder for a zip's files (default: beside it, by its name)")
    add("--strict", action="store_true", help="stop at the first problem")
    add = command("download", "fetch a data set of the Hugging Face Hub; files that exist are not fetched again")
    add("--repo", required=True, help="OWNER/NAME, for example wentao-yuan/robopoint-data")
    add("--out", type=Path, required=True, help="folder to write")
    add("--revision", help="branch, tag or commit, for a result that can be repeated")
    add("--include", nargs="+", default=[], help='only files like these, for example "*.json"')
    args = parser.parse_args(argv)
    return {"check": _check, "convert": _convert, "download": _download}[args.command](args)


def _check(args: argparse.Namespace) -> int:
    data = existing_file(args.data, "the training file")
    folder = existing_folder(args.images or data.parent, "the image folder")
    check_at_least(args, workers=1)
    report = args.report or data.with_name(data.name + ".check.jsonl")
    summary = check_set(data, folder, report, args.workers, args.strict)
    total = sum(summary.counts.parts.values()) + summary.problems.counts["record"]
    if not total:
        raise InputError(f"{data} holds no samples")
    print(f"{data}: {total:,} samples, {len(summary.bad):,} with problems")
    counts = summary.counts
    for part, count in counts.parts.most_common():
        print(f"  {part:<18} {count:>9,}")
    sizes = ""
    if counts.sizes:
        (most, count), decoded = counts.sizes.most_common(1)[0], sum(counts.sizes.values())
        ordered = sorted(counts.sizes, key=lambda size: math.prod(map(int, size.split("x"))))
        sizes = f"  {ordered[0]} to {ordered[-1]}, most often {most} ({100 * count / decoded:.0f} %)"
    if len(counts.sizes) == 1:
        sizes = f"  all {most}"
    print(f"  images decoded     {sum(counts.sizes.values()):>9,}{sizes}")
    if counts.masks:
        print(f"  masks compared     {counts.masks:>9,}")
    if summary.bad:
        print("\n".join(["problems:", *summary.problems.table()]))
    print(f"details: {report}")
    sheet = report.with_suffix(".png")
    if draw_samples(data, folder, summary.bad, total, sheet):
        print(f"look at {sheet}")
    if args.out is not None:
        records = (pair for position, pair in enumerate(read_records(data)) if position not in summary.bad)
        write_samples(args.out, (Sample.from_json(record, where) for where, record in records))
        print(f"{args.out}: {total - len(summary.bad):,} of {total:,} samples")
    return 1 if summary.bad else 0


def _convert(args: argparse.Namespace) -> int:
    check_at_least(args, limit=1, max_turns=1, seed=0)
    if args.unpack_to is not None and args.path.suffix.lower() != ".zip":
        raise InputError(f"--unpack-to is for a zip, and {args.path} is none")
    source = Source(args.kind, args.path, args.images, args.max_turns, args.seed, args.unpack_to).open()
    source.refuse_output(args.out)
    parts: Counter[str] = Counter()
    with logged_problems(args.out, args.strict) as problems:

        def counted() -> Iterator[Sample]:
            samples = islice(source.usable_samples(problems, args.check_images), args.limit)
            for sample in tqdm(samples, desc="convert", unit=" samples", mininterval=0.5):
                parts[part_of(sample)] += 1
                yield sample
            if not parts:
                raise InputError("\n".join([f"no sample of {args.path} could be used", *problems.table()]))

        write_samples(args.out, counted())
    if source.files:
        print(f"read {', '.join(map(str, source.files))}")
    left_out = problems.counts.total()
    written = f"{sum(parts.values()):,} samples, {left_out:,} left out"
    print(f"{args.out}: {written}; images are relative to {source.images.folder}")
    for part, count in parts.most_common():
        print(f"  {part:<18} {count:>9,}")
    problems.print_left_out(args.out)
    return 0


def _download(args: argparse.Namespace) -> int:
    folder = download(args.repo, args.out, args.revision, args.include)
    count = sum(path.is_file() and ".cache" not in path.parts for path in folder.rglob("*"))
    print(f"{folder}: {count:,} files of {args.repo}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
