"""One's own points: a CSV or JSONL beside the images, in fractions of the image or in pixels.

    image,instruction,x,y                  one line a point; lines of the same image and instruction are one sample
    kitchen.jpg,Point to the mug.,0.41,0.62

    {"image": "kitchen.jpg", "instruction": "Point to the mug.", "points": [[0.41, 0.62], [0.43, 0.60]]}

Pixels are columns `x_px,y_px`, or `points_px`, counted in the picture as people see it (turned by its EXIF). An `id` is
optional; any further column or key goes to the sample's `meta` (so does `mask`, the ground-truth region as a picture,
which `check` compares with the points).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.images import Images, image_size
from ...core.points import Point, format_points
from ...core.prompts import IMAGE_TAG, question_text
from ...core.records import Sample, Turn, lone_surrogate
from ...utils.command import InputError
from ...utils.files import read_jsonl
from .problems import BROKEN, MISSING, POINTS, RECORD, Problem

SUFFIXES = (".csv", ".jsonl")
_KNOWN = ("id", "image", "instruction", "x", "y", "x_px", "y_px", "points", "points_px")


def points_file(path: Path) -> Path:
    """The CSV or JSONL itself, or the only one in a folder."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} must be a .csv or .jsonl file")
        return path
    found = [one for one in sorted(path.iterdir()) if one.suffix.lower() in SUFFIXES and one.name.count(".") == 1]
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise InputError(f"{path} must hold one .csv or .jsonl file of points, found {names}; name the file itself")
    return found[0]


def read_points(path: Path, images: Images) -> Iterator[tuple[str, Sample | Problem]]:
    """(where, sample) in the file's order, an id being `FILE/NUMBER` unless it is given."""
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    for number, (line, row, contradiction) in enumerate(rows, start=1):
        where = f"{path}, line {line}"
        given = row.get("id")
        identifier = f"{path.stem}/{number}" if given in (None, "") else str(given)
        if contradiction is not None:
            yield where, Problem(identifier, RECORD, f"{where}: {contradiction}")
        else:
            yield where, _sample(identifier, row, where, images)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], None]]:
    for line, row in read_jsonl(path):
        yield line, row, None


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """One row a sample, its points from all lines of the same image, instruction and id, and what contradicts it."""
    gathered: dict[tuple[str, ...], tuple[int, dict[str, Any], str | None]] = {}
    line = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            columns = [name.strip() for name in next(reader, [])]
            unit = _unit(columns, path)
            for cells in reader:
                line = reader.line_num
                row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
                if not any(row.values()):
                    continue
                key = (row.get("image", ""), row.get("instruction", ""), row.get("id", ""))
                first, sample, contradiction = gathered.get(key) or (line, {**row, f"points{unit}": []}, None)
                sample[f"points{unit}"].append([row.get(f"x{unit}"), row.get(f"y{unit}")])
                gathered[key] = first, sample, contradiction or _contradiction(sample, row, line)
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_undecodable(path)} is not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {line} cannot be read as CSV: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    yield from gathered.values()


def _contradiction(sample: Mapping[str, Any], row: Mapping[str, str], line: int) -> str | None:
    """Why a further line cannot belong to the sample: its points lie in another region."""
    mask = row.get("mask")
    if not mask or mask == sample.get("mask"):
        return None
    return (
        f"the mask is {sample.get('mask') or 'empty'}, but {mask} in line {line} of the same image and instruction; "
        "give all lines of a sample one mask, or two samples an id each"
    )


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8: the reader itself is a block ahead of what it gives."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _unit(columns: list[str], path: Path) -> str:
    """The suffix of the coordinate columns: "" for fractions, "_px" for pixels."""
    unit = next((suffix for suffix in ("", "_px") if {f"x{suffix}", f"y{suffix}"} <= set(columns)), None)
    if unit is None or not {"image", "instruction"} <= set(columns):
        raise InputError(
            f"{path}: the first line must name the columns image, instruction, x, y (or x_px, y_px for pixels), "
            f"found {', '.join(columns) or 'nothing'}"
        )
    return unit


def _sample(identifier: str, row: Mapping[str, Any], where: str, images: Images) -> Sample | Problem:
    name, instruction = row.get("image"), row.get("instruction")
    for key, value in (("image", name), ("instruction", instruction)):
        if not isinstance(value, str) or not value.strip():
            return Problem(identifier, RECORD, f'{where}: "{key}" is missing or empty')
        if half := lone_surrogate(value):
            return Problem(identifier, RECORD, f'{where}: "{key}" holds half a character ({half!r})')
    assert isinstance(name, str) and isinstance(instruction, str)
    given = "points_px" if "points_px" in row else "points"
    try:
        pairs = [(float(x), float(y)) for x, y in row.get(given) or ()]
    except (TypeError, ValueError, OverflowError):
        return Problem(
            identifier, POINTS, f'{where}: "{given}" must be pairs of numbers [[x, y], ...], not {row[given]!r}'
        )
    if not pairs or not all(math.isfinite(value) for pair in pairs for value in pair):
        return Problem(identifier, POINTS, f"{where}: there are no points, or some are not finite")
    if given == "points_px":
        size = _size(identifier, name, images)
        if isinstance(size, Problem):
            return size
        pairs = [(x / size[0], y / size[1]) for x, y in pairs]
    outside = next((pair for pair in pairs if not all(0 <= value <= 1 for value in pair)), None)
    if outside is not None:
        hint = "" if given == "points_px" else "; pixels go into x_px, y_px (CSV) or points_px (JSONL)"
        return Problem(identifier, POINTS, f"{where}: {outside} is outside the image{hint}")
    turns = (
        Turn("human", f"{IMAGE_TAG}\n{question_text(instruction, reasoning=False)}"),
        Turn("gpt", format_points(Point(x, y) for x, y in pairs)),
    )
    meta = {key: value for key, value in row.items() if key not in _KNOWN and value not in ("", None)}
    return Sample(identifier, name, turns, meta)


def _size(identifier: str, name: str, images: Images) -> tuple[int, int] | Problem:
    path = images.find(name)
    if path is None:
        return Problem(identifier, MISSING, images.problem(name) or name)
    try:
        return image_size(path)
    except InputError as error:
        return Problem(identifier, BROKEN, str(error))
