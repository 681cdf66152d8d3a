"""Import published benchmarks: find one by name, or turn its published files into a benchmark folder.

    trace-vlm benchmarks      # names, sizes, licences, score rules, which are here, the commands that fetch the others
    python -m trace.eval.published_benchmarks where2place --from DOWNLOADED.parquet --out datasets/where2place
    python -m trace.eval.published_benchmarks roborefit --from final_dataset/testA --out datasets/roborefit [--ids FILE]

To add a benchmark of your own, see `make_benchmark`; a name for it goes into benchmarks.yaml.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ..core.images import Region, open_image, open_region, rasterize_polygon
from ..core.points import Point, parse_points
from ..core.prompts import FORMAT_SENTENCE, YES_NO_SUFFIX, asks_yes_no
from ..core.records import Question, lone_surrogate, write_questions
from ..utils.command import InputError, Parser, existing_file, existing_folder, install_hint, run
from ..utils.files import escapes_folder, new_folder, read_json, sha256, write_json
from .rules import ALL_POINTS, FIRST_POINT, SHARE, YES_NO

QUESTION_FILE = "point_questions.jsonl"
DESCRIPTION = "suite.json"  # the folder's name, a note on its questions, its score rule, and how its masks are named
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PublishedBenchmark:
    """The facts about a benchmark that benchmarks.yaml states."""

    folder: str
    description: str
    questions: int
    hub: str = ""
    size: str = "not known"
    licence: str = "not stated"
    rule: str = SHARE
    unconfirmed: str = ""
    fetch: str = ""  # the command that downloads and imports it; "": it ships with the repository


_FACTS = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8"))
PUBLISHED = {name: PublishedBenchmark(**facts) for name, facts in _FACTS.items()}


def find_benchmark(name: str | Path) -> Path:
    """Return the folder of a benchmark given by name, folder or parquet file (unpacked beside itself, once).

    Names are looked for under $TRACE_DATASETS, datasets/ and data_samples/, in the current folder and the repository. If
    one is not there, the InputError says how to fetch it.
    """
    path = Path(name)
    if path.suffix == ".parquet":
        return unpack_parquet(path)
    if path.exists() or str(name) not in PUBLISHED:
        return path
    if folder := _local_folder(str(name)):
        return folder
    roots, fetch = ", ".join(map(str, _roots())), PUBLISHED[str(name)].fetch
    how = f"Fetch it with: {fetch}" if fetch else "A clone of the repository has it in data_samples/."
    raise InputError(f"the benchmark {name} is not in any of {roots}. {how}")


def _roots() -> list[Path]:
    own = [Path(os.environ["TRACE_DATASETS"])] if os.environ.get("TRACE_DATASETS") else []
    return [*own, *dict.fromkeys(root / part for root in (Path.cwd(), ROOT) for part in ("datasets", "data_samples"))]


def _local_folder(name: str) -> Path | None:
    folders = (root / PUBLISHED[name].folder for root in _roots())
    return next((folder for folder in folders if (folder / QUESTION_FILE).is_file()), None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="List the published benchmarks, or import one.", examples=__doc__)
    add = parser.add_argument
    add("name", nargs="?", choices=list(PUBLISHED), help="the benchmark to import")
    add("--from", dest="source", type=Path, nargs="+", help="the download: parquet files or a folder")
    add("--out", type=Path, help="the folder to write")
    add("--ids", type=Path, help="RoboRefIt: question ids to take, a JSON list or one per line")
    add("--count", type=int, default=750, help="RoboRefIt: questions to draw without --ids")
    add("--seed", type=int, default=0, help="RoboRefIt: seed of that draw")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.seed < 0:
        raise InputError(f"--count {arguments.count} must be at least 1 and --seed {arguments.seed} at least 0")
    if arguments.name is None:
        print(list_benchmarks())
        return 0
    if arguments.source is None or arguments.out is None:
        raise InputError(f"importing {arguments.name} needs --from (the download) and --out (the folder to write)")
    if arguments.name == "roborefit":
        count = from_roborefit(arguments.source[0], arguments.out, arguments.ids, arguments.count, arguments.seed)
    elif arguments.name == "point-bench":
        count = from_point_bench(arguments.source[0], arguments.out)
    else:
        count = from_parquet(arguments.source, arguments.out, arguments.name)
    print(f"{arguments.out}: {count} questions")
    return 0


def list_benchmarks() -> str:
    """Describe every published benchmark, with its folder here or the command that fetches it."""
    lines = []
    for name, known in PUBLISHED.items():
        facts = [f"{known.questions} questions", known.hub, f"size {known.size}", f"licence {known.licence}"]
        facts += [f"scored by {known.rule}", f"not confirmed: {known.unconfirmed}" * bool(known.unconfirmed)]
        folder = _local_folder(name)
        where = f"here: {folder}" if folder else f"not here. {known.fetch or 'clone the repository'}"
        lines.append(f"{name}: {known.description}\n  {'; '.join(filter(None, facts))}\n  {where}")
    return "\n".join([*lines, "", f"Any folder with images/, masks/ and {QUESTION_FILE} is a benchmark too."])


IDS, TEXTS = ("question_id", "id"), ("question", "prompt", "text", "problem")
CATEGORIES = ("question_type", "category", "category_type", "scene")
ROBOSPATIAL_COLUMNS = {"category", "question", "answer", "img", "mask"}
# How to get a region `[height, width]` for a picture of (width, height); None: the question has no mask.
RegionMaker = Callable[[tuple[int, int]], Region]
ImportedRow = tuple[Question, bytes, RegionMaker | None, str]  # with the bytes of the image, and their source


def unpack_parquet(path: Path) -> Path:
    """Return the benchmark folder beside a parquet file; written if it does not exist, never replaced."""
    path = existing_file(path, "the benchmark")
    folder = path.with_suffix("")
    if not (folder / QUESTION_FILE).is_file():
        from_parquet([path], folder, path.stem)
        return folder
    description = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    if description.get("unpacked") != {path.name: {"sha256": sha256(path)}}:
        raise InputError(
            f"{folder} was not unpacked from the present content of {path}. Remove or rename the folder to unpack the "
            "file again, or name the folder itself to use what it holds"
        )
    return folder


def from_parquet(paths: Sequence[Path], out: Path, name: str) -> int:
    """Write the folder `out` from parquet files, or those of a folder, and return the number of questions.

    The columns are those of FlagEval/Where2Place (question_id, question, question_type, image, mask), RefSpatial-Bench
    (id, prompt, image, mask, ...), Part-Affordance-2K (question_id, problem, category_type, image, mask) or RoboSpatial-Home
    (category, question, answer, img, depth_image, mask). An image is bytes or a record that holds them.
    """
    paths = [file for path in paths for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    unpacked = {path.name: {"sha256": sha256(existing_file(path, "the parquet file"))} for path in paths}
    description = {"name": name, "source": [path.name for path in paths], "unpacked": unpacked}
    return write_benchmark(out, _parquet_rows(paths), description)


def _parquet_rows(paths: Sequence[Path]) -> Iterator[ImportedRow]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # neither has types
    except ModuleNotFoundError:
        raise InputError(f"reading parquet needs pyarrow: {install_hint('train')}") from None
    number, numbers = 0, Counter[str]()
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        read = _robospatial_row if set(row) >= ROBOSPATIAL_COLUMNS else _parquet_row
                        yield read(row, f"{path}, row {number}", numbers)
                        number += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
            raise InputError(f"{path} cannot be read as parquet: {error}") from None


def _column(row: Mapping[str, Any], names: Sequence[str], kind: Any, expected: str, where: str) -> Any:
    present = [name for name in names if name in row]
    if not present:
        raise InputError(f"{where} has none of the columns {', '.join(names)}; it has {', '.join(row)}")
    name = next((name for name in present if row[name] is not None), present[0])
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool) or not str(value).strip():
        raise InputError(f"{where}: the column {name!r} must hold {expected} that is not empty, not {value!r}")
    return value


def _picture(row: Mapping[str, Any], name: str, where: str) -> bytes:
    value = row.get(name)
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise InputError(f"{where}, {name!r} holds no picture")
    return data


def _stored_region(mask: bytes, where: str) -> RegionMaker:
    return lambda size: open_region(mask, f"{where}, 'mask'")


def _parquet_row(row: Mapping[str, Any], where: str, numbers: Counter[str]) -> ImportedRow:
    question_id = _column(row, IDS, int | str, "an integer or a text", where)
    text = _column(row, TEXTS, str, "a text", where)
    category = next((row[name] for name in CATEGORIES if row.get(name)), None)
    scalars = {name: value for name, value in row.items() if isinstance(value, str | int | float) and value == value}
    meta = {name: value for name, value in scalars.items() if name not in {*CATEGORIES[:3], *IDS, *TEXTS}}
    question = Question(question_id, f"{question_id}.png", text, str(category) if category else None, meta)
    return question, _picture(row, "image", where), _stored_region(_picture(row, "mask", where), where), where


def _robospatial_row(row: Mapping[str, Any], where: str, numbers: Counter[str]) -> ImportedRow:
    """Read a row of RoboSpatial-Home: the answer is yes or no, or the corners of a polygon in fractions of the image."""
    category, text, answer = (_column(row, [name], str, "a text", where) for name in ("category", "question", "answer"))
    question_id, word = f"{category}-{numbers[category]}", answer.strip().casefold()
    numbers[category] += 1
    image, question = _picture(row, "img", where), Question(question_id, f"{question_id}.png", text.strip(), category)
    if word in ("yes", "no"):
        text = question.text if asks_yes_no(text) else f"{question.text} {YES_NO_SUFFIX}"
        return replace(question, text=text, meta={"rule": YES_NO, "answer": word}), image, None, where
    corners = parse_points(answer)
    polygon = [(corner.x, corner.y) for corner in corners if isinstance(corner, Point)]
    if not 3 <= len(polygon) == len(corners):
        raise InputError(f"{where}: the answer must be yes, no, or three or more corners [(x, y), ...], not {answer!r}")
    text = FORMAT_SENTENCE.split(question.text)[0]  # each model is asked for its own format of points
    meta = {"rule": FIRST_POINT, "polygon": polygon, "suffix": question.text[len(text) :]}
    return replace(question, text=text.strip(), meta=meta), image, lambda size: rasterize_polygon(polygon, size), where


def _file(folder: Path, names: Sequence[str], where: str) -> bytes:
    """Return the content of the first of `names` below `folder`."""
    inside = (folder / name for name in names if not escapes_folder(name))
    try:
        return next(path for path in inside if path.is_file()).read_bytes()
    except (StopIteration, OSError):  # a name may be longer than a file's can be
        raise InputError(f"{where} names {names[0]}, which is not below {folder}") from None


def _records(path: Path, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Read a JSON list of questions, in each of which `names` are texts."""
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path} is not a list of questions")
    for index, record in enumerate(records):
        for name in names:
            if not isinstance(record, Mapping) or not isinstance(record.get(name), str) or not record[name]:
                raise InputError(f'{path}, question {index}: "{name}" is missing')
    return records


def from_point_bench(folder: Path, out: Path) -> int:
    """Write the folder `out` from the unzipped download of Point-Bench and return the number of questions.

    A mask of another size than its picture is scaled to it, by the nearest pixel; the benchmark's note counts them.
    """
    source = existing_file(folder / "data.json", "the list of Point-Bench's questions")

    def rows() -> Iterator[ImportedRow]:
        for number, record in enumerate(_records(source, ("image_filename", "user_input", "category"))):
            if "mask_filename" not in record:  # the authors leave these out
                continue
            where, category, count = f"{source}, question {number}", record["category"], record.get("count", 1)
            images, masks = ([f"selected_{kind}s/{name}/{record[f'{kind}_filename']}" for name in (category, ".")]
                             for kind in ("image", "mask"))  # fmt: skip
            if type(count) is not int or count < 1:
                raise InputError(f'{where}: "count" must be an integer of at least 1, not {count!r}')
            meta = {"rule": ALL_POINTS, "count": count} if category == "counting" else {"rule": FIRST_POINT}
            question = Question(number, f"{number}.png", record["user_input"].strip(), category, meta)
            yield question, _file(folder, images, where), _stored_region(_file(folder, masks, where), where), where

    return write_benchmark(out, rows(), {"name": "point-bench", "source": [source.name]}, scale_masks=True)


RoboRefItEntry = tuple[Any, str, str, str]  # number, text, image, mask


def from_roborefit(folder: Path, out: Path, ids: Path | None = None, count: int = 750, seed: int = 0) -> int:
    """Write the folder `out` from a split of RoboRefIt (testA) and return the number of questions.

    `ids` is a file of the questions to take, by number (`num`, or their index) or by image name. Without it, `count`
    questions about different images are drawn with `seed`, and the benchmark's note says so.
    """
    folder = existing_folder(folder, "the split of RoboRefIt")
    lists = sorted(folder.glob("*.json"))
    if len(lists) != 1:
        raise InputError(f"{folder} must hold one JSON list of its questions, not {len(lists)}")
    entries: list[RoboRefItEntry] = []
    for index, record in enumerate(_records(lists[0], ("text", "rgb_path", "mask_path"))):
        image, mask = (record[name].replace("\\", "/") for name in ("rgb_path", "mask_path"))
        entries.append((record.get("num", index), record["text"], image, mask))
    if ids is not None:
        listed = existing_file(ids, "the list of ids").read_text(encoding="utf-8", errors="replace")
        wanted = list(map(str, read_json(ids))) if listed.lstrip().startswith("[") else listed.split()
        known = {PurePosixPath(entry[2]).stem: entry for entry in reversed(entries)}  # the first about each image
        known |= {str(entry[0]): entry for entry in entries}
        if unknown := [name for name in wanted if name not in known]:
            raise InputError(f"{ids} names the question {unknown[0]!r}, which is not among the {len(entries)}")
        chosen, note = [known[name] for name in dict.fromkeys(wanted)], f"the questions of {ids.name}"
    else:
        first: dict[str, int] = {}  # image -> the question drawn about it
        for index in np.random.default_rng(seed).permutation(len(entries)):
            first.setdefault(entries[index][2], int(index))
        chosen = [entries[index] for index in sorted(list(first.values())[:count])]
        note = f"{len(chosen)} questions drawn with seed {seed}: not the authors' subset"

    def picture(name: str, where: str) -> bytes:
        parts = PurePosixPath(name).parts  # the list's paths begin at the parent of the whole data set
        return _file(folder, ["/".join(parts[start:]) for start in range(len(parts))], where)

    def rows() -> Iterator[ImportedRow]:
        for number, text, image, mask in chosen:
            where = f"{lists[0]}, question {number}"
            text = f"Point to {text.strip().rstrip('.')}."
            question = Question(number, f"{number}.png", text, None, {"source": image})
            yield question, picture(image, where), _stored_region(picture(mask, where), where), where

    return write_benchmark(out, rows(), {"name": "roborefit", "note": note, "source": [lists[0].name]})


def write_benchmark(
    out: Path, rows: Iterator[ImportedRow], description: Mapping[str, Any], scale_masks: bool = False
) -> int:
    """Write a benchmark folder completely or not at all; pictures of the same bytes become one file.

    Args:
        scale_masks: a mask of another size than its picture is scaled to it and counted in the note, instead of refused.
    """
    scaled = 0
    with new_folder(out) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        image_files: dict[str, str] = {}  # hash of an image -> its file
        questions: list[Question] = []
        for question, image, make_region, where in rows:
            name = question.image
            usable = type(question.question_id) in (int, str) and not (lone_surrogate(name) or escapes_folder(name))
            if not usable or name != PurePosixPath(name).name or name[0] == "." or len(name.encode()) > 255:
                raise InputError(f"{where}: the id {question.question_id!r} cannot be a file name")
            picture = open_image(image, f"{where}, 'image'")
            region = None if make_region is None else make_region(picture.size)
            if region is not None and region.shape != (picture.height, picture.width):
                if not scale_masks:
                    raise InputError(
                        f"the mask of question {question.question_id} is {region.shape[1]} x {region.shape[0]} pixels, "
                        f"its image {picture.width} x {picture.height}: {where}"
                    )
                region = np.asarray(Image.fromarray(region).resize(picture.size, Image.Resampling.NEAREST))
                scaled += 1
            if region is not None and not region.any() and not question.meta.get("absent"):
                raise InputError(f"the mask of question {question.question_id} is empty: {where}")
            name = image_files.setdefault(hashlib.sha256(image).hexdigest(), question.image)
            if name == question.image:
                picture.save(folder / "images" / name)
            if region is not None:
                Image.fromarray(region.astype(np.uint8) * 255).save(folder / "masks" / f"{question.question_id}.png")
            questions.append(replace(question, image=name))
        if len({str(question.question_id) for question in questions}) < len(questions):
            raise InputError(f"two questions of {', '.join(description['source'])} have the same id")
        if not questions:
            raise InputError(f"{', '.join(description['source'])}: there are no questions in it")
        write_questions(folder / QUESTION_FILE, questions)
        # An image is named after the first question about it, so image names must not be used to find masks.
        note = {"note": f"masks scaled to the size of their pictures: {scaled}"} if scaled else {}
        write_json(folder / DESCRIPTION, {**description, **note, "masks": "question"})
    return len(questions)


if __name__ == "__main__":
    raise SystemExit(run(main))
