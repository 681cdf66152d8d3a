"""The score of one answer, and the reference's own numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from trace_vlm.core.points import Box, Point
from trace_vlm.eval.scoring import robopoint_score, score

MASK = np.zeros((4, 10), bool)
MASK[:, :5] = True
MASK[3, 9] = True  # the last pixel


@pytest.mark.parametrize(("points", "expected"), [
    ([], 0.0), ([Point(0.0, 0.0)], 1.0), ([Point(0.5, 0.5)], 0.0),
    ([Point(1.0, 1.0)], 1.0),  # the corner is the last pixel
    ([Point(0.1, 0.1), Point(0.9, 0.1)], 0.5),
    ([Point(0.1, 0.1), Point(-0.1, 0.1), Point(0.1, 1.01)], 1 / 3),  # outside the image is a miss
    ([Box(0.0, 0.0, 1.0, 1.0)], 21 / 40), ([Box(0.4, 0.0, 0.6, 1.0)], 0.5),
    ([Box(0.6, 1.0, 0.4, 0.0)], 0.5),  # reversed corners
    ([Box(0.2, 0.25, 0.2, 0.25)], 1.0),  # no extent: the pixel that holds it
    ([Box(-1.0, 0.0, 0.5, 1.0)], 20 / 60),  # pixels outside the image count
    ([Box(1.0, 1.0, 1.0, 1.0)], 1.0),
    ([Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.6, 0.25)], 20 / 21),  # a box weighs its pixels
    ([Box(0.0, 0.0, 0.5, 1.0), Point(0.9, 0.1)], 0.0),  # boxes beside points do not count
])  # fmt: skip
def test_score(points, expected):
    assert score(points, MASK) == pytest.approx(expected)


@given(arrays.arrays(bool, (7, 9)), st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4))
def test_box_equals_its_pixels_one_by_one(mask, corners):
    """The count over a padded copy of the mask, in which nothing has to be clipped."""
    box = Box(*corners)
    padded = np.pad(mask, 20)
    y0, x0 = int(np.floor(box.y0 * 7 + 1e-6)), int(np.floor(box.x0 * 9 + 1e-6))
    y1, x1 = max(y0 + 1, int(np.floor(box.y1 * 7 + 1e-6))), max(x0 + 1, int(np.floor(box.x1 * 9 + 1e-6)))
    if 7 not in (y0, y1 - 1) and 9 not in (x0, x1 - 1):  # the far edge belongs to the last pixel, as tested above
        assert score([box], mask) == pytest.approx(padded[20 + y0 : 20 + y1, 20 + x0 : 20 + x1].mean())


def test_robopoint_score_equals_the_recorded_behaviour():
    """76 answers with what the reference's own script gave, None where it crashes, and the line that it printed."""
    golden = Path(__file__).parent / "golden"
    record = json.loads((golden / "robopoint_scores.json").read_text(encoding="utf-8"))
    grey = np.array(Image.open(golden / "robopoint_mask.png")) / 255.0
    scores = [robopoint_score(text, grey) for text, _ in record["answers"]]
    assert scores == [expected for _, expected in record["answers"]]
    assert f"Accuracy: {np.mean([value for value in scores if value is not None])}" == record["printed"]
