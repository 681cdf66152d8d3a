"""`needs_gl` marks tests that render scenes: they are skipped, with the user's error message, where nothing can."""

import pytest

from trace_vlm.data.scenes import generate
from trace_vlm.utils.command import InputError

try:
    generate.require_renderer()
    MISSING = ""
except InputError as error:
    MISSING = str(error)
needs_gl = pytest.mark.skipif(bool(MISSING), reason=MISSING or "renders")
