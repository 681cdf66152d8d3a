"""Three odd-sized pictures, and a predictor for them."""

import pytest
from small_benchmark import SIZES, picture

from trace_vlm.inference.predictor import Predictor


@pytest.fixture
def pictures(tmp_path):
    for seed, name in enumerate(sorted(SIZES)):
        picture(seed, SIZES[name]).save(tmp_path / name)
    return [tmp_path / name for name in sorted(SIZES)]  # square, tall, wide


@pytest.fixture
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint)
