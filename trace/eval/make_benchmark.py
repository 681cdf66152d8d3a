"""Make a benchmark of your own from annotations, a CSV, the JSON files of LabelMe or one of COCO, and a training set.

    trace-vlm make-benchmark questions.csv --images photos --out datasets/mine
    trace-vlm make-benchmark questions.csv --images photos --out datasets/mine --train mine.json --held-out 0.2
    trace-vlm make-benchmark labelme_folder --images photos --out datasets/mine --instruction "Point to the {label}."

The CSV is that of `data.sources.own_points`, one line a point. Its column `kind` says what the points of a question are:
point (a disc of --radius around each; the default), box (two opposite corners), polygon (its corners in order) or none
(nothing is there; x and y are empty). Shapes of one label in one picture are one question. All coordinates are those of
the upright picture. With --train, a share of the pictures makes the benchmark, the others training samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..core.absence import format_none
from ..core.images import Images, Region, image_size, open_image, open_region, rasterize_polygon
from ..core.points import Point, format_points
from ..core.prompts import FORMAT_SENTENCE, IMAGE_TAG, question_text
from ..core.records import Question, Sample, Turn, write_samples
from ..data.cor.instruction_parser import asks_for_free_space
from ..data.sources.own_points import csv_rows, row_points
from ..drawing.contact_sheet import Tile, draw_contact_sheet
from ..utils.command import InputError, Parser, existing_file, existing_folder, run
from ..utils.files import read_json
from .benchmark import open_benchmark
from .published_benchmarks import ImportedRow, RegionMaker, write_benchmark

RADIUS = 0.02  # of the disc around a point, in units of the picture's longer side
COUNTS = (5, 3, 1)  # points of a training sample: the first number for which the region has room
DECIMALS, INTERIOR = 3, 2.0  # of the points, and how much they keep to the middle of a region
NOTHING = "there is no such thing in the picture."
NONE = "none"  # kind of a question about what is not there
INSTRUCTION = "Point to the {label}."
RUNS = "runs"  # kind of COCO's run-length masks
KINDS = {"point": 1, "box": 2, "polygon": 3, NONE: 0, RUNS: 0}  # and how many points each needs at least
HELD_OUT = 0.2  # share of the pictures in the benchmark
SHEET, ON_SHEET, COLUMNS = "contact_sheet.png", 48, 6
Labelled = tuple[Question, list[RegionMaker], str]  # with the file and line or number of its first annotation


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Make a benchmark from annotations.", examples=__doc__)
    add = parser.add_argument
    add("annotations", type=Path, nargs="+", help="a CSV, a COCO JSON file, or LabelMe JSON files or their folder")
    add("--images", type=Path, required=True, help="the folder of the pictures")
    add("--out", type=Path, required=True, help="the folder to write")
    add("--radius", type=float, default=RADIUS, help="of the disc around a point, in the picture's longer sides")
    add("--instruction", default=INSTRUCTION, help="question about a label of LabelMe or COCO, with {label}")
    add("--train", type=Path, help="training file to write, about the pictures that are not held out")
    add("--held-out", type=float, help=f"with --train: share of the pictures in the benchmark (default: {HELD_OUT})")
    add("--seed", type=int, default=0, help="with --train: of the choice of pictures and points")
    arguments = parser.parse_args(argv)
    held_out = HELD_OUT if arguments.held_out is None else arguments.held_out
    if not 0 < held_out < 1 or arguments.seed < 0:
        raise InputError(f"--held-out {held_out} must be between 0 and 1, --seed at least 0")
    if arguments.train is None and arguments.held_out is not None:
        raise InputError("--held-out needs --train, the file of the samples about the other pictures")
    if arguments.train is not None and arguments.train.exists():
        problem = f"{arguments.train} exists, for a benchmark whose pictures another split would train on"
        raise InputError(f"{problem}. Remove this file, that benchmark and answers to it, or give both other names")
    if not 0 < arguments.radius < 1 or "{label}" not in arguments.instruction:
        raise InputError(f"--radius {arguments.radius} must be between 0 and 1, and --instruction must hold {{label}}")
    images = Images(existing_folder(arguments.images, "the picture folder"))
    labelled = _read_questions(arguments.annotations, images, arguments.instruction, arguments.radius)
    others: list[Labelled] = []
    if arguments.train is not None:
        labelled, others = _split(labelled, held_out, arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    samples = [_sample(*one, images, rng) for one in others]  # before anything is written: a mistake shows here
    rows: Iterator[ImportedRow] = (
        (question, images.path(str(question.meta["source"])).read_bytes(),
         partial(_union, parts), f"{where}, {question.meta['source']}")
        for question, parts, where in labelled
    )  # fmt: skip
    description = {"name": arguments.out.name, "source": [path.name for path in arguments.annotations]}
    count = write_benchmark(arguments.out, rows, description)
    draw_contact_sheet(_tiles(arguments.out), arguments.out / SHEET, COLUMNS)
    print(f"{arguments.out}: {count} questions; look at {arguments.out / SHEET}")
    if arguments.train is not None:
        write_samples(arguments.train, samples)
        print(f"{arguments.train}: {len(samples)} samples about {len({one.image for one in samples})} other pictures")
    return 0


def _split(labelled: list[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Return the questions about held-out pictures, and those about the others; InputError if either has none."""
    pictures = sorted({str(question.meta["source"]) for question, *_ in labelled})
    if len(pictures) < 2:
        raise InputError("holding out pictures needs at least two of them. Leave out --train")
    count = min(max(1, round(share * len(pictures))), len(pictures) - 1)
    held_out = set(np.random.default_rng(seed).permutation(pictures)[:count].tolist())
    parts = [[one for one in labelled if (one[0].meta["source"] in held_out) == held] for held in (True, False)]
    return parts[0], parts[1]


def _sample(
    question: Question, parts: list[RegionMaker], where: str, images: Images, rng: np.random.Generator
) -> Sample:
    """Return a training sample whose answer is points in the middle of the question's region, or that nothing is there."""
    from ..data.scenes.questions.view import sample_points  # imports scipy, which no --help has to wait for

    source = str(question.meta["source"])
    answer = format_none(NOTHING)
    if not question.meta.get("absent"):
        region = _union(parts, image_size(images.path(source)))
        if not region.any():
            raise InputError(f"{where}: the region has no pixel")
        drawn = (sample_points(region, count, DECIMALS, INTERIOR, rng) for count in COUNTS)
        points = next(filter(None, drawn), None)
        if points is None:
            raise InputError(f"{where}: the region is too small for a point of {DECIMALS} decimals")
        answer = format_points((Point(x, y) for x, y in points), DECIMALS)
    asked = Turn("human", f"{IMAGE_TAG}\n{question_text(question.text, reasoning=False)}")
    meta = {"task": "free_space" if asks_for_free_space(question.text) else "object_reference"}
    meta |= {"category": question.category} if question.category else {}
    return Sample(str(question.question_id), source, (asked, Turn("gpt", answer)), meta)


def _read_questions(paths: Sequence[Path], images: Images, instruction: str, radius: float) -> list[Labelled]:
    questions: dict[tuple[str, str, str], Labelled] = {}
    names: dict[str, str] = {}  # question id -> where it was given
    for where, row in _read_rows(paths):
        kind, label, given = row.get("kind") or "point", row.get("category"), "points_px"
        label = str(label) if label not in (None, "") else None
        given = given if given in row else "points"
        if kind not in KINDS or (kind == RUNS) != isinstance(row.get(RUNS), Mapping):
            known = ", ".join(name for name in KINDS if name != RUNS)
            raise InputError(f"{where}: there is no kind {kind!r}. Known: {known}. Draw another shape as a polygon")
        if kind == NONE and any(map(any, row[given])):
            raise InputError(f"{where}: kind none has no points. Leave x and y empty")
        row = {"instruction": instruction.replace("{label}", str(label)), **row}
        points = row_points({**row, given: [(0, 0)]} if kind in (NONE, RUNS) else row, where, images)
        if len(points) < KINDS[kind] or (kind == "box" and len(points) > 2):
            raise InputError(f"{where}: a {kind} needs {KINDS[kind]} points, not {len(points)}")
        upright = image_size(images.path(row["image"]))
        annotated = row.get("width") or upright[0], row.get("height") or upright[1]
        if annotated != upright:
            sizes = "{} x {} pixels, upright it has {} x {}".format(*annotated, *upright)
            raise InputError(f"{where}: {row['image']} was annotated as {sizes}")
        key = (row["image"], row["instruction"], str(row.get("id") or ""))
        if key not in questions:
            name = row.get("id") or len(questions) + 1
            if (first := names.setdefault(str(name), where)) != where:
                raise InputError(f"{where}: the id {name} is that of {first} already. Give each question its own")
            meta = {"source": row["image"], **({"absent": True} if kind == NONE else {})}
            questions[key] = Question(name, f"{name}.png", row["instruction"].strip(), label, meta), [], where
        questions[key][1].append(partial(_region, kind, points, radius, row.get(RUNS), where))
    if not questions:
        raise InputError(f"{', '.join(map(str, paths))}: there are no annotations")
    return list(questions.values())


def _read_rows(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of every format in the form of a CSV's row; a LabelMe or COCO shape is a row."""
    for path in (file for given in paths for file in (sorted(given.glob("*.json")) if given.is_dir() else [given])):
        if existing_file(path, "the annotations").suffix.lower() == ".csv":
            for line, row, contradiction in csv_rows(path):
                if contradiction:
                    raise InputError(f"{path}, line {line}: {contradiction}")
                yield f"{path}, line {line}", row
            continue
        content = read_json(path, "the annotations")
        if not isinstance(content, dict) or not {"shapes", "annotations"} & set(content):
            raise InputError(f'{path} is neither of LabelMe ("shapes") nor of COCO ("annotations")')
        try:
            for part, row in _labelme_rows(content) if "shapes" in content else _coco_rows(content):
                yield f"{path}, {part}", row
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path}: {error} is missing or wrong in the annotations") from None


def _labelme_rows(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    image = PurePosixPath(content["imagePath"].replace("\\", "/")).name
    size = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
    for index, shape in enumerate(content["shapes"], start=1):
        kind = shape.get("shape_type", "polygon").replace("rectangle", "box")
        if kind in (NONE, RUNS):
            raise ValueError(f"the shape type {kind!r}")
        yield f"shape {index}", {"image": image, "category": shape["label"], "kind": kind,
                                 "points_px": shape["points"], **size}  # fmt: skip


def _coco_rows(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    pictures = {picture["id"]: picture for picture in content["images"]}
    for entry in content["annotations"]:
        where, parts = f"annotation {entry['id']}", entry.get("segmentation")
        for key, known in (("image_id", pictures), ("category_id", names)):
            if entry[key] not in known:
                raise ValueError(f"{key} {entry[key]} of {where}")
        picture = pictures[entry["image_id"]]
        row = {name: picture.get(name) for name in ("width", "height")}
        row |= {"image": picture["file_name"], "category": names[entry["category_id"]]}
        if isinstance(parts, Mapping):
            yield where, row | {"kind": RUNS, RUNS: parts}
            continue
        if not parts:
            x, y, width, height = entry["bbox"]
            parts = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        for part in parts:
            yield where, row | {"kind": "polygon", "points_px": list(zip(part[::2], part[1::2], strict=False))}


def _union(parts: Sequence[RegionMaker], size: tuple[int, int]) -> Region:
    union: Region = np.any([part(size) for part in parts], axis=0)
    return union


def _region(
    kind: str, points: list[tuple[float, float]], radius: float, runs: Mapping[str, Any] | None, where: str,
    size: tuple[int, int],
) -> Region:  # fmt: skip
    """Return the region `[height, width]` of a shape in a picture of `size` (width, height)."""
    y, x = np.ogrid[: size[1], : size[0]]
    if runs is not None:
        try:
            rle = import_module("pycocotools.mask")
        except ModuleNotFoundError:
            raise InputError(f"{where}: run lengths need pycocotools. Install it: pip install pycocotools") from None
        counts = runs.get("counts")
        fits = isinstance(counts, str)
        if isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
            fits = sum(counts) == size[0] * size[1]
        if runs.get("size") != [size[1], size[0]] or not fits:
            raise InputError(f"{where}: the run lengths are not those of a picture of {size[0]} x {size[1]} pixels")
        packed = runs if isinstance(counts, str) else rle.frPyObjects(runs, *runs["size"])
        return np.asarray(rle.decode(packed), np.bool_)
    if kind in ("point", NONE):
        pixels = [pixel for point in points if kind == "point" and (pixel := Point(*point).to_pixel(*size))]
        discs = [np.hypot(x - column, y - row) <= radius * max(size) for column, row in pixels]
        return np.any([np.zeros(size[::-1], np.bool_), *discs], axis=0)
    if kind == "box":
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return rasterize_polygon(points, size)


def _tiles(folder: Path) -> Iterator[Tile]:
    """The first questions of a benchmark with their regions."""
    benchmark = open_benchmark(folder).first(ON_SHEET)
    for question in benchmark.questions:
        mask = benchmark.masks.get(str(question.question_id))
        truth = "(nothing there)" if question.meta.get("absent") else question.meta.get("answer", "")
        caption = f"{question.question_id}: {FORMAT_SENTENCE.split(question.text)[0]} {truth}"
        region = None if mask is None else open_region(mask)
        yield Tile(open_image(benchmark.image_path(question)), caption, mask=region)


if __name__ == "__main__":
    raise SystemExit(run(main))
