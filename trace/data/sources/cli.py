"""The commands `check`, `convert` and `download`: see the package's docstring for how they are typed."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ...core.images import Images, decoded_size
from ...core.records import Sample, write_samples
from ...utils.command import InputError, Parser, existing_file, existing_folder
from .check import Summary, check
from .problems import BROKEN, POINTS, RECORD, Problem, ProblemLog, Problems
from .registry import KINDS, Source, not_read, open_source, raw_records, sound_samples
from .sample_checks import late_problem, part_of, points_problem


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.data.sources", description="Check, convert and download training data.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add_check(commands)
    _add_convert(commands)
    _add_download(commands)
    args = parser.parse_args(argv)
    run = {"check": _check, "convert": _convert, "download": _download}[args.command]
    return run(args)


def _add_check(commands: argparse._SubParsersAction[Parser]) -> None:
    one = commands.add_parser(
        "check",
        help="verify a whole set: ids, turns, coordinates, images, masks",
        description="Verify a whole training set on all cores. Exit code 1 when samples have problems.",
    )
    one.add_argument("--data", type=Path, required=True, help="training file (LLaVA's JSON or JSONL)")
    one.add_argument("--image-folder", type=Path, help="what image names are relative to (default: the file's folder)")
    one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    one.add_argument("--report", type=Path, help="where findings are written (default: DATA.check.jsonl)")
    one.add_argument("--out", type=Path, help="also write the samples without problems to this file")
    one.add_argument("--strict", action="store_true", help="stop at the first problem")


def _add_convert(commands: argparse._SubParsersAction[Parser]) -> None:
    one = commands.add_parser(
        "convert",
        help="turn a source into LLaVA's JSON",
        description="Read a source of any kind and write its sound samples as one JSON file.",
    )
    one.add_argument("--kind", choices=tuple(KINDS), required=True, help="what the source is (see docs/data.md)")
    one.add_argument("--path", type=Path, required=True, help="its file, folder or zip; for hub also OWNER/NAME")
    one.add_argument("--image-folder", type=Path, help="where its images lie (default: beside the file)")
    one.add_argument("--out", type=Path, required=True, help="JSON file to write; problems go to OUT.problems.jsonl")
    one.add_argument("--images", choices=("exist", "decode", "ignore"), default="exist", help="what is asked of images")
    one.add_argument("--limit", type=int, help="stop after so many samples")
    one.add_argument("--max-turns", type=int, default=5, help="lvis: categories asked of one image")
    one.add_argument("--seed", type=int, default=0, help="lvis: of the categories and the wording")
    one.add_argument("--unpack-to", type=Path, help="folder for a zip's files (default: beside it, by its name)")
    one.add_argument("--strict", action="store_true", help="stop at the first problem")


def _add_download(commands: argparse._SubParsersAction[Parser]) -> None:
    one = commands.add_parser(
        "download",
        help="fetch a data set from the Hugging Face Hub as a folder",
        description="Fetch a data set's files; what is there already is not fetched again.",
    )
    one.add_argument("--repo", required=True, help="OWNER/NAME, for example wentao-yuan/robopoint-data")
    one.add_argument("--out", type=Path, required=True, help="folder to write")
    one.add_argument("--revision", help="branch, tag or commit, for a result that can be repeated")
    one.add_argument("--include", nargs="+", default=[], help='only files like these, for example "*.json"')


# --- check ----------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    data = existing_file(args.data, "the training file")
    folder = existing_folder(args.image_folder or data.parent, "the image folder")
    if args.workers < 1:
        raise InputError(f"--workers must be at least 1, not {args.workers}")
    report = args.report or data.with_name(data.name + ".check.jsonl")
    found = check(data, folder, report, args.workers, args.strict)
    total = _print_findings(found, data)
    print(f"details: {report}")
    if args.out is not None:
        kept = _write_sound(data, args.out, found.bad)
        print(f"{args.out}: {kept:,} of {total:,} samples")
    return 1 if found.bad else 0


def _print_findings(found: Summary, data: Path) -> int:
    total = sum(found.parts.values()) + found.problems.counts[RECORD]
    if not total:
        raise InputError(f"{data} holds no samples")
    print(f"{data}: {total:,} samples, {len(found.bad):,} with problems")
    for part, count in found.parts.most_common():
        print(f"  {part:<18} {count:>9,}")
    print(f"  images decoded     {sum(found.sizes.values()):>9,}{_sizes(found.sizes)}")
    if found.masks:
        print(f"  masks compared     {found.masks:>9,}")
    if found.bad:
        print("problems:")
        print("\n".join(found.problems.table()))
    return total


def _sizes(sizes: Counter[str]) -> str:
    if not sizes:
        return ""
    most, count = sizes.most_common(1)[0]
    if len(sizes) == 1:
        return f"  all {most}"
    sides = [tuple(map(int, size.split("x"))) for size in sizes]
    small, large = (pick(sides, key=lambda side: side[0] * side[1]) for pick in (min, max))
    share = 100 * count / sum(sizes.values())
    return f"  {small[0]}x{small[1]} to {large[0]}x{large[1]}, most often {most} ({share:.0f} %)"


def _write_sound(data: Path, out: Path, bad: set[int]) -> int:
    kept = 0

    def sound() -> Iterator[Sample]:
        nonlocal kept
        for place, (where, record) in enumerate(raw_records(data)):
            if place not in bad:
                kept += 1
                yield Sample.from_json(record, where)

    write_samples(out, sound())
    return kept


# --- convert and download -------------------------------------------------------------------------


def _convert(args: argparse.Namespace) -> int:
    for name, least in (("limit", 1), ("max_turns", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if args.unpack_to is not None and args.path.suffix.lower() != ".zip":
        raise InputError(f"--unpack-to is for a zip, and {args.path} is none")
    from tqdm import tqdm

    source = Source(args.kind, args.path, args.image_folder, args.max_turns, args.seed, args.unpack_to)
    opened = open_source(source)
    not_read(args.out, opened.files)
    parts: Counter[str] = Counter()
    with ProblemLog(args.out.with_name(args.out.name + ".problems.jsonl")) as log:
        problems = Problems(args.strict, log)
        samples = sound_samples(opened, problems, KINDS[args.kind].shared_ids)
        samples = _looked_at(samples, Images(opened.image_folder), problems, args.images)

        def counted() -> Iterator[Sample]:
            for sample in tqdm(islice(samples, args.limit), desc="convert", unit=" samples", mininterval=0.5):
                parts[part_of(sample)] += 1
                yield sample
            if not parts:
                raise InputError("\n".join([f"no sample of {args.path} could be used", *problems.table()]))

        write_samples(args.out, counted())
    if opened.files:
        print(f"read {', '.join(map(str, opened.files))}")
    written, left_out = sum(parts.values()), sum(problems.counts.values())
    print(f"{args.out}: {written:,} samples, {left_out:,} left out; images are relative to {opened.image_folder}")
    for part, count in parts.most_common():
        print(f"  {part:<18} {count:>9,}")
    if left_out:
        print(f"left out ({log.path}):")
        print("\n".join(problems.table()))
    return 0


def _looked_at(samples: Iterator[Sample], images: Images, problems: Problems, how: str) -> Iterator[Sample]:
    """The samples whose coordinates can be read and whose images exist, or decode, as `how` asks."""
    for sample in samples:
        if how == "ignore":
            trouble = points_problem(sample)
            found = (POINTS, trouble) if trouble else None
        else:
            found = late_problem(sample, images)
            if found is None and how == "decode" and sample.image is not None:
                path = images.find(sample.image)
                size = decoded_size(path) if path is not None else None
                found = (BROKEN, f"{sample.image}: {size}") if isinstance(size, str) else None
        if found is None:
            yield sample if how == "ignore" else _placed(sample, images)
        else:
            problems.report(Problem(sample.id, *found))


def _placed(sample: Sample, images: Images) -> Sample:
    """The sample with its image named relative to the folder, where it was found in the folder's `images/`."""
    path = None if sample.image is None else images.find(sample.image)
    if path is None or path == images.folder / str(sample.image) or not path.is_relative_to(images.folder):
        return sample
    return replace(sample, image=path.relative_to(images.folder).as_posix())


def _download(args: argparse.Namespace) -> int:
    from .hub import download

    folder = download(args.repo, args.out, args.revision, args.include)
    count = sum(path.is_file() and ".cache" not in path.parts for path in folder.rglob("*"))
    print(f"{folder}: {count:,} files of {args.repo}")
    return 0
