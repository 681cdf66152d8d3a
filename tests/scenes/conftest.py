"""A generated benchmark of rooms, made once for all tests that look at what the generator writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from scene_questions import SceneQuestion, read_questions_of

from trace_vlm.data.scenes import generate

SCENES, VIEWS, SIZES = 40, 2, "176x132,132,120x160"


@pytest.fixture(scope="session")
def tabletop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default configuration with depth maps, in three shapes of picture."""
    out = tmp_path_factory.mktemp("tabletop")
    config = out / "depth.yaml"
    config.write_text("camera:\n  depth: true\n")
    flags = f"--scenes {SCENES} --views {VIEWS} --seed 5 --size {SIZES} --benchmark --config {config}"
    assert generate.main([*flags.split(), "--out", str(out / "bench")]) == 0
    return out / "bench"


@pytest.fixture(scope="session")
def questions(tabletop: Path) -> list[SceneQuestion]:
    return read_questions_of(tabletop)
