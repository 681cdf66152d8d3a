"""How other models write coordinates: what each is asked for, and how its text is read back.

A model that is asked for, or read in, another convention than the one it was trained with scores about nothing, so a
comparison names the convention of every model. All of them are read into the project's own points: fractions of the
original image, from its top left corner. Which model writes in which way is data: conventions.yaml.

Absolute pixels are those of the picture that the model saw. Models of the Qwen2.5-VL family see sides that are multiples
of 28 and write pixels of that size, so `sent_size` rounds the picture to such a size before it is sent: the server then
has nothing left to resize, and the size by which the text is divided is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeGuard

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
    """One way of writing coordinates. `points` and `box` are the sentences that ask for them ("" where there is no box).

    `read` turns text into items whose coordinates are counted as the convention counts them, (x, y) in this order;
    `scale` is what 1 is there, None for pixels of the picture as sent.
    """

    name: str
    summary: str
    points: str
    box: str
    read: Callable[[str], Mentions]
    scale: float | None

    def counts(self, sent: Size) -> tuple[float, float]:
        """What the width and the height of a picture are, as this convention counts them."""
        return (self.scale, self.scale) if self.scale is not None else sent


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
    rf"""["'](?P<key>points?|point_2d|box_2d|bbox_2d|bbox|box)["']\s*+:\s*+"""
    rf"""(?P<lists>{_LIST}|\[\s*+(?:{_LIST}\s*+,?+\s*+)++)"""
)
_TAG = re.compile(r"<points?\b([^<>]*+)", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    r"""(?<!\w)(?P<axis>[xy])(?P<number>\d{0,9}+)\s*+=\s*+["']\s*+(?P<value>-?\d++(?:\.\d*+)?+)\s*+["']"""
)
_COORDS = re.compile(r"""(?<!\w)coords\s*+=\s*+["']([\d\s.;:,]*+)""")
_FOREIGN = {"JSON keys": _KEYED, "XML tags": _TAG}


def _keyed(text: str, depth: bool = False, swapped: bool = False) -> Mentions:
    """The lists that stand behind a JSON key; where there is none, all points. Broken JSON is read as far as it goes."""
    found = [
        Mention(one.item, one.start + match.start("lists"), one.end + match.start("lists"), marked=True)
        for match in _KEYED.finditer(text)
        for one in find_points(match["lists"], depth=depth or match["key"] == "point_2d", swapped=swapped)
    ]
    return found or find_points(text, depth=depth, swapped=swapped)


def _xml(text: str) -> Mentions:
    """`<point x="61.5" y="40.4">` and `<points x1=... y1=... x2=... y2=...>`; a tag that is cut off counts.

    Attributes come in any order, with others between them; x2 belongs to y2.
    """
    found: Mentions = []
    for tag in _TAG.finditer(text):
        axes: dict[str, dict[str, float]] = {"x": {}, "y": {}}
        for one in _ATTRIBUTE.finditer(tag[1]):
            axes[one["axis"]].setdefault(one["number"], float(one["value"]))
        points = [Point(x, axes["y"][number]) for number, x in axes["x"].items() if number in axes["y"]]
        found += [Mention(point, tag.start(), tag.end(), marked=True) for point in points]
    return found or find_points(text)


def _coords(text: str) -> Mentions:
    """`<points coords="1 1 308 305 2 752 377">`: the image's number, then for each point its own number, x and y."""
    found: Mentions = []
    for tag in _TAG.finditer(text):
        for coords in _COORDS.findall(tag[1]):
            for group in re.split(r"[;:,\t]", coords):
                points = _triples([float(one) for one in re.findall(r"\d++(?:\.\d++)?+", group)])
                found += [Mention(point, tag.start(), tag.end(), marked=True) for point in points]
    return found or find_points(text)


def _triples(numbers: list[float]) -> list[Point]:
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

CONVENTIONS: Mapping[str, Convention] = {
    one.name: one
    for one in (
        Convention("unit", "[(x, y)] from 0 to 1 (TRACE, RoboPoint, GPT-4o)", POINTS_SUFFIX, _UNIT_BOX, find_points, 1.0),
        Convention(
            "gemini", "JSON, [y, x] from 0 to 1000",
            *_asking("point", "box_2d", "y, x", "ymin, xmin, ymax, xmax", _THOUSANDTHS), partial(_keyed, swapped=True),
            1000.0,
        ),
        Convention("molmo", "XML, x and y in percent (Molmo)", _POINTING, "", _xml, 100.0),
        Convention("molmo2", "XML, numbered x and y from 0 to 1000 (Molmo2)", _POINTING, "", _coords, 1000.0),
        Convention(
            "qwen2.5-vl", "JSON, pixels of the picture as sent",
            *_asking("point_2d", "bbox_2d", "x, y", "x1, y1, x2, y2", _PIXELS), _keyed, None,
        ),
        Convention(
            "qwen3-vl", "JSON, [x, y] from 0 to 1000",
            *_asking("point_2d", "bbox_2d", "x, y", "x1, y1, x2, y2", _THOUSANDTHS), _keyed, 1000.0,
        ),
        Convention(
            "robobrain2", "[(x, y)] in pixels of the picture as sent",
            _TUPLES.format(units=_PIXELS), _TUPLE_BOX.format(units=_PIXELS), _keyed, None,
        ),
        Convention(
            "robobrain2.5", "[(x, y)] or [(x, y, depth)], x and y from 0 to 1000",
            _TUPLES.format(units=_THOUSANDTHS), _TUPLE_BOX.format(units=_THOUSANDTHS), partial(_keyed, depth=True), 1000.0,
        ),
    )
}  # fmt: skip


def convention(name: str) -> Convention:
    """The convention called `name`; InputError lists the known ones."""
    if name not in CONVENTIONS:
        raise InputError(f"there is no convention {name!r} of coordinates; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def convention_of(model: str) -> Convention | None:
    """What a model of this name was trained with, by its family (conventions.yaml); None for a family it does not know.

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
    """A pattern for the beginning of a model's name, and what is known of that family; the longer names first."""
    import yaml  # not for callers that name a convention

    entries = yaml.safe_load(Path(__file__).with_name("conventions.yaml").read_text(encoding="utf-8"))
    known = sorted(((family, entry) for entry in entries for family in entry["models"]), key=lambda one: -len(one[0]))
    return [
        (re.compile(re.escape(family).replace(r"\-", "[-_ ]?") + r"(?![a-z0-9]|\.\d)", re.IGNORECASE), entry)
        for family, entry in known
    ]


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
    width, height = how.counts(sent or size)
    return parse(
        text, size, lambda part: [replace(one, item=_divided(one.item, width, height)) for one in how.read(part)]
    )


def _divided(item: Point | Box, width: float, height: float) -> Point | Box:
    if isinstance(item, Point):
        return Point(item.x / width, item.y / height)
    return Box(item.x0 / width, item.y0 / height, item.x1 / width, item.y1 / height)


def foreign_syntax(text: str) -> str | None:
    """What shows that a text may not be in fractions: "JSON keys", "XML tags" or "numbers above 1"; None for none."""
    for what, pattern in _FOREIGN.items():
        if pattern.search(text):
            return what
    return "numbers above 1" if _above_one(text) else None


def _above_one(text: str) -> bool:
    items = parse(text).points
    return any(max((item.x, item.y) if isinstance(item, Point) else (item.x1, item.y1)) > 1 for item in items)


@dataclass(slots=True)
class ConventionCheck:
    """Counts points and answers that look as if their convention was not the model's."""

    points: int = 0
    outside: int = 0
    small: int = 0
    answers: int = 0  # with points
    pixels: int = 0  # of those, with numbers above 1 in the convention unit

    def add(self, response: Response, how: Convention, sent: Size) -> None:
        """Count the points of an answer about a picture that was seen in the size `sent`."""
        width, height = how.counts(sent)
        self.answers += response.parsable
        self.pixels += response.parsable and how.name == "unit" and _above_one(response.text)
        for item in response.points:
            point = item.center
            self.points += 1
            self.outside += not point.inside
            # below 1/100, or below 1 where 1 is a pixel of a very small picture
            low = 0 <= point.x * width < max(1.0, width / 100) and 0 <= point.y * height < max(1.0, height / 100)
            self.small += low and how.name != "unit"

    def warning(self, name: str) -> str | None:
        """What most points have in common that were read in the convention `name`, if that makes it doubtful."""
        if self.outside * 2 > self.points:
            return (
                f"{self.outside} of {self.points} points lie outside the image: does the model write coordinates as "
                f"{name} does?"
            )
        if self.small * 2 > self.points:
            return (
                f"{self.small} of {self.points} points lie below 1/100 of the picture's width and height: they look "
                f"like fractions (convention unit), but were read as {name}"
            )
        if self.pixels * 2 > self.answers:
            return (
                f"{self.pixels} of {self.answers} answers hold numbers above 1, which {name} reads as pixels: does the "
                f"model write coordinates as {name} does?"
            )
        return None


def recorded_convention(
    recorded: Mapping[str, Any], size: Size, where: str, otherwise: Convention = CONVENTIONS["unit"]
) -> tuple[Convention, Size]:
    """The convention that is recorded with an answer, and the size of the picture as the model saw it.

    Args:
        recorded: the answer's metadata, with `convention` and `sent`.
        size: of the original image, which is taken where none is recorded.
        otherwise: the convention of an answer that records none.
    Raises:
        InputError: begins with `where`; the record is broken.
    """
    name, sent = recorded.get("convention"), recorded.get("sent")
    if name is None:
        return otherwise, (sent[0], sent[1]) if _is_size(sent) else size
    if name not in CONVENTIONS or (CONVENTIONS[name].scale is None and not _is_size(sent)):
        raise InputError(
            f'{where}: "convention" is {name!r} and "sent" is {sent!r}; expected one of {", ".join(CONVENTIONS)}, '
            "and [width, height] of the picture as sent where it counts pixels"
        )
    return CONVENTIONS[name], (sent[0], sent[1]) if sent else size


def _is_size(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int and one > 0 for one in value)
