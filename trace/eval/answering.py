"""What every command that answers a benchmark shares: which questions, into which file, under which record.

`model_vqa` asks a model in this process, `api_vqa` one behind a network. Both write the same answers and the same record
beside them, so that everything that reads answers need not know who gave them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.images import decoded_size
from ..core.reasoning import Response
from ..core.records import Question, read_answers
from ..utils.command import InputError, Parser
from ..utils.files import read_json
from .benchmark import Suite, key, open_suite, run_file
from .runs import versions
from .scoring import response_of
from .statistics import score

NAMED = 5  # broken images that a message names
READERS = 8  # images decoded at a time
PROTOCOLS = {"paper": {"temperature": 0.2, "runs": 3}}  # TRACE and RoboPoint: mean and deviation of three runs


def add_question_flags(parser: Parser) -> None:
    parser.add_argument("--data-dir", help="a benchmark: its name (where2place, tabletop ...), folder or parquet file")
    parser.add_argument("--image-folder", type=Path, help="by default images/ beside the questions")
    parser.add_argument("--question-file", type=Path, help="JSONL, one question a line")
    parser.add_argument(
        "--answer-file", "--answers-file", "--answer", type=Path, required=True, help="JSONL to write or to continue"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again, whatever the answer file holds")
    parser.add_argument(
        "--skip-broken", action="store_true", help="do not ask about images that cannot be read: they count as failed"
    )
    parser.add_argument("--num-questions", type=int, help="only the first ones of the file")
    parser.add_argument("--runs", type=int, default=1, help="with a seed and a file each")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, help="paper: temperature 0.2 and three runs, as the papers' tables are made"
    )


def checked(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with those that a protocol stands for. InputError when they contradict one another."""
    arguments: argparse.Namespace = parser.parse_args(argv)
    if arguments.protocol is not None:
        for name, value in PROTOCOLS[arguments.protocol].items():
            if getattr(arguments, name) not in (value, parser.get_default(name)):
                raise InputError(
                    f"--protocol {arguments.protocol} means --{name} {value}, not {getattr(arguments, name)}: "
                    "leave out one of the two"
                )
            setattr(arguments, name, value)
    if arguments.runs < 1:
        raise InputError(f"there cannot be {arguments.runs} runs: --runs has to be at least 1")
    if arguments.runs > 1 and arguments.temperature == 0:
        raise InputError(f"{arguments.runs} greedy runs are all the same: give --temperature, or --protocol paper")
    return arguments


def asked_questions(arguments: argparse.Namespace) -> Suite:
    if arguments.data_dir is None and arguments.question_file is None:
        raise InputError("which questions? give --question-file and --image-folder, or a benchmark with --data-dir")
    suite = open_suite(arguments.data_dir, arguments.question_file, arguments.image_folder)
    if arguments.answer_file.resolve() == suite.question_file.resolve():
        raise InputError(f"--answer-file {arguments.answer_file} is the question file, which answers would replace")
    return suite.first(arguments.num_questions)


def broken_images(suite: Suite, questions: Sequence[Question], skip: bool) -> frozenset[str]:
    """Keys of the questions whose image cannot be decoded to its end: told before any question is asked.

    Raises:
        InputError: an image is missing; one is broken and `skip` is not set; or all of them are.
    """
    from tqdm import tqdm

    paths = {key(question.question_id): suite.image_path(question) for question in questions}
    files = list(dict.fromkeys(paths.values()))
    with ThreadPoolExecutor(READERS) as readers:
        sizes = readers.map(decoded_size, files)
        bar = tqdm(sizes, "looking at the images", len(files), unit="image", leave=False, delay=1, dynamic_ncols=True)
        reasons = {path: size for path, size in zip(files, bar, strict=True) if isinstance(size, str)}
    if not reasons:
        return frozenset()
    broken = frozenset(name for name, path in paths.items() if path in reasons)
    named = "; ".join(f"{path}: {reason}" for path, reason in list(reasons.items())[:NAMED])
    more = "; ..." if len(reasons) > NAMED else ""
    told = f"{len(reasons)} of {len(files)} images cannot be read ({named}{more})"
    if not skip:
        raise InputError(f"{told}: replace them, or give --skip-broken, which counts their questions as failed")
    if len(broken) == len(suite.questions):
        raise InputError(f"{told}: there is nothing to ask")
    print(f"{told}: {len(broken)} questions are skipped and count as failed")
    return broken


def begun(
    command: str, answers: Path, suite: Suite, arguments: argparse.Namespace, settings: Mapping[str, Any],
    continued: bool,
) -> dict[str, Any]:  # fmt: skip
    """The record of a run; the time that earlier parts of it took is kept."""
    path = run_file(answers)
    earlier = read_json(path) if continued and path.is_file() else {}
    folder = suite.question_file.parent
    return {
        "command": command,
        "arguments": {name: _plain(value) for name, value in vars(arguments).items()},
        "settings": dict(settings),
        "data_dir": str(folder.resolve()),
        "data_dir_from_here": os.path.relpath(folder.resolve(), path.parent.resolve()),
        "question_file": suite.question_file.name,
        "image_folder": str(suite.image_folder.resolve()),
        "versions": versions(),
        "started": earlier.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": earlier.get("finished"),
        "seconds": earlier.get("seconds", 0.0),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def ended(record: Mapping[str, Any], answers: int) -> dict[str, Any]:
    """The record of a run that has answered everything."""
    return {**record, "finished": datetime.now(UTC).isoformat(timespec="seconds"), "answers": answers}


class Tally:
    """The running accuracy of a run, over the questions whose masks can be used."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.answers = self.parsable = 0
        self.scores: list[float] = []
        self.problem = ""

    def add(self, question: Question, response: Response) -> None:
        self.answers += 1
        self.parsable += response.parsable
        if not self.suite.masks:
            return
        try:
            self.scores.append(score(response.points, self.suite.mask(question)))
        except InputError as error:  # answering goes on: the summary refuses such a mask
            self.problem = self.problem or f"not scored: {error}"

    def read(self, path: Path, questions: Sequence[Question]) -> None:
        """Add the answers of a file."""
        by_key = {key(question.question_id): question for question in questions}
        for answer in read_answers(path):
            question = by_key[key(answer.question_id)]
            self.add(question, response_of(answer, self.suite.image_size(question), path))

    def describe(self) -> str:
        parts = [f"parsable {self.parsable / self.answers:.1%}" if self.answers else "none to score"]
        if self.scores:
            parts.insert(0, f"accuracy {sum(self.scores) / len(self.scores):.1%}")
        return ", ".join([*parts, *([self.problem] if self.problem else [])])
