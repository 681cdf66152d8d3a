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
