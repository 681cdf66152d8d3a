"""Whether a function takes time linear in the length of its text, on machines that have other things to do as well."""

from __future__ import annotations

import time
from collections.abc import Callable


def assert_linear(read: Callable[[str], object], text: str, limit: float = 3.0) -> None:
    """Fail when `text` takes more than `limit` CPU seconds, or each time more than 2.5 times as long as its half.

    Other work on the machine disturbs single measurements; quadratic time would show as 4 in every one, and pass the
    limit with the lengths used here.
    """
    ratios = []
    for _ in range(6):
        half, whole = _cpu_seconds(read, text[: len(text) // 2]), _cpu_seconds(read, text)
        assert whole < limit, f"{len(text)} characters took {whole:.1f} CPU seconds"
        if whole < 2.5 * half or whole < limit / 10:  # below that, caches and page faults decide
            return
        ratios.append(whole / half)
    raise AssertionError(f"twice the text took {ratios} times as long")


def _cpu_seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start
