"""A pool of worker processes that survives its workers.

A worker process that ends (a segmentation fault in a native library, the kernel's out-of-memory killer, `os._exit`) is
replaced, and what it was working on is done again, up to `TRIES` times for the same item. Only then does the item's
future raise `WorkerDied`, which says how the process ended; all other items are done in any case.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any

from .command import Incomplete

TRIES = 3  # how often an item is given to a worker before it is given up
SLACK = 4  # items more than the idlest worker has, from which on an item goes elsewhere than to its home

_READY = 0  # the number of a worker's first message; items count from 1, and -n cancels item n
_Reply = tuple[int, Any, BaseException | None]  # number, result, error


class WorkerDied(Incomplete):
    """The worker process ended each time that it worked on an item."""


@dataclass(slots=True, eq=False)
class _Item:
    number: int
    value: Any
    home: int | None
    future: Future[Any] = field(default_factory=Future)
    deaths: int = 0

    def settle(self, result: Any, error: BaseException | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    items: dict[int, _Item] = field(default_factory=dict)

    def send(self, message: object) -> None:
        try:
            self.connection.send(message)
        except OSError:  # the process has just ended, as its end of the pipe is about to show
            pass


class Pool:
    """`workers` processes that each call `start(*arguments)` once, and the function that it returns for every item.

    Processes are spawned, not forked: neither a GL context nor a CUDA device survives a fork. If the function is a
    coroutine function, a worker has up to `lanes` items under way at once. What the function raises is raised by the
    item's future, what `start` raises by all of them.
    """

    def __init__(self, workers: int, start: Callable[..., Callable[[Any], Any]], *arguments: Any, lanes: int = 1):
        self._start, self._arguments, self._lanes = start, arguments, lanes
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()  # of the queue
        self._queue: deque[_Item] = deque()
        self._numbers = self._failed_starts = 0
        self._failure: BaseException | None = None
        self._closing = False
        self._started = threading.Event()  # or failed to
        self._waker, self._wake_up = self._context.Pipe(duplex=False)
        self._workers = [self._spawn() for _ in range(workers)]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def wait_until_started(self) -> None:
        """Return when a worker is ready for items; raises what `start` raised."""
        try:
            self._started.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:  # Ctrl-C too
            self.close()
            raise

    def submit(self, value: Any, home: str | None = None) -> Future[Any]:
        """Queue an item. Items of the same `home` go to the same worker, unless it has much more to do than another."""
        with self._lock:
            self._numbers += 1
            item = _Item(self._numbers, value, None if home is None else zlib.crc32(home.encode()))
            self._queue.append(item)
        item.future.add_done_callback(self._cancelled)
        self._wake()
        return item.future

    def in_order(self, values: Iterable[Any]) -> Iterator[tuple[Any, Future[Any]]]:
        """(value, its finished future) in the order of the values, which are drawn a few ahead of the results."""
        waiting: deque[tuple[Any, Future[Any]]] = deque()

        def first() -> tuple[Any, Future[Any]]:
            concurrent.futures.wait([waiting[0][1]])
            return waiting.popleft()

        for value in values:
            waiting.append((value, self.submit(value)))
            if len(waiting) > 4 * len(self._workers):
                yield first()
        while waiting:
            yield first()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers at once; items that are not finished are cancelled."""
        self._closing = True
        self._wake()
        self._thread.join()
        for worker in self._workers:
            worker.connection.close()  # at which the process ends
        for item in [*self._queue, *(item for worker in self._workers for item in worker.items.values())]:
            item.future.cancel()
        for worker in self._workers:
            worker.process.join(5 if worker.ready else 0)  # one that still starts has not seen its pipe close
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    # --- the thread that hands out items and receives results --------------------------------------

    def _wake(self) -> None:
        self._wake_up.send_bytes(b".")

    def _cancelled(self, future: Future[Any]) -> None:
        if future.cancelled() and not self._closing:  # nobody empties the pipe of a closed pool, and it holds little
            self._wake()

    def _spawn(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._start, self._arguments), daemon=True)
        resource_tracker.ensure_running()  # else `start` does so, and lets SIGINT through again
        with _no_interrupts():  # a Ctrl-C before `_work` begins would print its traceback
            process.start()
        theirs.close()  # so that the end of the process closes the pipe
        return _Worker(process, ours)

    def _serve(self) -> None:
        while not self._closing:
            self._hand_out()
            ready = wait([self._waker, *(worker.connection for worker in self._workers)])
            if self._waker in ready:
                while self._waker.poll():
                    self._waker.recv_bytes()
                self._cancel()
            for worker in [worker for worker in self._workers if worker.connection in ready]:
                self._receive(worker)

    def _hand_out(self) -> None:
        with self._lock:
            queue, self._queue = self._queue, deque()
        later = []
        for item in queue:
            if self._failure is not None or item.future.cancelled():
                item.settle(None, self._failure)
            elif not self._give(item):
                later.append(item)
        with self._lock:
            self._queue.extendleft(reversed(later))

    def _give(self, item: _Item) -> bool:
        """Send the item to a worker that has room for it; an item that has seen a worker die is worked on alone."""
        free = [worker for worker in self._workers if worker.ready and self._has_room(worker, item)]
        if not free:
            return False
        chosen = min(free, key=lambda worker: len(worker.items))
        if item.home is not None:
            home = self._workers[item.home % len(self._workers)]
            if home in free and len(home.items) <= len(chosen.items) + SLACK:
                chosen = home
        try:
            chosen.send((item.number, item.value))
        except Exception as error:  # noqa: BLE001 (what cannot be pickled refuses in any way)
            item.settle(None, error)
        else:
            chosen.items[item.number] = item
        return True

    def _has_room(self, worker: _Worker, item: _Item) -> bool:
        if item.deaths or any(other.deaths for other in worker.items.values()):
            return not worker.items
        return len(worker.items) < self._lanes

    def _cancel(self) -> None:
        if self._lanes > 1:
            for worker in self._workers:
                for number in [number for number, item in worker.items.items() if item.future.cancelled()]:
                    worker.send((-number, None))

    def _receive(self, worker: _Worker) -> None:
        try:
            number, result, error = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return self._replace(worker)
        if number != _READY:
            worker.items.pop(number).settle(result, error)
        elif error is None:
            worker.ready, self._failed_starts = True, 0
            self._started.set()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._started.set()

    def _replace(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.join()
        how = describe_exit(worker.process.exitcode)
        self._failed_starts += not worker.ready
        if self._failed_starts >= TRIES * len(self._workers):
            self._fail(WorkerDied(f"the worker processes end before they have started: {how}"))
        if self._failure is None:
            from tqdm import tqdm

            tqdm.write(f"a worker process ended ({how}); it is replaced and its work is done again", file=sys.stderr)
        again = []
        for item in worker.items.values():
            item.deaths += 1
            if item.deaths < TRIES:
                again.append(item)
            else:
                item.settle(None, WorkerDied(f"its worker process ended {TRIES} times, the last time by {how}"))
        with self._lock:
            self._queue.extendleft(reversed(again))
        place = self._workers.index(worker)
        self._workers[place : place + 1] = self._replacement()

    def _replacement(self) -> list[_Worker]:
        """A new worker; none when the pool has failed, or does because the system starts no process."""
        if self._failure is not None:
            return []
        try:
            return [self._spawn()]
        except OSError as error:
            self._fail(WorkerDied(f"no other worker process can be started: {error}"))
            return []


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """SIGINT waits, for this thread and for processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def describe_exit(code: int | None) -> str:
    """The exit status of a process in words: "signal 11 (segmentation fault)", "exit code 3"."""
    if code is not None and code < 0:
        return f"signal {-code} ({(signal.strsignal(-code) or 'unknown').lower()})"
    return f"exit code {code}"


# --- in a worker process ----------------------------------------------------------------------------


def _work(connection: Connection, start: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process answers Ctrl-C
    try:
        function = start(*arguments)
    except BaseException as error:  # noqa: BLE001 (raised again in the first process)
        return _send(connection, (_READY, None, _portable(error)))
    _send(connection, (_READY, None, None))
    if inspect.iscoroutinefunction(function):
        asyncio.run(_work_on_several(connection, function))
    inbox: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    _read_in_thread(connection, inbox.put)
    while True:
        number, value = inbox.get()
        try:
            reply: _Reply = number, function(value), None
        except BaseException as error:  # noqa: BLE001
            reply = number, None, _portable(error)
        _send(connection, reply)


async def _work_on_several(connection: Connection, function: Callable[[Any], Awaitable[Any]]) -> None:
    loop, running = asyncio.get_running_loop(), dict[int, asyncio.Task[None]]()

    async def work(number: int, value: Any) -> None:
        reply: _Reply = number, None, None
        try:
            reply = number, await function(value), None
        except asyncio.CancelledError:  # nobody waits for the result
            pass
        except BaseException as error:  # noqa: BLE001
            reply = number, None, _portable(error)
        del running[number]
        _send(connection, reply)

    def receive(number: int, value: Any) -> None:
        if number > 0:
            running[number] = loop.create_task(work(number, value))
        elif -number in running:
            running[-number].cancel()

    _read_in_thread(connection, lambda message: loop.call_soon_threadsafe(receive, *message))
    await asyncio.Event().wait()


def _read_in_thread(connection: Connection, receive: Callable[[tuple[int, Any]], object]) -> None:
    """Receive items; when the first process closes the pipe or is gone, this process ends, whatever it is working on."""

    def read() -> None:
        try:
            while True:
                receive(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()


def _send(connection: Connection, reply: _Reply) -> None:
    try:
        connection.send(reply)
    except OSError:  # nobody is there to receive it
        os._exit(0)
    except Exception as error:  # noqa: BLE001 (a result that cannot be pickled refuses in any way)
        _send(connection, (reply[0], None, _portable(error)))


def _portable(error: BaseException) -> BaseException:
    """The error as it can be sent to another process, with the traceback as a note."""
    text = "in a worker process:\n" + "".join(traceback.format_exception(error))
    error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (an exception class may refuse in any way)
        return RuntimeError(text)
    return error
