"""Write the reasoning of a training set: the same samples, their answers preceded by a Chain of Reasoning.

    python -m trace.data.cor.build --data DATA/data.json --out DATA/cor.json --reasoner rules [--coordinates]
    python -m trace.data.cor.build --data DATA/data.json --image-folder DATA --out DATA/cor.json \\
        --reasoner gemini --model gemini-2.5-flash --dry-run

Who writes is `--reasoner`: `rules` (from what a sample knows, no network), `file` (people or another tool), `gemini`
or `openai` (remote models; any server that speaks OpenAI's protocol with --base-url). The final answer stays the
sample's own. Every text is checked; a sample whose reasoning cannot be kept goes to OUT.rejects.jsonl with its reason.
What a remote model answered is kept in OUT.cache.jsonl: killed at any moment, the same command continues.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...remote.flags import add_remote_flags, check_remote
from ...utils.command import InputError, Parser, existing_file, existing_folder, run
from .local import with_reasoning

__all__ = ["main", "with_reasoning", "write_all"]

REASONERS = ("rules", "file", "gemini", "openai")
REMOTE = ("gemini", "openai")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _validate(args)
    from ...core.records import Sample, read_samples
    from .tasks import Rejects

    def samples() -> Iterable[Sample]:
        return itertools.islice(read_samples(args.data), args.limit)

    rejects = Rejects(args.out.with_name(args.out.name + ".rejects.jsonl"))
    if args.reasoner in REMOTE:
        from .remote_build import build

        summary = build(args, samples, rejects)
        if summary is None:  # a dry run
            return 0
    else:
        summary = _local(args, samples, rejects)
    print(f"{args.out}: {summary['written']} samples with reasoning, {summary['rejected']} rejected")
    if not summary["written"]:
        raise InputError(f"no sample of {args.data} could be given reasoning; the reasons are in {rejects.path}")
    return 0


def _local(args: Namespace, samples: Callable[[], Iterable[Any]], rejects: Any) -> dict[str, Any]:
    from tqdm import tqdm

    from .checks import Rules
    from .file import Written
    from .local import Writers
    from .tasks import tasks_of

    rules = Rules(coordinates=args.coordinates)
    writers = Writers(rules, args.decimals, args.seed, _wording(args))
    written = Written(args.reasoning) if args.reasoner == "file" else None
    bar = tqdm(desc="reasoning", unit=" samples")

    def tasks() -> Iterator[Any]:
        for task in tasks_of(samples(), rejects.add):
            bar.update()
            yield task

    try:
        steps = writers.by_rules if written is None else partial(writers.from_file, written)
        return write_all(args, tasks(), steps, rejects, {})
    finally:
        bar.close()
        if written is not None:
            written.close()


def write_all(
    args: Namespace, tasks: Iterable[Any], steps_of: Callable[[Any], Mapping[str, str]], rejects: Any,
    figures: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write OUT in the order of the data, OUT.rejects.jsonl and OUT.run.json; returns the counts."""
    from ... import __version__
    from ...core.records import sha256, write_json, write_samples
    from .tasks import with_steps

    counts = {"written": 0}

    def finished() -> Iterator[Any]:
        for task in tasks:
            try:
                result = with_steps(task, steps_of(task), args.decimals)
            except ValueError as error:
                rejects.add(task.sample.id, str(error))
                continue
            counts["written"] += 1
            yield result

    with rejects:
        write_samples(args.out, finished())
    summary = {**counts, "rejected": rejects.count}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    record = {"settings": settings, "version": __version__, "data_sha256": sha256(args.data), **summary, **figures}
    write_json(args.out.with_name(args.out.name + ".run.json"), record)
    return summary


def _wording(args: Namespace) -> str:
    """--wording, where `auto` asks what the generator wrote beside the data: nano's plain words go with plain ones."""
    if args.wording != "auto":
        return str(args.wording)
    from ...core.records import read_json

    beside = args.data.parent / "generate.json"
    if not beside.is_file():
        return "full"
    record = read_json(beside)
    for key in ("settings", "config", "questions"):
        record = record.get(key) if isinstance(record, dict) else None
    wording = record.get("wording", "plain") if isinstance(record, dict) else "plain"
    return "plain" if wording == "plain" else "full"


def _validate(args: Namespace) -> None:
    existing_file(args.data, "the training file")
    for name, least in (("limit", 1), ("decimals", 1), ("processes", 1), ("ask_again", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    check_remote(args)
    if args.out.resolve() == args.data.resolve():
        raise InputError(f"--out {args.out} is the training file itself; give another name")
    if args.reasoner == "file" and args.reasoning is None:
        raise InputError("--reasoner file needs --reasoning FILE, a JSONL file with the steps of each sample")
    if args.reasoner in REMOTE:
        if args.model is None:
            raise InputError(f"--reasoner {args.reasoner} needs --model NAME")
        if args.image_folder is None:
            raise InputError(f"--reasoner {args.reasoner} needs --image-folder: the writer looks at the pictures")
        existing_folder(args.image_folder, "the image folder")


def _parser() -> Parser:
    parser = Parser(prog="trace.data.cor.build", description="Write a Chain of Reasoning for every sample.")
    parser.add_argument("--data", type=Path, required=True, help="training file (LLaVA JSON or JSONL)")
    parser.add_argument(
        "--image-folder", type=Path, help="what image names are relative to (remote writers look at them)"
    )
    parser.add_argument("--out", type=Path, required=True, help="training file to write")
    parser.add_argument("--reasoner", choices=REASONERS, default="rules", help="who writes")
    parser.add_argument("--limit", type=int, help="only the first LIMIT samples")
    parser.add_argument("--coordinates", action="store_true", help="locate reference objects inside the steps")
    parser.add_argument("--decimals", type=int, default=3, help="decimals of a coordinate")
    own = parser.add_argument_group("rules and file")
    own.add_argument("--seed", type=int, default=0, help="of the wording")
    own.add_argument(
        "--wording", choices=("auto", "plain", "full"), default="auto",
        help="plain: nano's few short sentences; full: many; auto: plain for data generated with plain wording",
    )  # fmt: skip
    own.add_argument(
        "--reasoning", type=Path, metavar="FILE", help="JSONL with `id` and `steps` (or `text`), for `file`"
    )
    remote = parser.add_argument_group("gemini and openai (the key comes from GEMINI_API_KEY or OPENAI_API_KEY)")
    remote.add_argument("--model", help="the provider's name of the model")
    add_remote_flags(remote)
    remote.add_argument(
        "--processes", type=int, help="that draw and send (default: the cores, when there is much to ask, else 1)"
    )
    remote.add_argument("--ask-again", type=int, default=3, help="how often, after a text that is rejected")
    remote.add_argument("--temperature", type=float, help="default: the provider's")
    remote.add_argument("--no-structured-output", action="store_true", help="for servers without JSON schemas")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(main))
