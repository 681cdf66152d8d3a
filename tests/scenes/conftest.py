"""A generated benchmark of rooms, made once for all tests that look at what the generator writes."""

import pytest
from scene_questions import read_questions_of

from trace_vlm.data.scenes import generate


@pytest.fixture(scope="session")
def tabletop(tmp_path_factory):
    """The default configuration with depth maps, in three shapes of picture."""
    out = tmp_path_factory.mktemp("tabletop")
    config = out / "depth.yaml"
    config.write_text("camera:\n  depth: true\nquestions:\n  absent: 0.0\n")
    flags = f"--scenes 40 --views 2 --seed 5 --size 176x132,132,120x160 --benchmark --config {config}"
    assert generate.main([*flags.split(), "--out", str(out / "bench")]) == 0
    return out / "bench"


@pytest.fixture(scope="session")
def questions(tabletop):
    return read_questions_of(tabletop)
