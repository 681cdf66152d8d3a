"""Reading a model's answer takes time linear in its length, a megabyte of nonsense included."""

from __future__ import annotations

import pytest
from timing import assert_linear

from trace_vlm.reasoning import parse


@pytest.mark.parametrize("pattern", ["**Final Answer:** (", "[(0.1, 0.2), "])
def test_twice_the_text_takes_at_most_two_and_a_half_times_as_long(pattern: str) -> None:
    """Two megabytes against one, in CPU seconds."""
    assert_linear(lambda text: parse(text, (640, 480)), pattern * (2_000_000 // len(pattern)), limit=20)
