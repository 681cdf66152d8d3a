"""Points and boxes in text: the one grammar by which this project writes and reads coordinates.

Every coordinate is relative to the ORIGINAL, unpadded image: (0, 0) is its top left corner, (1, 1) its bottom right.
Pixels exist only where an image size is given. `parse_points` and `format_points` are an inverse pair.

What is read: two or four numbers between matching round or square brackets, such as `(0.461, 0.527)`, `[0.5,0.5]`,
`( .5 , +5e-1 )` or `(x0, y0, x1, y1)`, and two numbers with their names, such as `x=0.46, y=0.53` or `{"y": 6, "x": 4}`.
Full-width characters, asterisks and LaTeX's backslashes are read as what they stand for. What is not read: bare numbers,
percent, decimal commas, other separators, five numbers, and three, unless the third is known to be a depth.

Two integers are pixels when both exceed 1: `(0, 300)` and `(100, 0)` are points outside the image and `(1, 1)` is its
corner. Four integers are a box in pixels when the far corner exceeds 1 in both directions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Coordinates saturate here when read: far outside every image, and still safe to multiply by a size and to round.
LIMIT = 1e9

# Possessive throughout, and no bracket inside a match: every character is looked at from one start only, which keeps
# reading linear in the length of any text.
NUMBER = r"[+-]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?+\d++)?+"
_NO_PERCENT = r"(?!\s{0,3}+(?:%|percent))"
_TUPLE = rf"[(\[]\s*+(?P<numbers>{NUMBER}(?:\s*+,\s*+{NUMBER}){{1,3}}+)\s*+,?+\s*+(?P<close>[)\]]){_NO_PERCENT}"
# A third coordinate makes it a place in space, a width the corner of a box: neither is a point of the image.
_NO_MORE = r"(?![\w]|[.,]\d|\s*+[,;]?+\s*+[\"']?+(?:z|w|h|width|height)\b)"
_NAMED = (
    rf"(?<![\w.])[\"']?+(?P<axis>[xy])[\"']?+\s*+[=:]\s*+(?P<first>{NUMBER})\s*+(?:[,;]|and\b)?+\s*+"
    rf"[\"']?+(?!(?P=axis))[xy][\"']?+\s*+[=:]\s*+(?P<second>{NUMBER}){_NO_MORE}{_NO_PERCENT}"
)
_ITEM = re.compile(f"{_TUPLE}|{_NAMED}", re.IGNORECASE)
_NOT_INTEGER = re.compile(r"[.eE]")
# A key whose third number can only be a depth.
_DEPTH_BEHIND = re.compile(r"[\"']point_2d[\"']\s{0,4}+:\s{0,4}+\[?\s{0,4}+\Z")
# One character for one, so that places in the text stay what they are.
_PLAIN = str.maketrans("（）［］｛｝，．：；＝＋－−％*`$", "()[]{},.:;=+--%   ")
_LATEX = re.compile(r"\\(?:left|right|,)?+")


@dataclass(frozen=True, slots=True)
class Point:
    """A point in fractions of the original image's width and height; ValueError if a coordinate is not finite."""

    x: float
    y: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise ValueError(f"a point needs finite coordinates, not ({self.x}, {self.y})")

    @property
    def inside(self) -> bool:
        """Whether the point is in the image, its border included."""
        return 0 <= self.x <= 1 and 0 <= self.y <= 1

    @property
    def center(self) -> Point:  # as boxes have
        return self

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

    def to_pixel_range(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the pixels that the box covers, right and bottom exclusive, not clipped.

        A box covers at least one pixel. As for `Point.to_pixel`, the far border belongs to the last pixel.
        """

        def covered(low: float, high: float, side: int) -> tuple[int, int]:
            first = math.floor(low * side + 1e-6)
            if low <= 1.0:
                first = min(first, side - 1)
            return first, max(math.floor(high * side + 1e-6), first + 1)

        (left, right), (top, bottom) = covered(self.x0, self.x1, width), covered(self.y0, self.y1, height)
        return left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Mention:
    """A point or box at the characters `start` to `end` of a text."""

    item: Point | Box
    start: int
    end: int
    marked: bool = False  # by a JSON key or an XML tag: not part of a sentence


def parse_points(text: str, size: tuple[int, int] | None = None) -> list[Point | Box]:
    """Return the points and boxes of any text, in its order.

    `size` is the (width, height) of the original image, by which pixels are divided. Without it a pair of pixels
    stays a point far outside the image, so that it counts as a miss instead of vanishing.
    """
    return [mention.item for mention in find_points(text, size)]


def find_points(
    text: str, size: tuple[int, int] | None = None, *, depth: bool = False, swapped: bool = False
) -> list[Mention]:
    """Read as `parse_points` does, with the place in the text.

    Args:
        depth: a third number between brackets is a depth, which is dropped.
        swapped: between brackets y stands before x.
    """
    plain = _LATEX.sub(lambda match: " " * len(match[0]), text.translate(_PLAIN))
    mentions: list[Mention] = []
    for match in _ITEM.finditer(plain):
        numbers = _numbers(match, depth, swapped)
        if not numbers:
            continue
        values = list(map(saturated, numbers))
        exceed_1 = max(values[0::2]) > 1 and max(values[1::2]) > 1
        if size is not None and exceed_1 and _NOT_INTEGER.search("".join(numbers)) is None:
            values = [value / size[axis % 2] for axis, value in enumerate(values)]
        item = Point(*values) if len(values) == 2 else Box(*values)
        mentions.append(Mention(item, match.start(), match.end()))
    return mentions


def saturated(number: str) -> float:
    """Return a number as a coordinate: from -LIMIT to LIMIT."""
    return max(-LIMIT, min(LIMIT, float(number.strip())))  # float leaves blanks such as \x1c, which \s matches


def _numbers(match: re.Match[str], depth: bool, swapped: bool) -> list[str]:
    """Return the numbers of a match as x, y or x0, y0, x1, y1; none if it is no point and no box."""
    if match["axis"] is not None:
        numbers = [match["first"], match["second"]]
        return numbers if match["axis"] in "xX" else numbers[::-1]
    if match[0][0] + match["close"] not in ("()", "[]"):
        return []
    numbers = match["numbers"].split(",")
    if len(numbers) == 3:
        start = match.start()
        if not depth and _DEPTH_BEHIND.search(match.string, max(0, start - 32), start) is None:
            return []
        numbers = numbers[:2]
    return [numbers[index ^ 1] for index in range(len(numbers))] if swapped else numbers


def scored_indices(items: Sequence[Point | Box]) -> list[int]:
    """Return the indices of the items of an answer that are scored: its points if it has any, otherwise its boxes.

    A box counts as all of its pixels, which would outweigh the points beside it.
    """
    points = [index for index, item in enumerate(items) if isinstance(item, Point)]
    return points or list(range(len(items)))


def format_points(items: Iterable[Point | Box], decimals: int = 3) -> str:
    """Write `[(0.461, 0.527), (0.1, 0.2, 0.3, 0.4)]` with `decimals` digits after the dot.

    ValueError for `decimals` below 1, which would turn points into integers and those into pixels.
    """
    if decimals < 1:
        raise ValueError(f"points need at least one decimal, not {decimals}")
    written = []
    for item in items:
        values = (item.x, item.y) if isinstance(item, Point) else (item.x0, item.y0, item.x1, item.y1)
        # + 0.0 after rounding: -0.0001 is written 0.000, not -0.000.
        written.append("(" + ", ".join(f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values) + ")")
    return "[" + ", ".join(written) + "]"
