"""What stops a run: SIGTERM or Ctrl-C, a loss that is not finite, too many unreadable images, another process that failed.

Processes that wait for a failed one in a collective would time out after half an hour with errors that explain nothing.
The first one that fails therefore leaves a note in the run's folder, which a thread in each of the others looks for.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.command import Incomplete, InputError
from ..utils.files import JsonlWriter, read_json, read_jsonl, write_json

PREEMPTED = 143  # the exit code of a run that saved and ended on SIGTERM or Ctrl-C: 128 + 15, as shells report it
SPIKE = 3.0  # times the median of the last steps
SPIKE_WINDOW = 50  # steps of the median
MAX_BROKEN = 0.01  # of the samples seen so far
ALLOWED_BROKEN = 5  # always: a share of few samples says little
POLL_INTERVAL = 2.0  # seconds
STARTED = time.time()


class TrainingStopped(Incomplete):
    """A run that cannot continue."""


class Preempted(BaseException):
    """SIGTERM or Ctrl-C before the first step: there is nothing to save, and nothing to wait for."""


class StopSignal:
    """Turn SIGTERM and Ctrl-C into a request to save and end after the current step; before the first one it ends the run.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.name, self._interrupts = "SIGTERM", 0
        self.stepping = False  # whether the training loop runs

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, *_: object) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.name, self.requested = "Ctrl-C" if number == signal.SIGINT else "SIGTERM", True
        if not self.stepping:
            raise Preempted(f"stopped by {self.name} before the first step; the same command starts again")
        if number == signal.SIGINT:
            print(
                "saving after this step; Ctrl-C again ends at once and loses the steps since the last checkpoint",
                flush=True,
            )


class TrainingGuard:
    """Check the steps of one process; files go to the run's `folder`."""

    def __init__(self, folder: Path, process: int) -> None:
        self._folder, self._process = folder, process
        self._recent = {name: deque[float](maxlen=SPIKE_WINDOW) for name in ("loss", "grad_norm")}
        self._broken: set[int] = set()

    def record_broken(self, reasons: dict[int, str], names: Callable[[list[int]], list[str]]) -> int:
        """Log rows with unreadable images (`names` gives a row's samples); return the number of new samples."""
        new = {row: reason for row, reason in reasons.items() if row not in self._broken}
        self._broken |= set(new)
        entries = [{"id": name, "reason": reason} for row, reason in new.items() for name in names([row])]
        for entry in entries:
            print(f"sample {entry['id']}: {entry['reason']}; it is not learned from", flush=True)
            with JsonlWriter(self._folder / f"broken_images.{self._process}.jsonl") as log:
                log.write(entry)
        return len(entries)

    def check_broken(self, broken: float, samples: float) -> None:
        if broken > ALLOWED_BROKEN and broken > MAX_BROKEN * samples:
            counts = f"{int(broken)} of {int(samples)} samples so far have unreadable images"
            raise InputError(f"image_folder: {counts}. They are listed in {self._folder}/broken_images.*.jsonl.")

    def not_finite(self, step: int, losses: Sequence[float], ids: Sequence[Sequence[str]]) -> TrainingStopped:
        """Write down this process's samples of the step; return the error to raise."""
        passes = [{"loss": str(loss), "ids": list(names)} for loss, names in zip(losses, ids, strict=True)]
        write_json(self._folder / f"not_finite.{self._process}.json", {"step": step, "forward_passes": passes})
        problem = f"step {step}: the loss or its gradient is not a finite number. The samples of the step are in"
        return TrainingStopped(f"{problem} {self._folder}/not_finite.*.json; the last checkpoint is from before it.")

    def check_spikes(self, step: int, values: dict[str, float], ids: Sequence[Sequence[str]]) -> list[str]:
        """Return the names of values far above their recent median; log this process's samples of the step."""
        spikes = []
        for name, value in values.items():
            recent = self._recent[name]
            if len(recent) == SPIKE_WINDOW and value > SPIKE * statistics.median(recent):
                spikes.append(name)
            recent.append(value)
        if spikes:
            entry: dict[str, Any] = {"step": step, **values, "spike": spikes, "ids": [list(names) for names in ids]}
            with JsonlWriter(self._folder / f"spikes.{self._process}.jsonl") as log:
                log.write(entry)
            if self._process == 0:
                shown = ", ".join(f"{name} {values[name]:.3g}" for name in spikes)
                print(f"step {step}: {shown}, over {SPIKE:g} times the median of {SPIKE_WINDOW} steps", flush=True)
        return spikes


def broken_ids(folder: Path) -> list[str]:
    """Return the samples with unreadable images, over all processes and resumptions of a run."""
    logs = sorted(folder.glob("broken_images.*.jsonl"))
    return sorted({str(entry["id"]) for log in logs for _, entry in read_jsonl(log, skip_partial_line=True)})


@contextmanager
def end_together(folder: Path, process: int, processes: int) -> Iterator[None]:
    """Around the work of one of several processes: if one fails, its own error is shown and all end within seconds."""
    if processes == 1:
        yield
        return
    path, done = folder / "failure.json", threading.Event()
    # Where the processes of one job meet: another job that was started in the same folder has another port.
    meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"

    def read_note() -> dict[str, Any] | None:
        """The note of this job: of the same meeting, and written since this process began."""
        try:
            note = read_json(path)
            return note if path.stat().st_mtime > STARTED and note["meeting"] == meeting else None
        except (FileNotFoundError, InputError, KeyError, TypeError):  # or not completely written yet
            return None

    def end(note: dict[str, Any]) -> None:
        print(f"process {process} ends: another process failed, see {path}", file=sys.stderr, flush=True)
        os._exit(PREEMPTED if note.get("code") == PREEMPTED else 1)

    def poll() -> None:
        while not done.wait(POLL_INTERVAL):
            if (note := read_note()) is not None:
                end(note)

    if process == 0 and read_note() is None:
        path.unlink(missing_ok=True)
    threading.Thread(target=poll, daemon=True).start()
    try:
        yield
    except BaseException as error:  # noqa: BLE001 (shown, then the process ends)
        done.set()
        explained = isinstance(error, InputError | Incomplete | Preempted)
        text = f"error: {error}\n" if explained else "".join(traceback.format_exception(error))
        code = PREEMPTED if isinstance(error, Preempted) else 2 if isinstance(error, InputError) else 1
        host = socket.gethostname()
        if read_note() is None:
            path.unlink(missing_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump({"process": process, "host": host, "meeting": meeting, "code": code, "error": text}, file)
        except FileExistsError:  # another process failed first
            end(read_note() or {})
        except OSError:  # a full disk, perhaps the reason itself: the others find their connection closed
            pass
        message = f"process {process} of {processes} on {host} failed:\n{text}"
        print(message, end="", file=sys.stderr, flush=True)
        os._exit(code)  # no cleanup, which would wait for the others
    finally:
        done.set()
