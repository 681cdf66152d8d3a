"""The mark of tests that render scenes: they are skipped, with the sentence that a user gets, where nothing can."""

from __future__ import annotations

import pytest

from trace_vlm.data.scenes import generate
from trace_vlm.utils.command import InputError


def _reason() -> str:
    try:
        generate.require_renderer()
    except InputError as error:
        return str(error)
    return ""


MISSING = _reason()
needs_gl = pytest.mark.skipif(bool(MISSING), reason=MISSING or "renders")
