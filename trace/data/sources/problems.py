"""What can be wrong with a sample: found one at a time, named by the sample's id, counted by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...utils.command import InputError
from ...utils.files import JsonlWriter

RECORD, DUPLICATE, CONVERSATION = "record", "duplicate id", "conversation"
MISSING, BROKEN, POINTS, MASK = "image missing", "image broken", "points", "mask"
PROBLEMS = (RECORD, DUPLICATE, CONVERSATION, MISSING, BROKEN, POINTS, MASK)
EXAMPLES = 3  # of each kind, that are printed


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that makes one sample unusable. A sample without an id is named by its place in the file."""

    id: str
    kind: str  # one of PROBLEMS
    detail: str

    def __str__(self) -> str:
        return f"sample {self.id}: {self.kind}: {self.detail}"


class Problems:
    """Counts problems, keeps a few of each kind to show, and hands each one to `log`.

    Args:
        strict: raise InputError at the first problem.
        log: called with every problem, to record it.
    """

    def __init__(self, strict: bool = False, log: Callable[[Problem], None] | None = None) -> None:
        self.strict, self._log = strict, log
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Problem]] = {}

    def report(self, problem: Problem) -> None:
        if self.strict:
            raise InputError(f"{problem} (without --strict such a sample is left out and counted)")
        self.counts[problem.kind] += 1
        shown = self.examples.setdefault(problem.kind, [])
        if len(shown) < EXAMPLES:
            shown.append(problem)
        if self._log is not None:
            self._log(problem)

    def table(self) -> list[str]:
        """A line for each kind that occurred, with the first few ids."""
        lines = []
        for kind in PROBLEMS:
            if not self.counts[kind]:
                continue
            lines.append(f"  {kind:<14} {self.counts[kind]:>9,}")
            lines += [f"      {problem.id}: {problem.detail}" for problem in self.examples[kind]]
        return lines


class ProblemLog:
    """A JSONL file of problems, made when the first one comes; one of an earlier run is removed. For a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: JsonlWriter | None = None
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None

    def __call__(self, problem: Problem) -> None:
        if self._writer is None:
            self._writer = JsonlWriter(self.path)
        self._writer.write({"id": problem.id, "problem": problem.kind, "detail": problem.detail})

    def __enter__(self) -> ProblemLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
