"""Import published benchmarks: find one by name, or turn its published files into a benchmark folder.

    python -m trace.eval.published_benchmarks      # the names, which are here, and the commands that fetch the others
    python -m trace.eval.published_benchmarks where2place --from DOWNLOADED.parquet --out datasets/where2place
    python -m trace.eval.published_benchmarks roborefit --from final_dataset/testA --out datasets/roborefit [--ids FILE]

To add a benchmark of your own, write a folder as `benchmark` describes it; a name for it goes into PUBLISHED.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..core.images import open_image, open_region
from ..core.records import Question, write_questions
from ..utils.command import InputError, Parser, existing_file, existing_folder, install_hint, run
from ..utils.files import new_folder, read_json, sha256, write_json

QUESTION_FILE = "point_questions.jsonl"
DESCRIPTION = "suite.json"  # the folder's name, a note on its questions, and what its masks are named after
ROOT = Path(__file__).resolve().parents[2]


class PublishedBenchmark(NamedTuple):
    folder: str
    description: str
    fetch: str  # the command that downloads it; "": it ships with the repository


IMPORT = "python -m trace.eval.published_benchmarks"
PUBLISHED = {
    "where2place": PublishedBenchmark(
        "where2place", "Where2Place: 100 images, free space and objects; category unseen is its hard part",
        "hf download wentao-yuan/where2place --repo-type dataset --local-dir datasets/where2place",
    ),
    "roborefit": PublishedBenchmark(
        "roborefit", "RoboRefIt as RoboPoint scores it: points inside the object's mask, 750 images",
        "gdown 1pdGF1HaU_UiKfh5Z618hy3nRjVbq_VuW -O datasets/downloads/roborefit.zip && "
        f"unzip datasets/downloads/roborefit.zip -d datasets/downloads && {IMPORT} roborefit "
        "--from datasets/downloads/final_dataset/testA --out datasets/roborefit",
    ),
    **{
        f"refspatial-{part}": PublishedBenchmark(
            f"refspatial/{part}", f"RefSpatial-Bench, {part}: {count} questions",
            "hf download BAAI/RefSpatial-Bench --repo-type dataset --local-dir datasets/downloads/refspatial && "
            f"{IMPORT} refspatial-{part} --from datasets/downloads/refspatial/data/{part}-*.parquet "
            f"--out datasets/refspatial/{part}",
        )
        for part, count in (("location", 100), ("placement", 100), ("unseen", 77))
    },
    "tabletop": PublishedBenchmark("tabletop", "TableTop: rendered tables with exact masks", ""),
    "tabletop-chain": PublishedBenchmark("tabletop_chain", "TableTop-Chain: questions of one, two and three hops", ""),
    "tabletop-absent": PublishedBenchmark("tabletop_absent", "TableTop-Absent: things and places that are not there", ""),
}  # fmt: skip


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
    parser = Parser(description="List the published benchmarks, or import one.")
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
    if arguments.name != "roborefit":
        count = from_parquet(arguments.source, arguments.out, arguments.name)
    else:
        count = from_roborefit(arguments.source[0], arguments.out, arguments.ids, arguments.count, arguments.seed)
    print(f"{arguments.out}: {count} questions")
    return 0


def list_benchmarks() -> str:
    """Describe every published benchmark, with its folder here or the command that fetches it."""
    lines = []
    for name, known in PUBLISHED.items():
        where = _local_folder(name) or f"not here. {known.fetch or 'clone the repository'}"
        lines.append(f"{name}: {known.description}\n  {where}")
    return "\n".join([*lines, "", f"Any folder with images/, masks/ and {QUESTION_FILE} is a benchmark too."])


IDS, TEXTS = ("question_id", "id"), ("question", "prompt", "text")
NOT_META = {"image", "mask", "question_type", "category", *IDS, *TEXTS}
ImportedRow = tuple[Question, bytes, bytes, str]  # the question, the bytes of its image and mask, their source


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
    """Write the folder `out` from parquet files and return the number of questions.

    The columns are those of FlagEval/Where2Place (question_id, question, question_type, image, mask) or RefSpatial-Bench
    (id, prompt, image, mask, ...). An image is bytes or a record that holds them.
    """
    unpacked = {path.name: {"sha256": sha256(existing_file(path, "the parquet file"))} for path in paths}
    description = {"name": name, "source": [path.name for path in paths], "unpacked": unpacked}
    return _write_benchmark(out, _parquet_rows(paths), description)


def _parquet_rows(paths: Sequence[Path]) -> Iterator[ImportedRow]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # neither has types
    except ModuleNotFoundError:
        raise InputError(f"reading parquet needs pyarrow: {install_hint('train')}") from None
    number = 0
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        yield _parquet_row(row, f"{path}, row {number}")
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as parquet: {error}") from None


def _parquet_row(row: Mapping[str, Any], where: str) -> ImportedRow:
    def column(names: Sequence[str], kind: Any, expected: str) -> Any:
        present = [name for name in names if name in row]
        if not present:
            raise InputError(f"{where} has none of the columns {', '.join(names)}; it has {', '.join(row)}")
        name = next((name for name in present if row[name] is not None), present[0])
        value = row[name]
        if not isinstance(value, kind) or isinstance(value, bool) or not str(value).strip():
            raise InputError(f"{where}: the column {name!r} must hold {expected} that is not empty, not {value!r}")
        return value

    def picture(name: str) -> bytes:
        value = row.get(name)
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes):
            raise InputError(f"{where}, {name!r} holds no picture")
        return data

    question_id, pictures = column(IDS, int | str, "an integer or a text"), (picture("image"), picture("mask"))
    text = column(TEXTS, str, "a text")
    category = row.get("question_type") or row.get("category")
    scalars = {name: value for name, value in row.items() if isinstance(value, str | int | float) and value == value}
    meta = {name: value for name, value in scalars.items() if name not in NOT_META}  # NaN is a missing value
    question = Question(question_id, f"{question_id}.png", text, str(category) if category else None, meta)
    return question, *pictures, where


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
    records = read_json(lists[0])
    if not isinstance(records, list):
        raise InputError(f"{lists[0]} is not a list of questions")
    entries: list[RoboRefItEntry] = []
    for index, record in enumerate(records):
        for name in ("text", "rgb_path", "mask_path"):
            if not isinstance(record, Mapping) or not isinstance(record.get(name), str) or not record[name]:
                raise InputError(f'{lists[0]}, question {index}: "{name}" is missing')
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
        # the list's paths begin at the parent of the whole data set
        parts = PurePosixPath(name).parts
        candidates = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
        path = next((path for path in candidates if ".." not in parts and path.is_file()), None)
        if path is None:
            raise InputError(f"{where} names {name}, which is not below {folder}")
        return path.read_bytes()

    def rows() -> Iterator[ImportedRow]:
        for number, text, image, mask in chosen:
            where = f"{lists[0]}, question {number}"
            text = f"Point to {text.strip().rstrip('.')}."
            question = Question(number, f"{number}.png", text, None, {"source": image})
            yield question, picture(image, where), picture(mask, where), where

    return _write_benchmark(out, rows(), {"name": "roborefit", "note": note, "source": [lists[0].name]})


def _write_benchmark(out: Path, rows: Iterator[ImportedRow], description: Mapping[str, Any]) -> int:
    """Write a benchmark folder completely or not at all; pictures of the same bytes become one file."""
    with new_folder(out) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir()
        image_files: dict[str, str] = {}  # hash of an image -> its file
        questions: list[Question] = []
        for question, image, mask, where in rows:
            if question.image != PurePosixPath(question.image).name or question.image.startswith("."):
                raise InputError(f"{where}: the id {question.question_id!r} cannot be a file name")
            region, picture = open_region(mask, f"{where}, 'mask'"), open_image(image, f"{where}, 'image'")
            if region.shape != (picture.height, picture.width):
                raise InputError(
                    f"the mask of question {question.question_id} is {region.shape[1]} x {region.shape[0]} pixels, its "
                    f"image {picture.width} x {picture.height}: {where}"
                )
            if not region.any():
                raise InputError(f"the mask of question {question.question_id} is empty: {where}")
            name = image_files.setdefault(hashlib.sha256(image).hexdigest(), question.image)
            if name == question.image:
                picture.save(folder / "images" / name)
            Image.fromarray(region.astype(np.uint8) * 255).save(folder / "masks" / f"{question.question_id}.png")
            questions.append(replace(question, image=name))
        if len({str(question.question_id) for question in questions}) < len(questions):
            raise InputError(f"two questions of {', '.join(description['source'])} have the same id")
        write_questions(folder / QUESTION_FILE, questions)
        # An image is named after the first question about it, so image names must not be used to find masks.
        write_json(folder / DESCRIPTION, {**description, "masks": "question"})
    return len(questions)


if __name__ == "__main__":
    raise SystemExit(run(main))
