"""Write the reasoning of a training set: the same samples, their answers preceded by a Chain of Reasoning.

    python -m trace.data.cor.build --data DATA/data.json --out DATA/cor.json --reasoner rules [--coordinates]
    python -m trace.data.cor.build --data DATA/data.json --images DATA --out DATA/cor.json \\
        --reasoner gemini --model gemini-2.5-flash --dry-run

The answers stay the samples' own. Every text is checked; a sample whose reasoning is not kept goes to OUT.rejects.jsonl.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ... import __version__
from ...core.records import Sample, read_samples, write_samples
from ...remote.flags import add_remote_flags, check_remote
from ...utils.command import InputError, Parser, check_at_least, existing_file, existing_folder, run
from ...utils.files import JsonlLog, read_json, sha256, write_json
from ...utils.jsonl_index import JsonlIndex, hash_key
from .checks import ReasoningTask, Rejected, as_steps, check, read_steps, reasoning_tasks, with_steps
from .rules import WordingName, steps_by_rules

REMOTE = ("gemini", "openai")
REASONERS = ("rules", "file", *REMOTE)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _validate(args)

    def samples() -> Iterable[Sample]:
        return itertools.islice(read_samples(args.data), args.limit)

    write = partial(write_reasoning, args, samples)
    summary: Mapping[str, Any] | None
    if args.reasoner in REMOTE:
        from .remote import build_remote

        summary = build_remote(args, samples, write)
        if summary is None:  # a dry run
            return 0
    elif args.reasoner == "file":
        file = ReasoningFile(args.file, args.coordinates)
        with file.index:
            summary = write(file.steps, {})
    else:
        arguments = (args.seed, args.coordinates, args.decimals, _wording(args))
        summary = write(lambda task: steps_by_rules(task, *arguments), {})
    print(f"{args.out}: {summary['written']} samples with reasoning, {summary['rejected']} rejected")
    if not summary["written"]:
        raise InputError(f"no sample of {args.data} was given reasoning; see the reasons in {_rejects(args.out)}")
    return 0


def write_reasoning(
    args: Namespace, samples: Callable[[], Iterable[Sample]],
    steps_of: Callable[[ReasoningTask], Mapping[str, str]], figures: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write OUT in the order of the data, OUT.rejects.jsonl and OUT.run.json (with `figures`); return the counts.

    Args:
        steps_of: gives the steps of a task; its ValueError says why there are none.
    """
    counts = {"written": 0, "rejected": 0}
    with JsonlLog(_rejects(args.out)) as rejects:

        def reject(identifier: str, reason: str) -> None:
            counts["rejected"] += 1
            rejects.write({"id": identifier, "reason": reason})

        def finished() -> Iterator[Sample]:
            for task in tqdm(reasoning_tasks(samples(), reject), desc="reasoning", unit=" samples"):
                try:
                    sample = with_steps(task, steps_of(task), args.decimals)
                except ValueError as error:
                    reject(task.sample.id, str(error))
                    continue
                counts["written"] += 1
                yield sample

        write_samples(args.out, finished())
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    record = {"settings": settings, "version": __version__, "data_sha256": sha256(args.data), **counts, **figures}
    write_json(args.out.with_name(args.out.name + ".run.json"), record)
    return counts


class ReasoningFile:
    """Reasoning by people or another tool, as JSONL: `{"id": ..., "steps": {"reference": ..., ...}}` a line.

    `steps` has the keys of the template. Instead of it, `text` may hold the reasoning under its headings; a final answer
    in it is ignored. InputError for a line without an id, and for an id that appears twice.
    """

    def __init__(self, path: Path, coordinates: bool) -> None:
        self.path, self._coordinates = existing_file(path, "the reasoning file"), coordinates

        def key(record: Mapping[str, Any], where: str) -> bytes:
            if type(record.get("id")) not in (int, str) or record["id"] == "":
                raise InputError(f'{where}: "id" must be the id of a sample')
            return hash_key(record["id"])

        def refuse(line: int, first: int) -> None:
            raise InputError(f"{path}, line {line}: its id was on line {first} already; each may appear once")

        self.index = JsonlIndex(path, key, refuse)

    def steps(self, task: ReasoningTask) -> dict[str, str]:
        """The checked steps of a sample. Rejected if the file has none, or if they are not four texts."""
        record = self.index.get(hash_key(task.sample.id))
        if record is None:
            raise Rejected(f"{self.path} has no reasoning for it")
        if isinstance(record.get("steps"), Mapping):
            steps = as_steps(record["steps"])
        elif isinstance(record.get("text"), str):
            steps = read_steps(record["text"])
        else:
            raise Rejected('its line has neither "steps" (an object) nor "text"')
        check(steps, task, self._coordinates)
        return steps


def _rejects(out: Path) -> Path:
    return out.with_name(out.name + ".rejects.jsonl")


def _wording(args: Namespace) -> WordingName:
    """--wording; `auto` reads what the generator wrote beside the data: plain instructions go with plain reasoning."""
    wording, beside = args.wording, args.data.parent / "generate.json"
    if wording == "auto":
        record = read_json(beside) if beside.is_file() else None
        for key in ("settings", "config", "questions"):
            record = record.get(key) if isinstance(record, dict) else None
        wording = record.get("wording", "plain") if isinstance(record, dict) else "full"
    return "plain" if wording == "plain" else "full"


def _validate(args: Namespace) -> None:
    existing_file(args.data, "the training file")
    check_at_least(args, limit=1, decimals=1, ask_again=0)
    check_remote(args)
    if args.out.resolve() == args.data.resolve():
        raise InputError(f"--out {args.out} is the training file itself; give another name")
    if args.reasoner == "file" and args.file is None:
        raise InputError("--reasoner file needs --file FILE, a JSONL file with the steps of each sample")
    if args.reasoner in REMOTE:
        if args.model is None:
            raise InputError(f"--reasoner {args.reasoner} needs --model NAME")
        if args.images is None:
            raise InputError(f"--reasoner {args.reasoner} needs --images: the remote model looks at the pictures")
        existing_folder(args.images, "the image folder")


def _parser() -> Parser:
    parser = Parser(description="Write a Chain of Reasoning for every sample.", examples=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="training file (LLaVA's JSON or JSONL)")
    add("--images", type=Path, help="folder of the pictures (for gemini and openai)")
    add("--out", type=Path, required=True, help="training file to write")
    add("--reasoner", choices=REASONERS, default="rules", help="what writes the reasoning")
    add("--limit", type=int, help="only the first LIMIT samples")
    add("--coordinates", action="store_true", help="locate reference objects inside the steps")
    add("--decimals", type=int, default=3, help="decimals of a coordinate")
    add("--file", type=Path, help="for `file`: JSONL with `id` and `steps` (or `text`)")
    add = parser.add_argument_group("rules").add_argument
    add("--seed", type=int, default=0, help="seed of the wording")
    add(
        "--wording", choices=("auto", "plain", "full"), default="auto",
        help="plain: nano's few short sentences; full: many; auto: plain for data generated with plain wording",
    )  # fmt: skip
    remote = parser.add_argument_group("gemini and openai (the key comes from GEMINI_API_KEY or OPENAI_API_KEY)")
    remote.add_argument("--model", help="the provider's name of the model")
    add_remote_flags(remote)
    remote.add_argument("--ask-again", type=int, default=3, help="retries after a text that is rejected")
    remote.add_argument("--temperature", type=float, help="sampling temperature (default: the provider's)")
    remote.add_argument("--no-structured-output", action="store_true", help="for servers without JSON schemas")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(main))
