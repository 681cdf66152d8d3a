"""One's own points: a CSV or JSONL beside the images, in fractions of the image or in pixels.

    image,instruction,x,y                  one line a point; lines of the same image and instruction are one sample
    kitchen.jpg,Point to the mug.,0.41,0.62

    {"image": "kitchen.jpg", "instruction": "Point to the mug.", "points": [[0.41, 0.62], [0.43, 0.60]]}

Pixels are columns `x_px,y_px`, or `points_px`, counted in the picture as people see it (turned by its EXIF). An `id` is
optional; any further column or key goes to `meta`, such as `mask`, which `check` compares with the points.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.images import Images, image_size
from ...core.points import Point, format_points
from ...core.prompts import IMAGE_TAG, question_text
from ...core.records import Sample, Turn, lone_surrogate
from ...utils.command import InputError
from ...utils.files import read_jsonl
from .sample_checks import Problem, ProblemKind

SUFFIXES = (".csv", ".jsonl")
_KNOWN = ("id", "image", "instruction", "x", "y", "x_px", "y_px", "points", "points_px")


def points_file(path: Path) -> Path:
    """The CSV or JSONL itself, or the only one in a folder."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} must be a .csv or .jsonl file")
        return path
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.name.count(".") == 1]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{path} must hold one .csv or .jsonl file of points, found {names}; name the file itself")
    return files[0]


def read_points(path: Path, images: Images) -> Iterator[tuple[str, Sample | Problem]]:
    """(where, sample) in the file's order; an id is `FILE/NUMBER` unless it is given."""
    rows = csv_rows(path) if path.suffix.lower() == ".csv" else ((line, row, "") for line, row in read_jsonl(path))
    for number, (line, row, contradiction) in enumerate(rows, start=1):
        where = f"{path}, line {line}"
        identifier = f"{path.stem}/{number}" if row.get("id") in (None, "") else str(row["id"])
        try:
            if contradiction:
                raise UnusableRow("record", f"{where}: {contradiction}")
            yield where, _sample(identifier, row, where, images)
        except UnusableRow as problem:
            yield where, Problem(identifier, problem.kind, str(problem))


class UnusableRow(InputError):
    def __init__(self, kind: ProblemKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """One row a sample, its points from all lines of the same image, instruction and id, and what contradicts it."""
    samples: dict[tuple[str, ...], tuple[int, dict[str, Any], str]] = {}
    content = path.read_bytes()
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        columns = [name.strip() for name in next(reader, [])]
        unit = next((unit for unit in ("", "_px") if {f"x{unit}", f"y{unit}"} <= set(columns)), None)
        if unit is None or not {"image", "instruction"} <= set(columns):
            hint = ". Separate columns by commas" if len(columns) == 1 else ""
            raise InputError(
                f"{path}: the first line must name the columns image, instruction, x, y (or x_px, y_px for pixels), "
                f"found {', '.join(columns) or 'nothing'}{hint}"
            )
        for cells in reader:
            row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
            if not any(row.values()):
                continue
            line = reader.line_num
            if len(cells) > len(columns):
                many = f"{path}, line {line} has {len(cells)} values for {len(columns)} columns"
                raise InputError(f"{many}. Put a text with commas between double quotes")
            key = (row.get("image", ""), row.get("instruction", ""), row.get("id", ""))
            first, sample, contradiction = samples.get(key) or (line, {**row, f"points{unit}": []}, "")
            sample[f"points{unit}"].append([row.get(f"x{unit}"), row.get(f"y{unit}")])
            for name in ("mask", "kind", "category"):
                if not contradiction and (value := row.get(name)) and value != sample.get(name):
                    contradiction = (
                        f"the {name} is {sample.get(name) or 'empty'}, but {value} in line {line} of the same image and "
                        f"instruction; give all lines of a sample one {name}, or two samples an id each"
                    )
            samples[key] = first, sample, contradiction
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} cannot be read as CSV: {error}") from None
    yield from samples.values()


def row_points(row: Mapping[str, Any], where: str, images: Images) -> list[tuple[float, float]]:
    """Return the points of a row in fractions of its image, after its image, instruction and numbers were checked."""
    for key in ("image", "instruction"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UnusableRow("record", f'{where}: "{key}" is missing or empty')
        if half := lone_surrogate(row[key]):
            raise UnusableRow("record", f'{where}: "{key}" holds half a character ({half!r})')
    key = "points_px" if "points_px" in row else "points"
    given, pairs = row.get(key) or (), []
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UnusableRow("points", f'{where}: "{key}" must be pairs of numbers [[x, y], ...], not {given!r}')
    for number, pair in enumerate(given, start=1):
        try:
            x, y = map(float, pair)
        except (TypeError, ValueError, OverflowError):
            raise UnusableRow("points", f"{where}: point {number} is {pair!r}, not two numbers x, y") from None
        pairs.append((x, y))
    if not pairs or not all(math.isfinite(value) for pair in pairs for value in pair):
        raise UnusableRow("points", f"{where}: there are no points, or some are not finite")
    width, height = 1, 1
    if key == "points_px":
        if trouble := images.problem(row["image"]):
            raise UnusableRow("image missing", f"{where}: {trouble}")
        try:
            width, height = image_size(images.path(row["image"]))
        except InputError as error:
            raise UnusableRow("image broken", f"{where}: {error}") from None
        if all(value <= 1 for pair in pairs for value in pair) and any(value % 1 for pair in pairs for value in pair):
            raise UnusableRow(
                "points", f"{where}: all values are below 1; fractions go into x, y (CSV) or points (JSONL)"
            )
    for number, (x, y) in enumerate(pairs, start=1):
        if not (0 <= x <= width and 0 <= y <= height):
            inside = "0 to 1; pixels go into x_px, y_px (CSV) or points_px (JSONL)"
            if key == "points_px":
                inside = f"{row['image']}, {width} x {height} pixels"
                inside += "; are x and y swapped?" if 0 <= y <= width and 0 <= x <= height else ""
            raise UnusableRow("points", f"{where}: point {number}, ({x:g}, {y:g}), is outside of {inside}")
    return [(x / width, y / height) for x, y in pairs]


def _sample(identifier: str, row: Mapping[str, Any], where: str, images: Images) -> Sample:
    pairs = row_points(row, where, images)
    turns = (
        Turn("human", f"{IMAGE_TAG}\n{question_text(row['instruction'], reasoning=False)}"),
        Turn("gpt", format_points(Point(x, y) for x, y in pairs)),
    )
    meta = {key: value for key, value in row.items() if key not in _KNOWN and value not in ("", None)}
    return Sample(identifier, row["image"], turns, meta)
