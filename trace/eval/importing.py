"""Published benchmark files -> a folder in Where2Place's layout, whole or not at all.

Parquet is that of FlagEval/Where2Place (question_id, question, question_type, image, mask) or of RefSpatial-Bench
(id, image, mask, object, prompt, suffix, step): an image is bytes, or a record that holds them. RoboRefIt is the
authors' folder: a JSON list with text, rgb_path and mask_path. Pictures of the same bytes become one file.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..core.images import open_image, open_region
from ..core.records import Question, write_questions
from ..utils.command import InputError, existing_file, existing_folder, install_hint
from ..utils.files import read_json, sha256, write_json
from .benchmark import DESCRIPTION, QUESTION_FILE

IDS, TEXTS = ("question_id", "id"), ("question", "prompt", "text")
NOT_META = {"image", "mask", "question_id", "id", "question", "prompt", "text", "question_type", "category"}
Saved = tuple[Question, bytes, bytes, str]  # the files of image and mask, and where they come from


def unpacked(path: Path) -> Path:
    """The folder of a parquet file's benchmark: beside it, under its name; made when it is not there.

    Raises:
        InputError: the folder was not made of what the file holds now. It may hold changes by hand, so it is not
            replaced.
    """
    path = existing_file(path, "the benchmark")
    folder = path.with_suffix("")
    if not (folder / QUESTION_FILE).is_file():
        from_parquet([path], folder, path.stem)
    elif not _made_of(folder, path):
        raise InputError(
            f"{folder} was not unpacked from {path} as it is now: remove or rename that folder, and the file is "
            f"unpacked again; or name the folder itself to use what it holds"
        )
    return folder


def _made_of(folder: Path, path: Path) -> bool:
    description = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    state = description.get("unpacked") if isinstance(description, dict) else None
    if not isinstance(state, dict) or list(state) != [path.name]:
        return False
    made, now = state[path.name], _state(path)
    return all(made.get(name) == value for name, value in now.items()) or made.get("sha256") == sha256(path)


def _state(path: Path) -> dict[str, int]:
    """What changes with a file, without reading it."""
    return {"bytes": path.stat().st_size, "changed": path.stat().st_mtime_ns}


def from_parquet(paths: Sequence[Path], out: Path, name: str) -> int:
    """Write the folder `out`; returns the number of questions. InputError names the file and row of a mistake."""
    for path in paths:
        existing_file(path, "the parquet file")
    made_of = {path.name: {**_state(path), "sha256": sha256(path)} for path in paths}
    description = {"name": name, "source": [path.name for path in paths], "unpacked": made_of}
    return _write(out, lambda: _parquet_rows(paths), description)


def _parquet_rows(paths: Sequence[Path]) -> Iterator[Saved]:
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


def _parquet_row(row: Mapping[str, Any], where: str) -> Saved:
    number = _first(row, IDS, where, int | str, "an integer or a text")
    image, mask = (_picture(row.get(name), f"{where}, {name!r}") for name in ("image", "mask"))
    category = row.get("question_type") or row.get("category")
    meta = {
        name: value
        for name, value in row.items()
        if name not in NOT_META and isinstance(value, str | int | float) and value == value  # NaN stands for nothing
    }
    text = _first(row, TEXTS, where, str, "a text")
    question = Question(number, f"{_file_name(number, where)}.png", text, str(category) if category else None, meta)
    return question, image, mask, where


def _first(row: Mapping[str, Any], names: Sequence[str], where: str, kind: Any, what: str) -> Any:
    """The value of the first of some columns that has one."""
    there = [name for name in names if name in row]
    if not there:
        raise InputError(f"{where} has none of the columns {', '.join(names)}; it has {', '.join(row)}")
    name = next((name for name in there if row[name] is not None), there[0])
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool) or not str(value).strip():
        raise InputError(f"{where}: the column {name!r} must hold {what} that is not empty, not {value!r}")
    return value


def _picture(value: Any, where: str) -> bytes:
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise InputError(f"{where} holds no picture")
    return data


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
            yield question, _found(folder, image, where), _found(folder, mask, where), where

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


def _found(folder: Path, name: str, where: str) -> bytes:
    """A picture's file by the list's path, which begins at the parent of the whole data set."""
    parts = PurePosixPath(name).parts
    found = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    path = next((path for path in found if ".." not in parts and path.is_file()), None)
    if path is None:
        raise InputError(f"{where} names {name}, which is not below {folder}")
    return path.read_bytes()


# --- writing -------------------------------------------------------------------------------------------------------


def _write(out: Path, rows: Callable[[], Iterator[Saved]], description: Mapping[str, Any]) -> int:
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name in ("images", "masks"):
            (unfinished / name).mkdir()
        images: dict[str, str] = {}  # hash of a picture -> its file
        questions = [_saved(unfinished, images, *row) for row in rows()]
        if len({str(question.question_id) for question in questions}) < len(questions):
            raise InputError(f"two questions of {', '.join(description['source'])} have the same id")
        write_questions(unfinished / QUESTION_FILE, questions)
        # An image bears the name of the first question about it, so names of images say nothing about masks.
        write_json(unfinished / DESCRIPTION, {**description, "masks": "question"})
        unfinished.chmod(0o755)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(questions)


def _saved(folder: Path, images: dict[str, str], question: Question, image: bytes, mask: bytes, where: str) -> Question:
    """Write the files of a question; an image that is there already, by the hash of its bytes, is shared."""
    region = open_region(mask, f"{where}, 'mask'")
    picture = open_image(image, f"{where}, 'image'")
    if region.shape != (picture.height, picture.width):
        raise InputError(
            f"the mask of question {question.question_id} is {region.shape[1]} x {region.shape[0]} pixels, its image "
            f"{picture.width} x {picture.height} ({where})"
        )
    if not region.any():
        raise InputError(f"the mask of question {question.question_id} is empty ({where})")
    name = images.setdefault(hashlib.sha256(image).hexdigest(), question.image)
    if name == question.image:
        picture.save(folder / "images" / name)
    Image.fromarray(region.astype(np.uint8) * 255).save(folder / "masks" / f"{question.question_id}.png")
    return replace(question, image=name)
