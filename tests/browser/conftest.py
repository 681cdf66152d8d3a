"""The system's Chromium for tests that look at a page as a person does; where it is absent they skip and say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


# Of a module: while it is open, Playwright's loop runs in this thread, and nothing else could call asyncio.run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to open the page")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not there (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as found:
        started = found.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
