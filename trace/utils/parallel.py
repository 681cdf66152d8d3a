"""A pool of worker processes that survives its workers.

A worker process that dies (a segmentation fault in a native library, the kernel's out-of-memory killer, `os._exit`) is
replaced, and its item is done again, up to `TRIES` times. After that the item's future raises `WorkerDied`, which says
how the process ended; all other items are done in any case.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any

from .command import Incomplete

TRIES = 3  # how often an item is given to a worker
AHEAD = 4  # items drawn ahead of the results, for each worker
IN_FLIGHT = 2  # items of a worker: the one it works on, and the next


class WorkerDied(Incomplete):
    """The worker process died each time that it worked on an item."""


@dataclass(slots=True, eq=False)
class _Item:
    value: Any
    future: Future[Any] = field(default_factory=Future)
    deaths: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    items: deque[_Item] = field(default_factory=deque)  # in the order in which it works on them


class Pool:
    """`workers` processes that each call `start(*arguments)` once, and the function it returns for every item.

    Processes are spawned, not forked: neither a GL context nor a CUDA device survives a fork. What the function raises
    is raised by the item's future; what `start` raises, by the futures of all items. Use it in a `with` block.
    """

    def __init__(self, workers: int, start: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        self._start, self._arguments, self._count = start, arguments, workers
        self._context = multiprocessing.get_context("spawn")
        self._queue: deque[_Item] = deque()
        self._failed_starts = 0
        self._failure: BaseException | None = None
        self._workers = [self._spawn() for _ in range(workers)]

    def in_order(self, values: Iterable[Any]) -> Iterator[tuple[Any, Future[Any]]]:
        """Yield (value, its finished future) in the order of the values, which are drawn a few ahead of the results."""
        source = iter(values)
        ahead: deque[_Item] = deque()
        while True:
            for value in islice(source, AHEAD * self._count + 1 - len(ahead)):
                ahead.append(_Item(value))
                self._queue.append(ahead[-1])
                self._hand_out()
            if not ahead:
                return
            while not ahead[0].future.done():
                ready = wait([worker.connection for worker in self._workers])
                for worker in [worker for worker in self._workers if worker.connection in ready]:
                    self._receive(worker)
                self._hand_out()
            item = ahead.popleft()
            yield item.value, item.future

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()  # at which the process ends
        for worker in self._workers:
            worker.process.join(5 if worker.ready else 0)  # one that still starts has not seen its pipe close
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _spawn(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._start, self._arguments), daemon=True)
        resource_tracker.ensure_running()  # otherwise `start` does so, and lets SIGINT through again
        # A Ctrl-C before `_work` begins would print a traceback of the process: it starts with SIGINT blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the end of the process closes the pipe
        return _Worker(process, ours)

    def _hand_out(self) -> None:
        while self._queue:
            if self._failure is not None:
                self._queue.popleft().future.set_exception(self._failure)
                continue
            free = [worker for worker in self._workers if worker.ready and len(worker.items) < IN_FLIGHT]
            if not free:
                return
            worker, item = min(free, key=lambda worker: len(worker.items)), self._queue.popleft()
            try:
                with suppress(OSError):  # the process has just died, which its end of the pipe is about to show
                    worker.connection.send(item.value)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                item.future.set_exception(error)
            else:
                worker.items.append(item)

    def _receive(self, worker: _Worker) -> None:
        try:
            result, error = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._replace(worker)
        if not worker.ready:
            worker.ready, self._failed_starts, self._failure = error is None, 0, self._failure or error
        elif error is None:
            worker.items.popleft().future.set_result(result)
        else:
            worker.items.popleft().future.set_exception(error)

    def _replace(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.join()
        self._workers.remove(worker)
        code = worker.process.exitcode
        exit_status = f"exit code {code}"
        if code is not None and code < 0:
            exit_status = f"signal {-code} ({(signal.strsignal(-code) or 'unknown').lower()})"
        self._failed_starts += not worker.ready
        if self._failed_starts >= TRIES * self._count:
            self._failure = WorkerDied(f"the worker processes end before they have started: {exit_status}")
        if worker.items:
            worker.items[0].deaths += 1
            if worker.items[0].deaths == TRIES:
                message = f"its worker process ended {TRIES} times, the last time by {exit_status}"
                worker.items.popleft().future.set_exception(WorkerDied(message))
        self._queue.extendleft(reversed(worker.items))
        if self._failure is not None:
            return
        from tqdm import tqdm

        message = f"a worker process ended ({exit_status}); it is replaced and its work is done again"
        tqdm.write(message, file=sys.stderr)
        try:
            self._workers.append(self._spawn())
        except OSError as error:
            self._failure = WorkerDied(f"no other worker process can be started: {error}")


# --- in a worker process ----------------------------------------------------------------------------------------------


def _work(connection: Connection, start: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process answers Ctrl-C
    try:
        function = start(*arguments)
    except BaseException as error:  # noqa: BLE001 (raised again in the first process)
        return _send(connection, None, error)
    _send(connection, None, None)
    inbox: SimpleQueue[Any] = SimpleQueue()

    def read() -> None:  # in a thread: the process ends with the first one, whatever it is working on
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        value = inbox.get()
        try:
            result = function(value)
        except BaseException as error:  # noqa: BLE001 (raised again in the first process)
            _send(connection, None, error)
        else:
            _send(connection, result, None)


def _send(connection: Connection, result: Any, error: BaseException | None) -> None:
    if error is not None:
        text = "in a worker process:\n" + "".join(traceback.format_exception(error))
        error.add_note(text)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 (an exception class may refuse in any way)
            error = RuntimeError(text)
    try:
        connection.send((result, error))
    except OSError:  # nobody is there to receive it
        os._exit(0)
    except (pickle.PicklingError, AttributeError, TypeError) as unsendable:
        _send(connection, None, unsendable)
