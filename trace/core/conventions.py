"""How other models write coordinates: what each is asked for, and how its text is read.

All are read into the project's own points: fractions of the original image, from its top left corner. Which model
writes in which convention is data: conventions.yaml. Absolute pixels are those of the picture that the model saw.
Models of the Qwen2.5-VL family see sides that are multiples of 28, so `sent_size` rounds a picture to such a size
before it is sent: the server has nothing left to resize, and the size to divide by is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..utils.command import InputError
from .points import Box, Mention, Point, find_points
from .prompts import POINTS_SUFFIX
from .reasoning import Response, parse

Mentions = list[Mention]
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
    "x and y coordinates of a point satisfying the conditions above, {units}."
)
_TUPLE_BOX = (
    "Your answer should be formatted as a list, i.e. [x1, y1, x2, y2], which contains the top left and the bottom right "
    "corner of a box around the region that satisfies the conditions above, {units}."
)
_PIXELS = "in pixels of the image"
_THOUSANDTHS = "in integers from 0 to 1000 that count the image's width and height"
_POINTING = "Answer by pointing to several places that satisfy the conditions above."


@dataclass(frozen=True, slots=True)
class Convention:
    """One way of writing coordinates.

    Args:
        points, box: the sentences that ask for them; "" if the model writes no boxes.
        read: reads text into items with (x, y) in the convention's units.
        scale: the width and height of an image in these units; None for pixels of the picture as sent.
    """

    name: str
    summary: str
    points: str
    box: str
    read: Callable[[str], Mentions]
    scale: float | None

    def units(self, sent: Size) -> tuple[float, float]:
        """The width and height of a picture in the convention's units."""
        return (self.scale, self.scale) if self.scale is not None else sent


def _ask_for_json(point: str, box: str, order: str, corners: str, units: str) -> tuple[str, str]:
    def request(what: str, key: str, form: str) -> str:
        return f'Answer with a JSON list of objects {{"{key}": [{form}], "label": "..."}}, {what}, {units}.'

    return (
        request("one for each of several points that satisfy the conditions above", point, order),
        request("with one box around the region that satisfies the conditions above", box, corners),
    )


# --- reading -------------------------------------------------------------------------------------------------------

# A list, or a list of lists, behind a JSON key; possessive, so that any text is read in linear time.
_LIST = r"\[[^\[\]{}]*+\]"
_KEYED = re.compile(
    rf"""["'](?P<key>points?|point_2d|box_2d|bbox_2d|bbox|box)["']\s*+:\s*+"""
    rf"""(?P<lists>{_LIST}|\[\s*+(?:{_LIST}\s*+,?+\s*+)++)"""
)
_TAG = re.compile(r"<points?\b([^<>]*+)", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    r"""(?<!\w)(?P<axis>[xy])(?P<number>\d{0,9}+)\s*+=\s*+["']\s*+(?P<value>-?\d++(?:\.\d*+)?+)\s*+["']"""
)
_COORDS = re.compile(r"""(?<!\w)coords\s*+=\s*+["']([\d\s.;:,]*+)""")


def _read_json(text: str, depth: bool = False, swapped: bool = False) -> Mentions:
    """The lists behind JSON keys; without any, all points of the text. Broken JSON is read as far as it goes."""
    found = [
        Mention(one.item, one.start + match.start("lists"), one.end + match.start("lists"), marked=True)
        for match in _KEYED.finditer(text)
        for one in find_points(match["lists"], depth=depth or match["key"] == "point_2d", swapped=swapped)
    ]
    return found or find_points(text, depth=depth, swapped=swapped)


def _read_xml(text: str) -> Mentions:
    """`<point x="61.5" y="40.4">` and `<points x1=... y1=... x2=... y2=...>`; a tag that is cut off counts."""
    found: Mentions = []
    for tag in _TAG.finditer(text):
        axes: dict[str, dict[str, float]] = {"x": {}, "y": {}}  # attributes come in any order; x2 belongs to y2
        for one in _ATTRIBUTE.finditer(tag[1]):
            axes[one["axis"]].setdefault(one["number"], float(one["value"]))
        points = [Point(x, axes["y"][number]) for number, x in axes["x"].items() if number in axes["y"]]
        found += [Mention(point, tag.start(), tag.end(), marked=True) for point in points]
    return found or find_points(text)


def _read_coords(text: str) -> Mentions:
    """`<points coords="1 1 308 305 2 752 377">`: the image's number, then for each point its own number, x and y.

    Whether the image's number is there is decided by the points' own, which count from 1.
    """
    found: Mentions = []
    for tag in _TAG.finditer(text):
        for group in (group for coords in _COORDS.findall(tag[1]) for group in re.split(r"[;:,\t]", coords)):
            numbers = [float(one) for one in re.findall(r"\d++(?:\.\d++)?+", group)]
            start = 1 if len(numbers) % 3 == 1 else 0
            for first in (1, 0):
                own = numbers[first::3][: max(0, len(numbers) - first) // 3]
                if own and own == [*range(1, len(own) + 1)]:
                    start = first
                    break
            points = map(Point, numbers[start + 1 :: 3], numbers[start + 2 :: 3])
            found += [Mention(point, tag.start(), tag.end(), marked=True) for point in points]
    return found or find_points(text)


# --- the conventions -----------------------------------------------------------------------------------------------

CONVENTIONS: Mapping[str, Convention] = {
    one.name: one
    for one in (
        Convention("unit", "[(x, y)] from 0 to 1 (TRACE, RoboPoint, GPT-4o)", POINTS_SUFFIX, _UNIT_BOX, find_points, 1.0),
        Convention(
            "gemini", "JSON, [y, x] from 0 to 1000",
            *_ask_for_json("point", "box_2d", "y, x", "ymin, xmin, ymax, xmax", _THOUSANDTHS),
            partial(_read_json, swapped=True), 1000.0,
        ),
        Convention("molmo", "XML, x and y in percent (Molmo)", _POINTING, "", _read_xml, 100.0),
        Convention("molmo2", "XML, numbered x and y from 0 to 1000 (Molmo2)", _POINTING, "", _read_coords, 1000.0),
        Convention(
            "qwen2.5-vl", "JSON, pixels of the picture as sent",
            *_ask_for_json("point_2d", "bbox_2d", "x, y", "x1, y1, x2, y2", _PIXELS), _read_json, None,
        ),
        Convention(
            "qwen3-vl", "JSON, [x, y] from 0 to 1000",
            *_ask_for_json("point_2d", "bbox_2d", "x, y", "x1, y1, x2, y2", _THOUSANDTHS), _read_json, 1000.0,
        ),
        Convention(
            "robobrain2", "[(x, y)] in pixels of the picture as sent",
            _TUPLES.format(units=_PIXELS), _TUPLE_BOX.format(units=_PIXELS), _read_json, None,
        ),
        Convention(
            "robobrain2.5", "[(x, y)] or [(x, y, depth)], x and y from 0 to 1000",
            _TUPLES.format(units=_THOUSANDTHS), _TUPLE_BOX.format(units=_THOUSANDTHS),
            partial(_read_json, depth=True), 1000.0,
        ),
    )
}  # fmt: skip


def convention(name: str) -> Convention:
    """Return the convention called `name`; InputError lists the known ones."""
    if name not in CONVENTIONS:
        raise InputError(f"unknown convention of coordinates {name!r}. Known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def convention_of(model: str) -> Convention | None:
    """Return the convention of a model by its family (conventions.yaml), None for an unknown family.

    InputError for a model whose points cannot be read from its text.
    """
    name = model.rstrip("/").rpartition("/")[2]
    for pattern, entry in _families():
        if pattern.match(name):
            if "refused" in entry:
                raise InputError(f"points of {model} cannot be read: {entry['refused']} ({entry['source']})")
            return CONVENTIONS[entry["convention"]]
    return None


@cache
def _families() -> list[tuple[re.Pattern[str], Mapping[str, str]]]:
    """A pattern for the beginning of a model's name and the entry of that family; longer names first."""
    import yaml  # not for callers that name a convention

    entries = yaml.safe_load(Path(__file__).with_name("conventions.yaml").read_text(encoding="utf-8"))
    known = sorted(((family, entry) for entry in entries for family in entry["models"]), key=lambda one: -len(one[0]))
    end = r"(?![a-z0-9]|\.\d)"
    return [
        (re.compile(re.escape(family).replace(r"\-", "[-_ ]?") + end, re.IGNORECASE), entry) for family, entry in known
    ]


def sent_size(size: Size, most: int, convention: Convention) -> Size:
    """Return the size in which a picture is sent: no side above `most` pixels, and nothing that the server would resize.

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


def read(text: str, size: Size, convention: Convention, sent: Size | None = None) -> Response:
    """Read a text that is written in a convention; the points become fractions of the original image.

    Args:
        size: of the original image.
        sent: of the picture as the model saw it, if it was another; required if the convention counts its pixels.
    Raises:
        ValueError: pixels of a picture whose size is not given.
    """
    if convention.name == "unit":
        return parse(text, sent or size)
    if convention.scale is None and sent is None:
        raise ValueError(f"{convention.name} counts pixels of the picture as sent: its size is needed")
    width, height = convention.units(sent or size)

    def to_fractions(item: Point | Box) -> Point | Box:
        if isinstance(item, Point):
            return Point(item.x / width, item.y / height)
        return Box(item.x0 / width, item.y0 / height, item.x1 / width, item.y1 / height)

    return parse(text, size, lambda part: [replace(one, item=to_fractions(one.item)) for one in convention.read(part)])


def foreign_syntax(text: str) -> str | None:
    """What suggests that a text is not in fractions: "JSON keys", "XML tags" or "numbers above 1"; None if nothing."""
    for what, pattern in {"JSON keys": _KEYED, "XML tags": _TAG}.items():
        if pattern.search(text):
            return what
    return "numbers above 1" if _above_one(text) else None


def _above_one(text: str) -> bool:
    items = parse(text).points
    return any(max((item.x, item.y) if isinstance(item, Point) else (item.x1, item.y1)) > 1 for item in items)


@dataclass(slots=True)
class ConventionCheck:
    """Counts points and answers that suggest that a model writes in another convention than it was read in."""

    points: int = 0
    outside: int = 0
    small: int = 0
    answers: int = 0  # with points
    pixels: int = 0  # answers with numbers above 1 in the convention unit

    def add(self, response: Response, convention: Convention, sent: Size) -> None:
        """Count the points of an answer about a picture that was seen in the size `sent`."""
        width, height = convention.units(sent)
        self.answers += response.parsable
        self.pixels += response.parsable and convention.name == "unit" and _above_one(response.text)
        for point in (item.center for item in response.points):
            self.points += 1
            self.outside += not point.inside
            # below 1/100, or below 1 where 1 is a pixel of a very small picture
            low = 0 <= point.x * width < max(1.0, width / 100) and 0 <= point.y * height < max(1.0, height / 100)
            self.small += low and convention.name != "unit"

    def warning(self, name: str) -> str | None:
        """Describe what most points that were read in the convention `name` have in common, if that is suspicious."""
        question = f"does the model write coordinates as {name} does?"
        if self.outside * 2 > self.points:
            return f"{self.outside} of {self.points} points lie outside the image: {question}"
        if self.small * 2 > self.points:
            return (
                f"{self.small} of {self.points} points lie below 1/100 of the picture's width and height: they look "
                f"like fractions (convention unit), but were read as {name}"
            )
        if self.pixels * 2 > self.answers:
            return f"{self.pixels} of {self.answers} answers hold numbers above 1, which {name} reads as pixels: {question}"
        return None


def recorded_convention(
    metadata: Mapping[str, Any], size: Size, where: str, default: Convention = CONVENTIONS["unit"]
) -> tuple[Convention, Size]:
    """Return the convention recorded with an answer, and the size of the picture as the model saw it.

    Args:
        metadata: of the answer, with `convention` and `sent`.
        size: of the original image, for an answer that records none.
        default: for an answer that records no convention.
    Raises:
        InputError: begins with `where`; the record is broken.
    """
    name, sent = metadata.get("convention"), metadata.get("sent")
    is_size = isinstance(sent, list) and len(sent) == 2 and all(type(one) is int and one > 0 for one in sent)
    if name is None:
        return default, (sent[0], sent[1]) if is_size and sent else size
    if name not in CONVENTIONS or (CONVENTIONS[name].scale is None and not is_size):
        raise InputError(
            f'{where}: "convention" is {name!r} and "sent" is {sent!r}. Expected one of {", ".join(CONVENTIONS)}, '
            "and [width, height] of the picture as sent if the convention counts pixels"
        )
    return CONVENTIONS[name], (sent[0], sent[1]) if sent else size
