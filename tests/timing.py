"""Whether a function takes time linear in the length of its text."""

import signal


def assert_linear(read, text, limit=10.0):
    """Fail after `limit` CPU seconds: the texts are so long that linear time takes a tenth, and quadratic minutes."""

    def stop(*_):
        raise AssertionError(f"{len(text)} characters took more than {limit:g} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        read(text)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
