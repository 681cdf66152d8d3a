"""Published benchmark files -> a folder in Where2Place's layout, whole or not at all.

Parquet is that of FlagEval/Where2Place (question_id, question, question_type, image, mask) or of RefSpatial-Bench
(id, image, mask, object, prompt, suffix, step): an image is bytes, or a record that holds them. RoboRefIt is the
authors' folder: a JSON list with text, rgb_path and mask_path.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..command import InputError, existing_file, existing_folder, how_to_install
from ..files import read_json, write_json
from ..records import Question, write_questions
from .suites import DESCRIPTION, INSIDE, QUESTION_FILE

IDS, TEXTS = ("question_id", "id"), ("question", "prompt", "text")
NOT_META = {"image", "mask", "question_id", "id", "question", "prompt", "text", "question_type", "category"}
Saved = tuple[Question, Image.Image, Image.Image]


def unpacked(path: Path) -> Path:
    """The folder of a parquet file's benchmark: beside it, under its name; made when it is not there."""
    path = existing_file(path, "the benchmark")
    folder = path.with_suffix("")
    if not (folder / QUESTION_FILE).is_file():
        from_parquet([path], folder, path.stem)
    return folder


def from_parquet(paths: Sequence[Path], out: Path, name: str) -> int:
    """Write the folder `out`; returns the number of questions. InputError names the file and row of a mistake."""
    for path in paths:
        existing_file(path, "the parquet file")
    return _write(out, lambda: _parquet_rows(paths), {"name": name, "source": [path.name for path in paths]})


def _parquet_rows(paths: Sequence[Path]) -> Iterator[Saved]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # neither has types
    except ModuleNotFoundError:
        raise InputError(f"reading parquet needs pyarrow: {how_to_install('train')}") from None
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


def _parquet_row(row: Mapping[str, Any], where: str) -> Saved:
    number = _first(row, IDS, where)
    image, mask = (_picture(row.get(name), f"{where}, {name!r}") for name in ("image", "mask"))
    category = row.get("question_type") or row.get("category")
    meta = {name: value for name, value in row.items() if name not in NOT_META and isinstance(value, str | int | float)}
    text = str(_first(row, TEXTS, where))
    question = Question(number, f"{_file_name(number, where)}.png", text, str(category) if category else None, meta)
    return question, image, mask


def _first(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise InputError(f"{where} has none of the columns {', '.join(names)}; it has {', '.join(row)}")


def _picture(value: Any, where: str) -> Image.Image:
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise InputError(f"{where} holds no picture")
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{where} cannot be read as a picture: {error}") from None


def _file_name(number: Any, where: str) -> str:
    name = str(number)
    if not name or name != PurePosixPath(name).name or name.startswith("."):
        raise InputError(f"{where}: the id {name!r} cannot be the name of a file")
    return name


# --- RoboRefIt -----------------------------------------------------------------------------------------------------


def from_roborefit(folder: Path, out: Path, ids: Path | None = None, count: int = 750, seed: int = 0) -> int:
    """Write the folder `out` from a split of RoboRefIt; returns the number of questions.

    Args:
        folder: the split (testA), with one JSON list beside image/ and mask/.
        ids: the questions to take, by their number (`num`, or their place in the list) or their image's name. Without
            it `count` questions about as many images are drawn with `seed`, and the suite is labelled so.
    Raises:
        InputError: a file is missing or broken, or an id is not in the list.
    """
    folder = existing_folder(folder, "the split of RoboRefIt")
    lists = sorted(folder.glob("*.json"))
    if len(lists) != 1:
        raise InputError(f"{folder} has to hold one JSON list of its questions, it holds {len(lists)}")
    records = read_json(lists[0])
    if not isinstance(records, list):
        raise InputError(f"{lists[0]} is no list of questions")
    entries = [_entry(record, place, lists[0]) for place, record in enumerate(records)]
    chosen = _listed(entries, ids) if ids is not None else _drawn(entries, count, seed)
    note = (
        f"the questions of {ids.name}"
        if ids is not None
        else f"{len(chosen)} questions drawn with seed {seed}: not the authors' subset"
    )

    def rows() -> Iterator[Saved]:
        for number, text, image, mask in chosen:
            where = f"{lists[0]}, question {number}"
            name = f"{_file_name(number, where)}.png"
            question = Question(number, name, f"Point to {text.strip().rstrip('.')}.", None, {"source": image})
            yield question, _open(folder, image, where), _open(folder, mask, where)

    return _write(out, rows, {"name": "roborefit", "note": note, "source": [lists[0].name]})


Entry = tuple[Any, str, str, str]  # number, text, image, mask


def _entry(record: Any, place: int, path: Path) -> Entry:
    where = f"{path}, question {place}"
    if not isinstance(record, Mapping):
        raise InputError(f"{where} is no JSON object")
    texts = {name: record.get(name) for name in ("text", "rgb_path", "mask_path")}
    for name, value in texts.items():
        if not isinstance(value, str) or not value:
            raise InputError(f'{where}: "{name}" is missing')
    image, mask = (str(texts[name]).replace("\\", "/") for name in ("rgb_path", "mask_path"))
    return record.get("num", place), str(texts["text"]), image, mask


def _listed(entries: Sequence[Entry], path: Path) -> list[Entry]:
    text = existing_file(path, "the list of ids").read_text(encoding="utf-8", errors="replace")
    wanted = [str(one) for one in read_json(path)] if text.lstrip().startswith("[") else text.split()
    known: dict[str, Entry] = {}
    for entry in entries:
        known.setdefault(PurePosixPath(entry[2]).stem, entry)
    known |= {str(entry[0]): entry for entry in entries}
    for one in wanted:
        if one not in known:
            raise InputError(f"{path} names the question {one!r}, which is not among the {len(entries)} there are")
    return [known[one] for one in dict.fromkeys(wanted)]


def _drawn(entries: Sequence[Entry], count: int, seed: int) -> list[Entry]:
    """One question about each of `count` images, in the order of the list."""
    rng = np.random.default_rng(seed)
    first: dict[str, int] = {}
    for place in rng.permutation(len(entries)):
        first.setdefault(entries[place][2], int(place))
    return [entries[place] for place in sorted(list(first.values())[:count])]


def _open(folder: Path, name: str, where: str) -> Image.Image:
    """A picture by the list's path, which begins at the parent of the whole data set."""
    parts = PurePosixPath(name).parts
    found = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    path = next((path for path in found if ".." not in parts and path.is_file()), None)
    if path is None:
        raise InputError(f"{where} names {name}, which is not below {folder}")
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


# --- writing -------------------------------------------------------------------------------------------------------


def _write(out: Path, rows: Callable[[], Iterator[Saved]], description: Mapping[str, Any]) -> int:
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name in ("images", "masks"):
            (unfinished / name).mkdir()
        questions = [_saved(unfinished, *row) for row in rows()]
        if len({str(question.question_id) for question in questions}) < len(questions):
            raise InputError(f"two questions of {', '.join(description['source'])} have the same id")
        write_questions(unfinished / QUESTION_FILE, questions)
        write_json(unfinished / DESCRIPTION, dict(description))
        unfinished.chmod(0o755)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(questions)


def _saved(folder: Path, question: Question, image: Image.Image, mask: Image.Image) -> Question:
    name = f"question {question.question_id}"
    if image.size != mask.size:
        raise InputError(f"the mask of {name} is {mask.size[0]} x {mask.size[1]} pixels, its image {image.size}")
    region = np.asarray(mask.convert("L")) > INSIDE
    if not region.any():
        raise InputError(f"the mask of {name} is empty")
    image.convert("RGB").save(folder / "images" / question.image)
    Image.fromarray(region.astype(np.uint8) * 255).save(folder / "masks" / f"{question.question_id}.png")
    return question
