"""Limits on the CPU seconds of a test, which do not depend on how busy the machine is."""

import signal
from contextlib import contextmanager


@contextmanager
def cpu_limit(seconds, what):
    """Fail when the block takes more CPU seconds; `what` describes it."""

    def stop(*_):
        raise AssertionError(f"{what} took more than {seconds:g} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def assert_linear(read, text, limit=10.0):
    """Fail after `limit` CPU seconds: the texts are so long that linear time takes a tenth, and quadratic minutes."""
    with cpu_limit(limit, f"{len(text)} characters"):
        read(text)
