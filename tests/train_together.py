"""Several training processes on one machine, as a launcher would start them, forked from a server that has imported
everything once: a run of two processes then costs seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["trace_vlm.train.sft", "trace_vlm.train.outputs", "peft", "deepspeed"])
TIMEOUT = 300.0  # seconds; what hangs is noticed, what shares a busy machine is not


@dataclass
class Ended:
    """Exit codes of the processes (negative: by a signal), what each wrote, and how long they took together."""

    codes: list[int | None]
    logs: list[str]
    seconds: float


@dataclass
class Run:
    """A configuration in a file, and the folder it fills."""

    settings: dict[str, Any]
    processes: int = 2
    sabotage: str = ""  # of the last process
    _path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.settings["output_dir"])
        self._path = self.folder.with_suffix(".yaml")
        self._path.write_text(yaml.safe_dump(self.settings))

    def start(self) -> Started:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs = [self.folder.with_suffix(f".{rank}.log") for rank in range(self.processes)]
        processes = [
            CONTEXT.Process(
                target=_work,
                args=(rank, self.processes, port, str(self._path), str(log), self._sabotage(rank)),
            )
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        return Started(processes, logs, time.monotonic())

    def _sabotage(self, rank: int) -> str:
        return self.sabotage if rank == self.processes - 1 else ""

    def to_its_end(self) -> Ended:
        ended = self.start().wait()
        assert ended.codes == [0] * self.processes, "\n".join(ended.logs)
        return ended


@dataclass
class Started:
    processes: list[Any]
    logs: list[Path]
    since: float

    def wait(self) -> Ended:
        for process in self.processes:
            process.join(max(0.0, self.since + TIMEOUT - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        texts = [log.read_text() for log in self.logs]
        assert not late, f"{len(late)} processes hang\n" + "\n".join(texts)
        return Ended([process.exitcode for process in self.processes], texts, time.monotonic() - self.since)

    def when(self, happened: Callable[[], bool]) -> Started:
        deadline = time.monotonic() + TIMEOUT
        while not happened() and time.monotonic() < deadline:
            assert any(process.is_alive() for process in self.processes), self.wait().logs
            time.sleep(0.005)
        return self


def _work(rank: int, processes: int, port: int, config: str, log: str, sabotage: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from trace_vlm.train import train
    from trace_vlm.utils.command import run

    if sabotage:
        _spoil(sabotage)
    train._end(run(train.main, ["--config", config]))


def _spoil(sabotage: str) -> None:
    """`fail AT` raises when a row is fetched for the AT-th time, `early` before the processes meet, `preempted`
    gets SIGTERM there."""
    from trace_vlm.train import train
    from trace_vlm.train.dataset import RowDataset
    from trace_vlm.utils.command import InputError

    if sabotage in ("early", "preempted"):

        def refused(*_: Any) -> None:
            if sabotage == "preempted":
                os.kill(os.getpid(), signal.SIGTERM)
            raise InputError("image_folder: is not on this node")

        train._check_inputs = refused
        return

    fetch, calls = RowDataset.__getitem__, [0]
    at = int(sabotage.removeprefix("fail "))

    def spoiled(self: RowDataset, index: int) -> dict[str, Any]:
        calls[0] += 1
        if calls[0] == at:
            raise RuntimeError("the disk is gone")
        return fetch(self, index)

    RowDataset.__getitem__ = spoiled  # type: ignore[method-assign]
