"""How other models write coordinates: what each is asked for, how its text is read into this project's points, and how
training data are rewritten for it.

conventions.yaml says which model writes in which convention. Absolute pixels are those of the picture as the model saw
it: Qwen2.5-VL sees sides that are multiples of 28, so `sent_size` rounds a picture to such a size before it is sent.
The server then resizes nothing, and the size to divide by is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..utils.command import InputError
from .points import NUMBER, Box, Mention, Point, find_points, saturated
from .prompts import BOX_SUFFIX, POINTS_SUFFIX
from .reasoning import Response, parse
from .records import Turn

T = TypeVar("T")
Size = tuple[int, int]  # (width, height) in pixels
Numbers = list[str]  # of a point (x, y) or a box (x0, y0, x1, y1), as they are written

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


_JSON = (
    'Answer with a JSON list of objects {{"{key}": [{order}], "label": "..."}}, one for each of several points that '
    "satisfy the conditions above, {units}."
)
_JSON_BOX = (
    'Answer with a JSON list of objects {{"{key}": [{order}], "label": "..."}}, with one box around the region that '
    "satisfies the conditions above, {units}."
)


@dataclass(frozen=True, slots=True)
class Convention:
    """One way of writing coordinates."""

    name: str
    summary: str
    points: str  # the sentence that asks for points
    box: str  # the sentence that asks for a box; "" if the model writes none
    read: Callable[[str], list[Mention]]  # reads items with (x, y) in the convention's units
    write: Callable[[list[Numbers]], str]  # writes an answer's points and boxes
    scale: float | None  # width and height of an image in these units; None: pixels of the picture as sent
    swapped: bool = False  # y stands before x

    def units(self, sent: Size) -> tuple[float, float]:
        """Return the width and height of a picture in the convention's units."""
        return (self.scale, self.scale) if self.scale is not None else sent

    def numbers(self, fractions: Sequence[float], sent: Size) -> Numbers:
        """Write x, y or x0, y0, x1, y1 in the convention's units: integers, percent with one decimal."""
        units = self.units(sent)
        return [f"{value * units[axis % 2]:.{int(self.scale == 100)}f}" for axis, value in enumerate(fractions)]


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


def _read_json(text: str, depth: bool = False, swapped: bool = False) -> list[Mention]:
    """Read the lists behind JSON keys; without any, all points of the text. Broken JSON is read as far as it goes."""
    mentions = [
        Mention(mention.item, mention.start + match.start("lists"), mention.end + match.start("lists"), marked=True)
        for match in _KEYED.finditer(text)
        for mention in find_points(match["lists"], depth=depth or match["key"] == "point_2d", swapped=swapped)
    ]
    return mentions or find_points(text, depth=depth, swapped=swapped)


def _read_xml(text: str) -> list[Mention]:
    """Read `<point x="61.5" y="40.4">` and `<points x1=... y1=... x2=... y2=...>`; a tag that is cut off counts."""
    mentions = []
    for tag in _TAG.finditer(text):
        axes: dict[str, dict[str, float]] = {"x": {}, "y": {}}  # attributes come in any order; x2 belongs to y2
        for attribute in _ATTRIBUTE.finditer(tag[1]):
            axes[attribute["axis"]].setdefault(attribute["number"], saturated(attribute["value"]))
        points = [Point(x, axes["y"][number]) for number, x in axes["x"].items() if number in axes["y"]]
        mentions += [Mention(point, tag.start(), tag.end(), marked=True) for point in points]
    return mentions or find_points(text)


def _read_coords(text: str) -> list[Mention]:
    """Read `<points coords="1 1 308 305 2 752 377">`: the image's number, then each point's own number, x and y.

    The points' own numbers, which count from 1, decide whether the image's number is there.
    """
    mentions = []
    for tag in _TAG.finditer(text):
        for group in (group for coords in _COORDS.findall(tag[1]) for group in re.split(r"[;:,\t]", coords)):
            numbers = [saturated(number) for number in re.findall(r"\d++(?:\.\d++)?+", group)]
            start = 1 if len(numbers) % 3 == 1 else 0
            for first in (1, 0):
                own = numbers[first::3][: max(0, len(numbers) - first) // 3]
                if own and own == [*range(1, len(own) + 1)]:
                    start = first
                    break
            points = map(Point, numbers[start + 1 :: 3], numbers[start + 2 :: 3])
            mentions += [Mention(point, tag.start(), tag.end(), marked=True) for point in points]
    return mentions or find_points(text)


# --- writing -------------------------------------------------------------------------------------------------------

LABEL = "target"  # of all that is pointed to: training data name the place in the question alone
_NUMBER = re.compile(NUMBER)
_TUPLE_LIST = re.compile(r"\[\s*+(?:\([^()\[\]]*+\)[\s,]*+)++\]")


def _in_order(numbers: list[T], swapped: bool) -> list[T]:
    return [numbers[index ^ 1] for index in range(len(numbers))] if swapped else numbers


def _coordinates(item: Point | Box) -> tuple[float, ...]:
    return (item.x, item.y) if isinstance(item, Point) else (item.x0, item.y0, item.x1, item.y1)


def _is_fraction(item: Point | Box) -> bool:
    return all(0 <= value <= 1 for value in _coordinates(item))


def _write_json(items: list[Numbers], keys: tuple[str, str], swapped: bool = False) -> str:
    """Write JSON objects under the keys of a point and of a box."""
    written = (f'"{keys[len(item) // 4]}": [{", ".join(_in_order(item, swapped))}]' for item in items)
    return "[" + ", ".join(f'{{{item}, "label": "{LABEL}"}}' for item in written) + "]"


def _write_tuples(items: list[Numbers]) -> str:
    """Write `[(460, 520), (12, 30)]`, and boxes `[12, 30, 460, 520]`."""
    written = [f"({', '.join(item)})" if len(item) == 2 else f"[{', '.join(item)}]" for item in items]
    return written[0] if len(items) == 1 and len(items[0]) == 4 else f"[{', '.join(written)}]"


def _write_xml(items: list[Numbers]) -> str:
    many = len(items) > 1
    places = (f'x{n if many else ""}="{x}" y{n if many else ""}="{y}"' for n, (x, y) in enumerate(items, start=1))
    tag = "points" if many else "point"
    return f'<{tag} {" ".join(places)} alt="{LABEL}">{LABEL}</{tag}>'


def _write_coords(items: list[Numbers]) -> str:
    places = (f"{n} {x.zfill(3)} {y.zfill(3)}" for n, (x, y) in enumerate(items, start=1))
    return f'<points coords="1 {" ".join(places)}">{LABEL}</points>'


# --- the conventions -----------------------------------------------------------------------------------------------

_GEMINI = {"key": "point", "order": "y, x", "units": _THOUSANDTHS}
_GEMINI_BOX = {"key": "box_2d", "order": "ymin, xmin, ymax, xmax", "units": _THOUSANDTHS}
_QWEN = {"key": "point_2d", "order": "x, y"}
_QWEN_BOX = {"key": "bbox_2d", "order": "x1, y1, x2, y2"}
_QWEN_KEYS = ("point_2d", "bbox_2d")
_TABLE: tuple[Convention, ...] = (
    Convention("unit", "[(x, y)] from 0 to 1 (TRACE, RoboPoint, GPT-4o)", POINTS_SUFFIX, _UNIT_BOX, find_points,
               _write_tuples, 1.0),
    Convention("gemini", "JSON, [y, x] from 0 to 1000", _JSON.format(**_GEMINI), _JSON_BOX.format(**_GEMINI_BOX),
               partial(_read_json, swapped=True), partial(_write_json, keys=("point", "box_2d"), swapped=True), 1000.0,
               swapped=True),
    Convention("molmo", "XML, x and y in percent (Molmo)", _POINTING, "", _read_xml, _write_xml, 100.0),
    Convention("molmo2", "XML, numbered x and y from 0 to 1000 (Molmo2)", _POINTING, "", _read_coords, _write_coords,
               1000.0),
    Convention("qwen2.5-vl", "JSON, pixels of the picture as sent", _JSON.format(**_QWEN, units=_PIXELS),
               _JSON_BOX.format(**_QWEN_BOX, units=_PIXELS), _read_json, partial(_write_json, keys=_QWEN_KEYS), None),
    Convention("qwen3-vl", "JSON, [x, y] from 0 to 1000", _JSON.format(**_QWEN, units=_THOUSANDTHS),
               _JSON_BOX.format(**_QWEN_BOX, units=_THOUSANDTHS), _read_json, partial(_write_json, keys=_QWEN_KEYS),
               1000.0),
    Convention("robobrain2", "[(x, y)] in pixels of the picture as sent", _TUPLES.format(units=_PIXELS),
               _TUPLE_BOX.format(units=_PIXELS), _read_json, _write_tuples, None),
    Convention("robobrain2.5", "[(x, y)] or [(x, y, depth)], x and y from 0 to 1000",
               _TUPLES.format(units=_THOUSANDTHS), _TUPLE_BOX.format(units=_THOUSANDTHS),
               partial(_read_json, depth=True), _write_tuples, 1000.0),
)  # fmt: skip
CONVENTIONS: Mapping[str, Convention] = {one.name: one for one in _TABLE}


def convention(name: str) -> Convention:
    """Return the convention called `name`; InputError lists the known ones."""
    if name not in CONVENTIONS:
        raise InputError(f"unknown convention of coordinates {name!r}. Known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def convention_of(model: str) -> Convention | None:
    """Return the convention of a model by its name or `model_type` (conventions.yaml), None for an unknown family.

    InputError for a model whose points cannot be read from its text.
    """
    entry = _known(model)
    if "refused" in entry:
        raise InputError(f"points of {model} cannot be read: {entry['refused']} ({entry['source']})")
    return CONVENTIONS[entry["convention"]] if entry else None


def reasons_by_name(model: str) -> bool:
    """Return whether a model without a record is asked to reason, by its name."""
    return bool(_known(model).get("reasoning", True))


def _known(model: str) -> Mapping[str, Any]:
    """The entry of conventions.yaml for a model's name, empty for an unknown family."""
    import yaml  # not for callers that name a convention

    name = model.rstrip("/").rpartition("/")[2]
    entries = yaml.safe_load(Path(__file__).with_name("conventions.yaml").read_text(encoding="utf-8"))
    families = {family: entry for entry in entries for family in entry["models"]}
    for family in sorted(families, key=len, reverse=True):  # a longer name is the more specific family
        pattern, entry = re.escape(family).replace(r"\-", "[-_ ]?").replace(r"\.", "[._]"), families[family]
        if re.match(pattern + r"(?![a-z0-9]|\.\d)", name, re.IGNORECASE):
            return dict(entry)
    return {}


def sent_size(size: Size, most: int, convention: Convention) -> Size:
    """Return the size in which a picture is sent: no side above `most` pixels, and nothing that the server resizes.

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
        sent: of the picture as the model saw it, if it was another. ValueError if the convention counts its pixels and
            it is missing.
    """
    if convention.name == "unit":
        return parse(text, sent or size)
    if convention.scale is None and sent is None:
        raise ValueError(f"{convention.name} counts pixels of the picture as sent: its size is needed")
    width, height = convention.units(sent or size)

    def read_fractions(part: str) -> list[Mention]:
        mentions = []
        for mention in convention.read(part):
            item = mention.item
            if isinstance(item, Point):
                item = Point(item.x / width, item.y / height)
            else:
                item = Box(item.x0 / width, item.y0 / height, item.x1 / width, item.y1 / height)
            mentions.append(replace(mention, item=item))
        return mentions

    return parse(text, size, read_fractions)


def write(text: str, convention: Convention, sent: Size) -> str:
    """Rewrite an answer in fractions, as training data hold it, in a convention; `read` is the inverse.

    The list of the final answer gets the convention's syntax; without a heading that is the first list of the text. A
    convention without boxes points to their centres. Coordinates elsewhere keep their brackets; all other words remain.

    Args:
        sent: of the picture as the model sees it, for conventions in pixels.
    """
    if convention.name == "unit":
        return text
    answer = _TUPLE_LIST.search(text, *(parse(text).answer_span or (0, len(text))))
    items = [mention.item for mention in find_points(answer[0])] if answer else []
    if answer is None or answer[0].count("(") != len(items) or not all(map(_is_fraction, items)):
        return _write_plain(text, convention, sent)
    listed = items if convention.box else [item.center for item in items]
    written = convention.write([convention.numbers(_coordinates(item), sent) for item in listed])
    before, behind = text[: answer.start()], text[answer.end() :]
    return _write_plain(before, convention, sent) + written + _write_plain(behind, convention, sent)


def _write_plain(text: str, convention: Convention, sent: Size) -> str:
    """Replace the numbers of each point and box in fractions; integers such as (1, 2) may be anything and remain."""
    parts, at = [], 0
    for mention in find_points(text):
        words = text[mention.start : mention.end]
        if not (_is_fraction(mention.item) and "." in words):
            continue
        values, name = [float(number) for number in _NUMBER.findall(words)], words.strip("\"'")[0].lower()
        swapped = name == "y" if name in "xy" else convention.swapped
        pairs = _in_order(values, name == "y")
        numbers = iter(_in_order(convention.numbers(pairs, sent), swapped))
        parts += [text[at : mention.start], _NUMBER.sub(lambda _: next(numbers), words)]  # noqa: B023
        at = mention.end
    return "".join([*parts, text[at:]])


def write_question(text: str, convention: Convention) -> str:
    """Replace the fixed sentence on the answer's format, if a human turn has one, by the convention's own request."""
    if convention.name == "unit":
        return text
    text = text.replace(POINTS_SUFFIX, convention.points)
    return text.replace(BOX_SUFFIX, convention.box or convention.points)


def write_turns(turns: Sequence[Turn], convention: Convention, sent: Size) -> list[Turn]:
    """Rewrite a training conversation; arguments as for `write`."""
    return [
        replace(turn, text=write_question(turn.text, convention))
        if turn.speaker == "human"
        else replace(turn, text=write(turn.text, convention, sent))
        for turn in turns
    ]


def foreign_syntax(text: str) -> str | None:
    """Return "JSON keys", "XML tags" or "numbers above 1" if these suggest that a text is not in fractions, else None."""
    if _KEYED.search(text):
        return "JSON keys"
    if _TAG.search(text):
        return "XML tags"
    return "numbers above 1" if _above_one(text) else None


def _above_one(text: str) -> bool:
    items = parse(text).points
    return any(max(_coordinates(item)[-2:]) > 1 for item in items)


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
    """Return the `convention` recorded with an answer (or the default), and the size of the picture as `sent` (or `size`).

    InputError, beginning with `where`, for a broken record.
    """
    name, sent = metadata.get("convention"), metadata.get("sent")
    is_size = isinstance(sent, list) and len(sent) == 2 and all(type(side) is int and side > 0 for side in sent)
    if name is None:
        return default, (sent[0], sent[1]) if is_size and sent else size
    if name not in CONVENTIONS or (CONVENTIONS[name].scale is None and not is_size):
        raise InputError(
            f'{where}: "convention" is {name!r} and "sent" is {sent!r}. Expected one of {", ".join(CONVENTIONS)}, '
            "and [width, height] of the picture as sent if the convention counts pixels"
        )
    return CONVENTIONS[name], (sent[0], sent[1]) if sent else size
