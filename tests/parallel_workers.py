"""Work for the processes of a pool, which import it by its name: it is done, or it ends its process."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trace_vlm.utils.command import InputError

ENDS: dict[str, Callable[[], object]] = {
    "SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
}
HOW = {"SEGV": "signal 11 (segmentation fault)", "KILL": "signal 9 (killed)", "exit": "exit code 7"}


def end(how: str, times: int, count: Path) -> None:
    """End this process, but only the first `times` times: each call adds a byte to the file `count`."""
    with open(count, "ab") as file:
        file.write(b".")
    if count.stat().st_size <= times:
        ENDS[how]()


def always_end(how: str, *_: object) -> None:
    ENDS[how]()


def squares(folder: Path) -> Callable[[Any], int]:
    def work(item: int | tuple[str, int]) -> int:
        if isinstance(item, tuple):  # how the process ends, how many times
            end(*item, folder / f"{item[0]}{item[1]}")
            return -1
        if item < 0:
            raise InputError(f"{item} is negative")
        return item**2

    return work


def nothing(folder: Path) -> Callable[[Any], int]:
    raise InputError("no key here")


def dies_at_once(folder: Path) -> Callable[[Any], int]:
    os._exit(3)


def makes_functions() -> Callable[[Any], Any]:
    return lambda item: (lambda: None) if item == "function" else item


def names_itself() -> Callable[[float], int]:
    def pid(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    return pid


def ends_at(how: str, image: str, folder: Path) -> Callable[[list[Any]], Any]:
    """What looks at the samples of a training set, until it comes to one with this image."""
    from trace_vlm.data.sources.check import chunk_checker

    look = chunk_checker(folder)

    def work(chunk: list[Any]) -> Any:
        if any(task.record.get("image") == image for task in chunk):
            ENDS[how]()
        return look(chunk)

    return work


def renderer_that_ends(how: str, scene: int, times: int, count: Path, spec: Any) -> Callable[[int], dict[str, Any]]:
    """What makes scenes, but ends its process before it makes one of them, the first `times` times."""
    from trace_vlm.data.scenes.generate import make_renderer

    make = make_renderer(spec)

    def work(number: int) -> dict[str, Any]:
        if number == scene:
            end(how, times, count)
        return make(number)

    return work
