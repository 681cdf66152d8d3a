"""When one of many processes fails: its own error first, and the whole job down within seconds.

The others would otherwise wait for it in a collective until a timeout of half an hour, and then fail with errors that
tell nothing. The first one that fails leaves a note in the run's folder; a thread in each of the others looks for it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from ..utils.command import Incomplete, InputError
from ..utils.files import read_json
from .guards import PREEMPTED, Preempted, TrainingStopped

NOTE = "failure.json"
LOOK_EVERY = 2.0  # seconds
STARTED = time.time()


class FailTogether:
    """Around the work of one of several processes; a single process fails as programs do."""

    def __init__(self, folder: Path, process: int, processes: int) -> None:
        self._note = folder / NOTE
        self._process, self._processes = process, processes
        self._over = threading.Event()

    def __enter__(self) -> FailTogether:
        if self._processes > 1:
            if self._process == 0 and not self._is_new():
                self._note.unlink(missing_ok=True)
            threading.Thread(target=self._look, daemon=True).start()
        return self

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            if self._is_new():
                self._leave()

    def _is_new(self) -> bool:
        """Whether the note is of these processes: written since this one began, and where they meet."""
        try:
            return self._note.stat().st_mtime > STARTED and read_json(self._note).get("meeting") == _meeting()
        except (FileNotFoundError, InputError):  # or not written to its end yet
            return False

    def _leave(self) -> None:
        print(f"process {self._process} ends: another process failed, see {self._note}", file=sys.stderr, flush=True)
        try:
            code = read_json(self._note)["code"]
        except (InputError, KeyError):  # not written to its end yet
            code = 1
        os._exit(PREEMPTED if code == PREEMPTED else 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if error is None or self._processes == 1:
            return
        told = isinstance(error, InputError | Incomplete | TrainingStopped | Preempted)
        text = f"error: {error}\n" if told else "".join(traceback.format_exception(error))
        code = PREEMPTED if isinstance(error, Preempted) else 2 if isinstance(error, InputError) else 1
        if not self._write_note(text, code):
            self._leave()
        where = f"process {self._process} of {self._processes} on {socket.gethostname()}"
        print(f"{where} failed:\n{text}", end="", file=sys.stderr, flush=True)
        os._exit(code)  # no tidying up, which would wait for the others

    def _write_note(self, text: str, code: int) -> bool:
        """Whether this process is the first to fail."""
        if not self._is_new():
            self._note.unlink(missing_ok=True)
        try:
            with open(self._note, "x", encoding="utf-8") as file:
                said = {"process": self._process, "host": socket.gethostname(), "meeting": _meeting()}
                json.dump(said | {"code": code, "error": text}, file)
        except FileExistsError:
            return False
        return True


def _meeting() -> str:
    """Where the processes of one job meet: another job that was started in the same folder has another port."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
