"""What many tests share: one thread, and a nano model with random weights made once a session."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def nano():  # type: ignore[no-untyped-def]
    """A nano checkpoint with random weights; tests must not change it."""
    from trace_vlm.model.checkpoint import load

    return load("nano-random")


@pytest.fixture(scope="session")
def nano_folder(nano, tmp_path_factory):  # type: ignore[no-untyped-def]
    """The same, saved."""
    from trace_vlm.model.checkpoint import save

    folder = tmp_path_factory.mktemp("models") / "nano"
    save(nano, folder)
    return folder


# Of a module: while it is open, Playwright's loop runs in this thread, and nothing else could call asyncio.run.
@pytest.fixture(scope="module")
def browser():  # type: ignore[no-untyped-def]
    """The system's Chromium; tests skip where it or Playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to open the page")
    chromium = Path("/usr/bin/chromium")
    if not chromium.is_file():
        pytest.skip(f"{chromium} does not exist (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as api:
        started = api.chromium.launch(executable_path=str(chromium), args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
