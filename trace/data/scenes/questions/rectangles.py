"""Rectangles drawn into a picture around reference objects, as part of RoboPoint's training images has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .wording import MARK_COLORS

GAP = 1  # pixels left free between the object and the line


def draw_marks(
    image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]], colors: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of `image` [height, width, 3] with the outline of each normalised box (x0, y0, x1, y1) in its color.

    The line lies outside of the box, so that it hides nothing of a convex object; where the picture ends, it moves
    inwards and stays visible. Its width grows with the picture: 2 pixels at 336 x 336.
    """
    marked = image.copy()
    height, width = image.shape[:2]
    line = max(1, round(min(width, height) / 160))
    reach = line + GAP
    for box, color in zip(boxes, colors, strict=True):
        left, top = max(0, round(box[0] * width) - reach), max(0, round(box[1] * height) - reach)
        right, bottom = min(width, round(box[2] * width) + reach), min(height, round(box[3] * height) + reach)
        window = marked[top:bottom, left:right]
        for side in (window[:line], window[-line:], window[:, :line], window[:, -line:]):
            side[...] = MARK_COLORS[color]
    return marked
