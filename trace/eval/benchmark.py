"""A benchmark is a folder: images/, masks/, and questions as JSONL, in the layout of Where2Place.

Everything that has to find the image or the mask of a question asks a `Benchmark`, which pairs by `question_id` and
never by line number. A mask is named after its question (`masks/7.png`, `masks/07.jpg`) or, where the folder names
no mask after a question, after the question's image; where both fit and differ, suite.json has to say which. Masks are
binarised (> 127), as `images.open_mask` reads them.

A benchmark is also found by its name (`catalog`), and a parquet file is unpacked into such a folder when it is first
asked for. This module also says where the record of a run lies: beside the answers, one file each.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.images import INSIDE, Images, image_size, is_turned, open_mask
from ..core.records import Answer, Question, read_questions
from ..utils.command import InputError, existing_file, existing_folder
from ..utils.files import escapes_folder, read_json, sha256

Mask = NDArray[np.bool_]  # [height, width], True inside the ground-truth region
DESCRIPTION = "suite.json"  # what is to be said about a folder: its name, how its questions were chosen
QUESTION_FILE = "point_questions.jsonl"
MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # the first one found is taken
_FIXED = re.compile("your answer should be formatted", re.IGNORECASE)
PAIRINGS = ("question", "image")  # what suite.json's "masks" may say: after what masks are named


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The questions of a benchmark, and where their images and masks lie.

    `masks` maps question keys  to files; it is empty for a folder without masks. `name` and `note` are what
    the folder's suite.json says of it, "" where there is none. `skipped` are keys of questions that no model was asked,
    as their images are broken: they are scored without a look at the image.
    """

    question_file: Path
    image_folder: Path
    mask_folder: Path
    questions: tuple[Question, ...]
    masks: Mapping[str, Path]
    name: str = ""
    note: str = ""
    skipped: frozenset[str] = frozenset()

    def image_path(self, question: Question) -> Path:
        """The image of a question. InputError: it is missing, or its name leads out of the image folder."""
        name = os.path.normpath(question.image)
        if escapes_folder(name):
            raise InputError(
                f"question {question.question_id} of {self.question_file} names the image {question.image!r}, "
                f"which lies outside {self.image_folder}: give a path inside that folder"
            )
        path = Images(self.image_folder).find(name)
        if path is None:
            raise InputError(f"the image {self.image_folder / name} of question {question.question_id} does not exist")
        return path

    def image_size(self, question: Question) -> tuple[int, int]:
        """Width and height of a question's image in pixels; only its header is read."""
        path = self.image_path(question)
        try:
            return image_size(path)
        except InputError as error:
            raise InputError(f"question {question.question_id}: {error}") from None

    def pictures(self) -> list[str]:
        """What tells the questions' pictures apart, one a question: two files of the same bytes are one picture."""
        paths = [self.image_path(question).resolve() for question in self.questions]
        sizes = {path: path.stat().st_size for path in dict.fromkeys(paths)}
        shared = Counter(sizes.values())  # only files of one length have to be read
        names = {path: sha256(path) if shared[size] > 1 else str(path) for path, size in sizes.items()}
        return [names[path] for path in paths]

    def grey_mask(self, question: Question) -> NDArray[np.uint8]:
        """The mask of a question as stored, `[height, width]`.

        Raises:
            InputError: the mask is missing, broken, or of another size than the image.
        """
        path = self.masks.get(str(question.question_id))
        if path is None:
            raise InputError(
                f"question {question.question_id} has no mask: {self.mask_folder} holds neither "
                f"{question.question_id}.png (.jpg) nor {Path(question.image).stem}.png (.jpg)"
            )
        grey = open_mask(path)
        if str(question.question_id) in self.skipped:
            return grey
        width, height = self.image_size(question)
        if grey.shape != (height, width):
            turned = (
                " as its EXIF orientation shows it, and masks belong to that upright frame: turn the mask"
                if is_turned(self.image_path(question))
                else ""
            )
            raise InputError(
                f"the mask {path} of question {question.question_id} is {grey.shape[1]} x {grey.shape[0]} pixels, "
                f"its image {question.image} is {width} x {height}{turned}"
            )
        return grey

    def mask(self, question: Question) -> Mask:
        """The region of a question, `[height, width]`. InputError also when no pixel lies inside."""
        grey = self.grey_mask(question)
        mask: Mask = grey > INSIDE
        if not mask.any():
            raise InputError(
                f"the mask {self.masks[str(question.question_id)]} of question {question.question_id} is empty: "
                f"no value is above {INSIDE} (the largest is {grey.max()})"
            )
        return mask

    def first(self, count: int | None) -> Benchmark:
        """The suite with its first `count` questions; None keeps all."""
        if count is not None and count < 1:
            raise InputError(f"{count} questions cannot be scored: --num-questions has to be at least 1")
        return replace(self, questions=self.questions[:count])


def fractions(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A stored mask as grey values from 0 to 1, the way the reference uses it."""
    return grey / 255.0


def open_benchmark(
    data_dir: str | Path | None = None,
    question_file: str | Path | None = None,
    image_folder: str | Path | None = None,
) -> Benchmark:
    """Read a benchmark.

    Args:
        data_dir: the benchmark's name, folder or parquet file; its images/ folder is understood too, as the published
            commands give it. Without it the question file's folder.
        question_file: a path, or a name inside `data_dir`; point_questions.jsonl by default.
        image_folder: where the images lie when that is not images/ in the folder.

    Raises:
        InputError: a file or folder is missing, or a question cannot be read (file and line named).
    """
    if data_dir is None:
        if question_file is None:
            raise InputError("which benchmark? give its folder with --data-dir")
        file = existing_file(question_file, "the question file")
        folder = file.parent
    else:
        from .catalog import locate

        folder = existing_folder(locate(data_dir), "the data folder")
        if folder.resolve().name == "images" and not (folder / "images").is_dir():
            folder = folder.resolve().parent
        file = folder / (question_file or QUESTION_FILE)
        if question_file is not None and not file.is_file() and Path(question_file).is_file():
            file = Path(question_file)
        existing_file(file, "the question file")
    questions = tuple(read_questions(file))
    if not questions:
        raise InputError(f"the question file {file} holds no questions")
    images = existing_folder(image_folder or folder / "images", "the image folder")
    masks = folder / "masks"
    if not masks.is_dir() and image_folder is not None:
        masks = images.parent / "masks"
    found = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{folder / DESCRIPTION} holds no JSON object with the benchmark's name and note")
    name, note = str(found.get("name") or ""), str(found.get("note") or "")
    named_after = found.get("masks")
    if named_after not in (None, *PAIRINGS):
        raise InputError(f'{folder / DESCRIPTION}: "masks" must be "question" or "image", not {named_after!r}')
    return Benchmark(
        file, images, masks, questions, _find_masks(masks, questions, named_after, folder / DESCRIPTION), name, note
    )


def _find_masks(
    folder: Path, questions: Sequence[Question], named_after: str | None, description: Path
) -> dict[str, Path]:
    """Masks by question key. One rule holds for the whole folder: named after questions, or after images.

    Mixing the two would pair question 5, whose own mask is lost, with the mask of a question about image 5.

    Raises:
        InputError: both rules find a mask for every question, not the same ones, and suite.json says nothing.
    """
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: _rank(path.suffix)):
        if path.suffix.lower() in MASK_SUFFIXES:
            files.setdefault(_composed(path.stem), path)
    numbers = {str(int(stem)): path for stem, path in reversed(files.items()) if stem.isdecimal()}  # 07 is question 7
    by_question = {
        name: found
        for name in (str(question.question_id) for question in questions)
        if (found := files.get(_composed(name)) or numbers.get(name)) is not None
    }
    by_image = {
        str(question.question_id): files[stem]
        for question in questions
        if (stem := _composed(Path(question.image).stem)) in files
    }
    if named_after is not None:
        return by_question if named_after == "question" else by_image
    if len(by_question) == len(by_image) == len(questions) and by_question != by_image:
        first = next(one for one in questions if by_question[str(one.question_id)] != by_image[str(one.question_id)])
        own, other = (found[str(first.question_id)].name for found in (by_question, by_image))
        raise InputError(
            f"the mask of question {first.question_id} about {first.image} may be {own} (by the question's id) or {other} "
            f'(by the image\'s name): write {{"masks": "question"}} or {{"masks": "image"}} into {description}'
        )
    return by_question if len(by_question) >= len(by_image) else by_image


def _composed(name: str) -> str:
    """A file's name in one form of Unicode: some systems store an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def _rank(suffix: str) -> int:
    return MASK_SUFFIXES.index(suffix.lower()) if suffix.lower() in MASK_SUFFIXES else len(MASK_SUFFIXES)


def pair_answers(answers: Iterable[Answer], suite: Benchmark, source: Path) -> dict[str, Answer]:
    """The answers of one run by question key.

    Raises:
        InputError: an answer to a question that the suite does not have, two answers to one question, or an answer
            whose prompt asks something else (case and spacing aside): the file belongs to another benchmark.
    """
    answers = list(answers)
    runs = sorted({answer.run for answer in answers})
    if len(runs) > 1:
        raise InputError(
            f"{source} holds the answers of {len(runs)} runs ({', '.join(map(str, runs))}), and only one can be shown: "
            "write the lines of one run into a file of their own"
        )
    questions = {str(question.question_id): question for question in suite.questions}
    paired: dict[str, Answer] = {}
    for answer in answers:
        name = str(answer.question_id)
        question = questions.get(name)
        if question is None:
            raise InputError(
                f"{source} answers question {answer.question_id}, which is not among the {len(questions)} questions "
                f"of {suite.question_file}: these answers belong to another benchmark"
            )
        if name in paired:
            raise InputError(f"{source} answers question {answer.question_id} twice: keep one of the two lines")
        asked, expected = _core(answer.prompt), _core(question.text)
        if asked and expected.casefold() not in asked.casefold():
            raise InputError(
                f"{source} answers {asked!r} as question {answer.question_id}, but in {suite.question_file} that "
                f"question is {expected!r}: these answers belong to another benchmark"
            )
        paired[name] = answer
    return paired


def _core(text: str) -> str:
    """The instruction of a question without the fixed sentences, which differ between kinds of answers."""
    return " ".join(_FIXED.split(text.replace("<image>", " "))[0].split())


def run_file(answers: str | Path) -> Path:
    """Where the record of the run that wrote `answers` lies: out/m.jsonl has out/m.run.json."""
    return Path(answers).with_suffix(".run.json")


def read_run(answers: str | Path) -> dict[str, Any]:
    """The record of the run that wrote `answers`, or {} when there is none (answers from elsewhere)."""
    path = run_file(answers)
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"{path} is not the record of a run: it holds no JSON object")
    for name in ("data_dir", "data_dir_from_here", "image_folder", "question_file"):
        if not isinstance(record.get(name, ""), str):
            raise InputError(f"{path} is not the record of a run: {name!r} is no text")
    return record


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a run's record, {} where there are none."""
    settings = record.get("settings")
    return settings if isinstance(settings, dict) else {}
