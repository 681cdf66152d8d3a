"""How other models write coordinates: what each is asked for, and how its text is read back.

A model that is asked for, or read in, another convention than the one it was trained with scores about nothing, so a
comparison names the convention of every model. All of them are read into the project's own points: fractions of the
original image, from its top left corner.

Absolute pixels are those of the picture that the model saw. Models of the Qwen2.5-VL family see sides that are multiples
of 28 and write pixels of that size, so `sent_size` rounds the picture to such a size before it is sent: the server then
has nothing left to resize, and the size by which the text is divided is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .command import InputError
from .points import Box, Point, parse_points
from .prompts import POINTS_SUFFIX
from .reasoning import Response, parse

Items = list[Point | Box]
Size = tuple[int, int]  # (width, height) in pixels

QWEN_SIDE = 28  # a side of what becomes one token
QWEN_LEAST, QWEN_MOST = 4 * QWEN_SIDE**2, 1280 * QWEN_SIDE**2  # pixels between which its processor changes no size
_UNIT_BOX = (
    "Your answer should be formatted as a list of one tuple, i.e. [(x1, y1, x2, y2)], which contains the top left and the "
    "bottom right corner of a box around the region that satisfies the conditions above. The coordinates should be between "
    "0 and 1, indicating the normalized pixel locations in the image."
)
_TUPLES = (
    "Your answer should be formatted as a list of tuples, i.e. [(x1, y1), (x2, y2), ...], where each tuple contains the "
    "x and y coordinates of a point satisfying the conditions above, in pixels of the image."
)
_TUPLE_BOX = (
    "Your answer should be formatted as a list, i.e. [x1, y1, x2, y2], which contains the top left and the bottom right "
    "corner of a box around the region that satisfies the conditions above, in pixels of the image."
)
_POINTING = "Answer by pointing to several places that satisfy the conditions above."


@dataclass(frozen=True, slots=True)
class Convention:
    """One way of writing coordinates. `points` and `box` are the sentences that ask for them ("" where there is no box).

    `read` turns text into items whose coordinates are counted as the convention counts them, (x, y) in this order;
    `scale` is what 1 is there, None for pixels of the picture as sent.
    """

    name: str
    summary: str
    points: str
    box: str
    read: Callable[[str], Items]
    scale: float | None


def _json_request(what: str, key: str, form: str, units: str) -> str:
    return f'Answer with a JSON list of objects {{"{key}": [{form}], "label": "..."}}, {what}, {units}.'


def _asking(point: str, box: str, order: str, corners: str, units: str) -> tuple[str, str]:
    several = "one for each of several points that satisfy the conditions above"
    one = "with one box around the region that satisfies the conditions above"
    return _json_request(several, point, order, units), _json_request(one, box, corners, units)


# --- reading -------------------------------------------------------------------------------------------------------

# A list, or a list of lists, behind a JSON key; possessive, so that any text is read in linear time.
_LIST = r"\[[^\[\]{}]*+\]"
_KEYED = re.compile(
    rf"""["'](?:points?|point_2d|box_2d|bbox_2d|bbox|box)["']\s*+:\s*+({_LIST}|\[\s*+(?:{_LIST}\s*+,?+\s*+)++)"""
)
_TAG = re.compile(r"<points?\b([^<>]*+)", re.IGNORECASE)
_NUMBER = r"\s*+(-?\d++(?:\.\d*+)?+)\s*+"
_XML_PAIR = re.compile(rf"""(?<!\w)x(\d*+)\s*+=\s*+["']{_NUMBER}["']\s++y\1\s*+=\s*+["']{_NUMBER}["']""")
_COORDS = re.compile(r"""(?<!\w)coords\s*+=\s*+["']([\d\s.;:,]*+)""")


def _tuples(text: str) -> Items:
    """Numbers between brackets, as they stand."""
    return parse_points(text)


def _keyed(text: str) -> Items:
    """The lists that stand behind a JSON key; where there is none, all tuples. Broken JSON is read as far as it goes."""
    found = [item for lists in _KEYED.findall(text) for item in parse_points(lists)]
    return found or parse_points(text)


def _swapped(text: str) -> Items:
    """As `_keyed`, with y before x."""
    return [
        Point(item.y, item.x) if isinstance(item, Point) else Box(item.y0, item.x0, item.y1, item.x1)
        for item in _keyed(text)
    ]


def _xml(text: str) -> Items:
    """`<point x="61.5" y="40.4">` and `<points x1=... y1=... x2=... y2=...>`; a tag that is cut off counts."""
    found: Items = [Point(float(x), float(y)) for tag in _TAG.finditer(text) for _, x, y in _XML_PAIR.findall(tag[1])]
    return found or parse_points(text)


def _coords(text: str) -> Items:
    """`<points coords="1 1 308 305 2 752 377">`: the image's number, then for each point its own number, x and y."""
    found: Items = []
    for tag in _TAG.finditer(text):
        for coords in _COORDS.findall(tag[1]):
            for group in re.split(r"[;:,\t]", coords):
                found += _triples([float(one) for one in re.findall(r"\d++(?:\.\d++)?+", group)])
    return found or parse_points(text)


def _triples(numbers: list[float]) -> Items:
    """Points among `[image,] 1, x, y, 2, x, y ...`: whether the image's number is there shows in the points' own."""
    start = next(
        (start for start in (1, 0) if (own := _whole(numbers, start)) and own == [*range(1, len(own) + 1)]),
        1 if len(numbers) % 3 == 1 else 0,
    )
    return [Point(x, y) for x, y in zip(numbers[start + 1 :: 3], numbers[start + 2 :: 3], strict=False)]


def _whole(numbers: list[float], start: int) -> list[float]:
    """The points' own numbers, where they begin at `start`, of those that are whole."""
    return numbers[start::3][: max(0, len(numbers) - start) // 3]


# --- the conventions -----------------------------------------------------------------------------------------------

_THOUSANDTHS = "in integers from 0 to 1000 that count the image's width and height"
CONVENTIONS: Mapping[str, Convention] = {
    one.name: one
    for one in (
        Convention("unit", "[(x, y)] from 0 to 1 (TRACE, RoboPoint, GPT-4o)", POINTS_SUFFIX, _UNIT_BOX, _tuples, 1.0),
        Convention(
            "gemini", "JSON, [y, x] from 0 to 1000",
            *_asking("point", "box_2d", "y, x", "ymin, xmin, ymax, xmax", _THOUSANDTHS), _swapped, 1000.0,
        ),
        Convention("molmo", "XML, x and y in percent (Molmo)", _POINTING, "", _xml, 100.0),
        Convention("molmo2", "XML, numbered x and y from 0 to 1000 (Molmo2)", _POINTING, "", _coords, 1000.0),
        Convention(
            "qwen2.5-vl", "JSON, pixels of the picture as sent",
            *_asking("point_2d", "bbox_2d", "x, y", "x1, y1, x2, y2", "in pixels of the image"), _keyed, None,
        ),
        Convention(
            "qwen3-vl", "JSON, [x, y] from 0 to 1000",
            *_asking("point_2d", "bbox_2d", "x, y", "x1, y1, x2, y2", _THOUSANDTHS), _keyed, 1000.0,
        ),
        Convention("robobrain2", "[(x, y)] in pixels of the picture as sent", _TUPLES, _TUPLE_BOX, _keyed, None),
    )
}  # fmt: skip
# Pieces of models' names, the longer ones first, and what they were trained with.
_OF_MODELS = {
    "molmo2": "molmo2", "molmo": "molmo", "qwen3-vl": "qwen3-vl", "qwen2.5-vl": "qwen2.5-vl", "robobrain2": "robobrain2",
    "gemini": "gemini",
}  # fmt: skip


def convention(name: str) -> Convention:
    """The convention called `name`; InputError lists the known ones."""
    if name not in CONVENTIONS:
        raise InputError(f"there is no convention {name!r} of coordinates; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def convention_of(model: str) -> Convention:
    """What a model of this name was trained with, as far as the name tells; otherwise fractions."""
    plain = re.sub(r"[^a-z0-9.]", "", model.lower())
    for piece, name in _OF_MODELS.items():
        if piece.replace("-", "") in plain:
            return CONVENTIONS[name]
    return CONVENTIONS["unit"]


def sent_size(size: Size, most: int, convention: Convention) -> Size:
    """The size in which a picture is sent: no side above `most` pixels, and nothing that the server would resize.

    InputError for a picture so long and narrow that Qwen's processors refuse it.
    """
    scale = min(1.0, most / max(size))
    if convention.scale is not None:
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    if max(size) > 200 * min(size):
        raise InputError(f"a picture of {size[0]} x {size[1]} pixels is too long and narrow for {convention.name}")
    scale = min(scale, (QWEN_MOST / (size[0] * size[1])) ** 0.5)
    scale = max(scale, (QWEN_LEAST / (size[0] * size[1])) ** 0.5)
    width, height = (min(most // QWEN_SIDE, max(1, round(side * scale / QWEN_SIDE))) for side in size)
    while width * height > QWEN_MOST // QWEN_SIDE**2:  # both were rounded up
        width, height = (width - 1, height) if width > height else (width, height - 1)
    while width * height < QWEN_LEAST // QWEN_SIDE**2:
        width, height = (width + 1, height) if width < height else (width, height + 1)
    return width * QWEN_SIDE, height * QWEN_SIDE


def read(text: str, size: Size, how: Convention, sent: Size | None = None) -> Response:
    """What a text in a convention says: the steps as in any other, the points as fractions of the original image.

    Args:
        size: of the original image.
        sent: of the picture as the model saw it, if it was another; needed where the convention counts its pixels.
    Raises:
        ValueError: pixels of a picture whose size is not given.
    """
    if how.name == "unit":
        return parse(text, sent or size)
    if how.scale is None and sent is None:
        raise ValueError(f"{how.name} counts pixels of the picture as sent: its size is needed")
    width, height = (how.scale, how.scale) if how.scale is not None else sent or (1, 1)

    def items(part: str) -> Items:
        return [_divided(item, width, height) for item in how.read(part)]

    return parse(text, size, items)


def _divided(item: Point | Box, width: float, height: float) -> Point | Box:
    if isinstance(item, Point):
        return Point(item.x / width, item.y / height)
    return Box(item.x0 / width, item.y0 / height, item.x1 / width, item.y1 / height)


def read_recorded(text: str, size: Size, recorded: Mapping[str, Any], where: str) -> Response:
    """Read an answer in the convention that is recorded with it: `convention`, and `sent` for pixels.

    Args:
        recorded: the answer's metadata; without a convention the text is one of the project's own.
    Raises:
        InputError: begins with `where`; the record is broken.
    """
    name = recorded.get("convention")
    if name is None:
        return parse(text, size)
    sent = recorded.get("sent")
    if name not in CONVENTIONS or (CONVENTIONS[name].scale is None and not _is_size(sent)):
        raise InputError(
            f'{where}: "convention" is {name!r} and "sent" is {sent!r}; expected one of {", ".join(CONVENTIONS)}, '
            "and [width, height] of the picture as sent where it counts pixels"
        )
    return read(text, size, CONVENTIONS[name], (sent[0], sent[1]) if sent else None)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int and one > 0 for one in value)
