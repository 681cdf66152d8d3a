"""What watches over a run: a signal to stop, a loss that is no number, spikes, pictures that cannot be read."""

from __future__ import annotations

import signal
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..utils.command import InputError
from ..utils.files import JsonlWriter, read_jsonl, write_json

PREEMPTED = 143  # the exit code of a run that saved and ended on SIGTERM: 128 + 15, as shells report it
SPIKE = 3.0  # times the median of the last steps
REMEMBERED = 50  # steps that the median is of
MOST_BROKEN = 0.01  # of the samples seen so far
FEW_BROKEN = 5  # so many are always forgiven: a share of few samples says little


class TrainingStopped(RuntimeError):
    """A run that cannot go on; the message says why, and where the evidence lies. Told without a traceback."""


class Preempted(BaseException):
    """SIGTERM before the first step: there is nothing to save, and nothing to wait for."""


class StopSignal:
    """SIGTERM becomes a wish that the next step grants: save, then end. Before there are steps it ends the run."""

    def __init__(self) -> None:
        self.wanted = False
        self.after_a_step = False  # whether steps are made by now

    def __enter__(self) -> StopSignal:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.wanted = True
        if not self.after_a_step:
            raise Preempted("stopped by SIGTERM before the first step; the same command begins again")


class Watch:
    """The step-by-step checks of one process; `folder` is the run's."""

    def __init__(self, folder: Path, process: int) -> None:
        self._folder, self._process = folder, process
        self._recent: dict[str, deque[float]] = {
            "loss": deque(maxlen=REMEMBERED),
            "grad_norm": deque(maxlen=REMEMBERED),
        }
        self._seen_broken: set[int] = set()

    def broken(self, reasons: dict[int, str], names: Callable[[list[int]], list[str]]) -> int:
        """Note rows whose picture cannot be read; returns how many samples (`names` of a row) are new among them."""
        new = {row: reason for row, reason in reasons.items() if row not in self._seen_broken}
        if not new:
            return 0
        self._seen_broken |= set(new)
        count = 0
        with JsonlWriter(self._folder / f"broken_images.{self._process}.jsonl") as log:
            for row, reason in new.items():
                for name in names([row]):
                    print(f"sample {name}: {reason}; nothing is learned from it", flush=True)
                    log.write({"id": name, "reason": reason})
                    count += 1
        return count

    def check_broken(self, broken: float, samples: float) -> None:
        if broken > FEW_BROKEN and broken > MOST_BROKEN * samples:
            raise InputError(
                f"image_folder: {int(broken)} of {int(samples)} samples so far have pictures that cannot be read, more "
                f"than {MOST_BROKEN:.0%}; they are listed in {self._folder}/broken_images.*.jsonl"
            )

    def not_finite(self, step: int, losses: Sequence[float], ids: Sequence[Sequence[str]]) -> TrainingStopped:
        """Write down the batch of this process; the error to raise."""
        path = self._folder / f"not_finite.{self._process}.json"
        written = [{"loss": str(loss), "ids": list(names)} for loss, names in zip(losses, ids, strict=True)]
        write_json(path, {"step": step, "forward_passes": written})
        return TrainingStopped(
            f"step {step}: the loss or its gradient is not a finite number; the samples of the step are in "
            f"{self._folder}/not_finite.*.json, and the last save is from before it"
        )

    def spikes(self, step: int, values: dict[str, float], ids: Sequence[Sequence[str]]) -> list[str]:
        """The names of values far above their recent median; the process's samples go to `spikes.PROCESS.jsonl`."""
        found = []
        for name, value in values.items():
            recent = self._recent[name]
            if len(recent) == REMEMBERED and value > SPIKE * statistics.median(recent):
                found.append(name)
            recent.append(value)
        if found:
            entry: dict[str, Any] = {"step": step, **values, "spike": found, "ids": [list(names) for names in ids]}
            with JsonlWriter(self._folder / f"spikes.{self._process}.jsonl") as log:
                log.write(entry)
            if self._process == 0:
                told = ", ".join(f"{name} {values[name]:.3g}" for name in found)
                print(f"step {step}: {told}, over {SPIKE:g} times the median of {REMEMBERED} steps", flush=True)
        return found


def broken_ids(folder: Path) -> list[str]:
    """The samples, over all processes and resumptions of a run, whose pictures could not be read."""
    logs = sorted(folder.glob("broken_images.*.jsonl"))
    return sorted({str(entry["id"]) for log in logs for _, entry in read_jsonl(log, skip_partial_line=True)})
