"""Work for the processes of a pool, which import it by its name: it is done, or it ends its process."""

import os
import signal
import time

from trace_vlm.utils.command import InputError

ENDS = {
    "SEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV), "KILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
}  # fmt: skip
HOW = {"SEGV": "signal 11 (segmentation fault)", "KILL": "signal 9 (killed)", "exit": "exit code 7"}


def end(how, times, count):
    """End this process, but only the first `times` times: each call adds a byte to the file `count`."""
    with open(count, "ab") as file:
        file.write(b".")
    if count.stat().st_size <= times:
        ENDS[how]()


def always_end(how, *_):
    ENDS[how]()


def squares(folder):
    def work(item):
        if isinstance(item, tuple):  # how the process ends, how many times
            end(*item, folder / f"{item[0]}{item[1]}")
            return -1
        if item < 0:
            raise InputError(f"{item} is negative")
        return item**2

    return work


def nothing(folder):
    raise InputError("no key here")


def dies_at_once(folder):
    os._exit(3)


def makes_functions():
    return lambda item: (lambda: None) if item == "function" else item


def names_itself():
    def pid(seconds):
        time.sleep(seconds)
        return os.getpid()

    return pid


def ends_at(how, image, folder):
    """What looks at the samples of a training set, until it comes to one with this image."""
    from trace_vlm.data.sources.check import chunk_checker

    look = chunk_checker(folder)

    def work(chunk):
        if any(task.record.get("image") == image for task in chunk):
            ENDS[how]()
        return look(chunk)

    return work


def renderer_that_ends(how, scene, times, count, spec):
    """What makes scenes, but ends its process before it makes one of them, the first `times` times."""
    from trace_vlm.data.scenes.generate import make_renderer

    make = make_renderer(spec)

    def work(number):
        if number == scene:
            end(how, times, count)
        return make(number)

    return work
