"""Three odd-sized pictures, and a predictor for them."""

import numpy as np
import pytest
from PIL import Image

from trace_vlm.inference.predictor import Predictor


@pytest.fixture
def pictures(tmp_path):
    rng, paths = np.random.default_rng(0), []
    for name, (width, height) in {"square.png": (37, 37), "tall.png": (33, 50), "wide.png": (61, 40)}.items():
        paths.append(tmp_path / name)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(paths[-1])
    return paths


@pytest.fixture
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint)
