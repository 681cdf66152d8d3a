"""Scenes on several processes: each worker has its own GL context and renders whole scenes, the parent writes lines."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from ...command import InputError
from .scene import Job, make_scene
from .world import Studio

AHEAD = 4  # scenes handed to each worker in advance

_worker: tuple[Job, Studio] | None = None


def run_scenes(
    job: Job, numbers: Sequence[int], workers: int, write: Callable[[dict[str, Any]], None], total: int
) -> None:
    """Make the scenes with these numbers and hand each one's line to `write`, in any order."""
    with tqdm(total=total, initial=total - len(numbers), unit="scene", desc="scenes", mininterval=0.5) as bar:

        def record(line: dict[str, Any]) -> None:
            write(line)
            bar.update()

        if min(workers, len(numbers)) <= 1:
            with Studio.of(job.config, job.sizes) as studio:
                for number in numbers:
                    record(make_scene(job, number, studio))
        else:
            _run_parallel(job, numbers, min(workers, len(numbers)), record)


def _run_parallel(job: Job, numbers: Sequence[int], workers: int, record: Callable[[dict[str, Any]], None]) -> None:
    # Spawned, not forked: a GL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(job,)) as pool:
        waiting: set[Future[dict[str, Any]]] = set()
        try:
            for number in numbers:
                waiting.add(pool.submit(_scene, number))
                while len(waiting) >= workers * AHEAD:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        record(future.result())
            for future in list(waiting):
                record(future.result())
        except BrokenProcessPool:
            raise InputError(
                "a worker was killed (too little memory?); "
                "start the same command again, with fewer --workers, to continue"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(job: Job) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (job, Studio.of(job.config, job.sizes))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _scene(number: int) -> dict[str, Any]:
    assert _worker is not None
    job, studio = _worker
    return make_scene(job, number, studio)
