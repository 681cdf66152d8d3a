"""Whether a function takes time linear in the length of its text."""

from __future__ import annotations

import signal
from collections.abc import Callable


def assert_linear(read: Callable[[str], object], text: str, limit: float = 10.0) -> None:
    """Fail when `text` takes more than `limit` seconds of this process's own computing, whatever else the machine does.

    The texts are so long that linear time takes a tenth of it, and quadratic time minutes.
    """

    def stop(*_: object) -> None:
        raise AssertionError(f"{len(text)} characters took more than {limit:g} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        read(text)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
