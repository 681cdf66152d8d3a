"""Points and boxes in text: the one grammar by which this project writes and reads coordinates.

Every coordinate is relative to the ORIGINAL, unpadded image: (0, 0) is its top left corner, (1, 1) its bottom right.
Pixels exist only where an image size is given. `parse_points` and `format_points` are an inverse pair.

What is read: two or four numbers between matching round or square brackets, such as `(0.461, 0.527)`, `[0.5,0.5]`,
`( .5 , +5e-1 )` or `(x0, y0, x1, y1)`. What is not: bare numbers, percent, other separators, three or five numbers.

Two integers are pixels when both exceed 1: `(0, 300)` and `(100, 0)` are points outside the image and `(1, 1)` is its
corner. Four integers are a box in pixels when the far corner exceeds 1 in both directions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Coordinates saturate here when read: far outside every image, and still safe to multiply by a size and to round.
LIMIT = 1e9

# Possessive throughout, and no bracket inside a match: every character is looked at from one start only, which keeps
# reading linear in the length of any text.
_NUMBER = r"[+-]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?+\d++)?+"
_TUPLE = re.compile(
    rf"[(\[]\s*+(?P<numbers>{_NUMBER}(?:\s*+,\s*+{_NUMBER}){{1,3}}+)\s*+,?+\s*+(?P<close>[)\]])(?!\s{{0,3}}+(?:%|percent))"
)
_NOT_INTEGER = re.compile(r"[.eE]")


@dataclass(frozen=True, slots=True)
class Point:
    """A point in fractions of the original image's width and height; ValueError when a coordinate is not finite."""

    x: float
    y: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise ValueError(f"a point needs finite coordinates, not ({self.x}, {self.y})")

    @property
    def inside(self) -> bool:
        """Whether the point lies in the image, its border included."""
        return 0 <= self.x <= 1 and 0 <= self.y <= 1

    def to_pixels(self, width: int, height: int) -> tuple[float, float]:
        """(x, y) in pixels of an image of this size, not rounded."""
        return self.x * width, self.y * height

    def to_pixel(self, width: int, height: int) -> tuple[int, int] | None:
        """(column, row) of the pixel that holds the point, None outside the image.

        The far border belongs to the last pixel. The small shift keeps a pixel read from text (column / width) in
        its own column: 1 / 49 * 49 is below 1.
        """
        if not self.inside:
            return None
        return min(int(self.x * width + 1e-6), width - 1), min(int(self.y * height + 1e-6), height - 1)


@dataclass(frozen=True, slots=True)
class Box:
    """A box in fractions of the original image. Reversed corners are put right; ValueError when one is not finite."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.x0, self.y0, self.x1, self.y1))):
            raise ValueError(f"a box needs finite coordinates, not ({self.x0}, {self.y0}, {self.x1}, {self.y1})")
        for low, high in (("x0", "x1"), ("y0", "y1")):
            first, second = getattr(self, low), getattr(self, high)
            if first > second:
                object.__setattr__(self, low, second)
                object.__setattr__(self, high, first)

    @property
    def center(self) -> Point:
        return Point((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels of an image of this size, not rounded."""
        return self.x0 * width, self.y0 * height, self.x1 * width, self.y1 * height


def parse_points(text: str, size: tuple[int, int] | None = None) -> list[Point | Box]:
    """The points and boxes of `text` in the order in which they are written; any text is accepted.

    `size` is the (width, height) of the original image, by which pixels are divided. Without it a pair of pixels
    stays a point far outside the image, so that it counts as a miss instead of vanishing.
    """
    found: list[Point | Box] = []
    for match in _TUPLE.finditer(text):
        if match[0][0] + match["close"] not in ("()", "[]"):
            continue
        numbers = match["numbers"]
        values = [max(-LIMIT, min(LIMIT, float(number))) for number in numbers.split(",")]
        if len(values) == 3:
            continue
        if size is not None and _NOT_INTEGER.search(numbers) is None and _are_pixels(values):
            values = [value / size[axis % 2] for axis, value in enumerate(values)]
        found.append(Point(*values) if len(values) == 2 else Box(*values))
    return found


def _are_pixels(values: list[float]) -> bool:
    return max(values[0::2]) > 1 and max(values[1::2]) > 1


def format_points(items: Iterable[Point | Box], decimals: int = 3) -> str:
    """`[(0.461, 0.527), (0.1, 0.2, 0.3, 0.4)]` with `decimals` (at least 1) digits after the dot.

    ValueError for `decimals` below 1, which would turn points into integers and those into pixels.
    """
    if decimals < 1:
        raise ValueError(f"points need at least one decimal, not {decimals}")
    return "[" + ", ".join(_format_item(item, decimals) for item in items) + "]"


def _format_item(item: Point | Box, decimals: int) -> str:
    values = (item.x, item.y) if isinstance(item, Point) else (item.x0, item.y0, item.x1, item.y1)
    # + 0.0 after rounding: -0.0001 is written 0.000, not -0.000.
    return "(" + ", ".join(f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values) + ")"
