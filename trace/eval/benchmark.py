"""The benchmark folder: images/, masks/ and point_questions.jsonl, in the layout of Where2Place.

Images, masks and answers are paired by `question_id` (7 and "7" are one question), never by line number. A mask is
named after its question (`masks/7.png`, `masks/07.jpg`) or, if no mask is, after the question's image; where both rules
fit and differ, suite.json must say which one applies. A run's record is stored beside its answers (`run_file`).
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.images import INSIDE, Images, image_size, is_turned, open_mask
from ..core.prompts import FORMAT_SENTENCE
from ..core.records import Answer, Question, read_questions
from ..utils.command import InputError, Parser, existing_file, existing_folder
from ..utils.files import escapes_folder, read_json, sha256
from .published_benchmarks import DESCRIPTION, QUESTION_FILE, find_benchmark
from .rules import NOTHING, YES_NO, check_rule, rule_of

Mask = NDArray[np.bool_]  # [height, width], True inside the ground-truth region
MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # in the order of preference


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The questions of a benchmark and the places of their images and masks."""

    question_file: Path
    image_folder: Path
    mask_folder: Path
    questions: tuple[Question, ...]
    masks: Mapping[str, Path]  # question id -> file; empty for a folder without masks
    name: str = ""  # from suite.json, as `note`
    note: str = ""
    skipped: frozenset[str] = frozenset()  # not asked, their images are broken: masks are read without the image

    def image_path(self, question: Question) -> Path:
        """Return the image of a question. InputError: it is missing or outside the image folder."""
        name = os.path.normpath(question.image)
        if escapes_folder(name):
            where = f"question {question.question_id} of {self.question_file}"
            raise InputError(f"{where} names the image {question.image!r}, which is outside {self.image_folder}")
        path = Images(self.image_folder).find(name)
        if path is None:
            raise InputError(f"the image {self.image_folder / name} of question {question.question_id} does not exist")
        return path

    def image_size(self, question: Question) -> tuple[int, int]:
        """Return the width and height of a question's image in pixels; only its header is read."""
        return image_size(self.image_path(question))

    def image_identities(self) -> list[str]:
        """Return one text per question that identifies its image: files of the same bytes are one image."""
        paths = [self.image_path(question).resolve() for question in self.questions]
        sizes = {path: path.stat().st_size for path in dict.fromkeys(paths)}
        files_of_size = Counter(sizes.values())  # only files of equal length have to be read
        names = {path: sha256(path) if files_of_size[size] > 1 else str(path) for path, size in sizes.items()}
        return [names[path] for path in paths]

    def grey_mask(self, question: Question) -> NDArray[np.uint8]:
        """Return the mask of a question as stored, `[height, width]`. InputError: missing, broken, or of another size."""
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
            turned = " after its EXIF orientation is applied. Turn the mask into that upright frame"
            hint = turned * is_turned(self.image_path(question))
            raise InputError(
                f"the mask {path} of question {question.question_id} is {grey.shape[1]} x {grey.shape[0]} pixels, "
                f"its image {question.image} is {width} x {height}{hint}"
            )
        return grey

    def mask(self, question: Question) -> Mask:
        """Return the region of a question, `[height, width]`.

        InputError also if it is empty though meta["absent"] does not say that nothing is there, and the reverse.
        """
        grey = self.grey_mask(question)
        mask: Mask = grey > INSIDE
        where = f"the mask {self.masks[str(question.question_id)]} of question {question.question_id}"
        absent = rule_of(question) == NOTHING
        if absent and mask.any():
            raise InputError(f'{where} must be empty: meta["absent"] of the question says that nothing is there')
        if not absent and not mask.any():
            raise InputError(
                f"{where} is empty: no value is above {INSIDE} (the largest is {grey.max()}). If nothing is there to "
                'point at, say so with meta["absent"]: true'
            )
        return mask

    @property
    def scored(self) -> bool:
        """Whether answers can be scored: there are masks, or questions answered by yes or no."""
        return bool(self.masks) or any(rule_of(question) == YES_NO for question in self.questions)

    def region(self, question: Question) -> Mask | None:
        """Return what `mask` does, None for a question answered by yes or no."""
        return None if rule_of(question) == YES_NO else self.mask(question)

    def first(self, count: int | None) -> Benchmark:
        """Return the benchmark with its first `count` questions; None keeps all."""
        if count is not None and count < 1:
            raise InputError(f"--num-questions must be at least 1, not {count}")
        return replace(self, questions=self.questions[:count])


def add_benchmark_flags(parser: Parser) -> None:
    """Add the flags that name a benchmark and its parts, the same in every command that reads one."""
    add = parser.add_argument
    add("--data", help="benchmark: its name (where2place, tabletop ...), folder or parquet file")
    add("--questions", help="question file, JSONL (default: point_questions.jsonl)")
    add("--images", type=Path, help="folder of the images (default: images/ beside the questions)")
    add("--num-questions", type=int, help="use only the first N questions", metavar="N")


def open_benchmark(
    data: str | Path | None = None, question_file: str | Path | None = None, image_folder: str | Path | None = None
) -> Benchmark:
    """Read a benchmark.

    Args:
        data: its name, folder or parquet file, or its images/ folder as the published commands give it. None: the
            question file's folder.
        question_file: a path, or a name inside `data` (default point_questions.jsonl).
        image_folder: the folder of the images (default images/ in the folder).
    """
    if data is None:
        if question_file is None:
            raise InputError("no benchmark is given: name it or its folder with --data")
        file = existing_file(question_file, "the question file")
        folder = file.parent
    else:
        folder = existing_folder(find_benchmark(data), "the data folder")
        if folder.resolve().name == "images" and not (folder / "images").is_dir():
            folder = folder.resolve().parent
        file = folder / (question_file or QUESTION_FILE)
        if question_file is not None and not file.is_file() and Path(question_file).is_file():
            file = Path(question_file)
    questions = tuple(read_questions(file))
    images = existing_folder(image_folder or folder / "images", "the image folder")
    masks = folder / "masks"
    if not masks.is_dir() and image_folder is not None:
        masks = images.parent / "masks"
    description = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    if not isinstance(description, dict) or description.get("masks") not in (None, "question", "image"):
        raise InputError(f'{folder / DESCRIPTION} must hold a JSON object, "masks" in it "question" or "image"')
    mask_files = _find_masks(masks, questions, description.get("masks"), folder / DESCRIPTION)
    name, note = (str(description.get(key) or "") for key in ("name", "note"))
    if rule := description.get("rule"):
        questions = tuple(replace(question, meta={"rule": rule, **question.meta}) for question in questions)
    for question in questions:
        check_rule(question, f"question {question.question_id} of {file}")
    return Benchmark(file, images, masks, questions, mask_files, name, note)


def _find_masks(
    folder: Path, questions: Sequence[Question], named_after: str | None, description: Path
) -> dict[str, Path]:
    """Return masks by question id. One rule holds for the whole folder: named after questions, or after images.

    Mixing the two would pair question 5, whose own mask is lost, with the mask of a question about image 5.
    """
    if not folder.is_dir():
        return {}

    normal = partial(unicodedata.normalize, "NFC")  # some systems store an accent as a character of its own
    masks = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in MASK_SUFFIXES]
    files: dict[str, Path] = {}
    for path in sorted(masks, key=lambda path: MASK_SUFFIXES.index(path.suffix.lower())):
        files.setdefault(normal(path.stem), path)
    numbers = {str(int(stem)): path for stem, path in reversed(files.items()) if stem.isdecimal()}  # 07 is question 7
    by_question, by_image = {}, {}
    for question in questions:
        name, stem = str(question.question_id), normal(Path(question.image).stem)
        if own_mask := files.get(normal(name)) or numbers.get(name):
            by_question[name] = own_mask
        if stem in files:
            by_image[name] = files[stem]
    if named_after is not None:
        return by_question if named_after == "question" else by_image
    if len(by_question) == len(by_image) == len(questions) and by_question != by_image:
        first = next(one for one in questions if by_question[str(one.question_id)] != by_image[str(one.question_id)])
        own, other = (masks[str(first.question_id)].name for masks in (by_question, by_image))
        raise InputError(
            f"the mask of question {first.question_id} about {first.image} may be {own} (by question id) or {other} "
            f'(by image name). Write {{"masks": "question"}} or {{"masks": "image"}} into {description}'
        )
    return by_question if len(by_question) >= len(by_image) else by_image


def pair_answers(answers: Iterable[Answer], benchmark: Benchmark, source: Path) -> dict[str, Answer]:
    """Return the answers of one run by question id. InputError: a question is unknown, answered twice, or another."""
    questions = {str(question.question_id): question for question in benchmark.questions}
    paired: dict[str, Answer] = {}
    for answer in answers:
        name = str(answer.question_id)
        question = questions.get(name)
        if question is None:
            raise InputError(
                f"{source} answers question {answer.question_id}, which is not among the {len(questions)} questions "
                f"of {benchmark.question_file}: these answers belong to another benchmark"
            )
        if name in paired:
            raise InputError(f"{source} answers question {answer.question_id} twice. Keep the lines of one run")
        # the sentences about the format of an answer differ between kinds of questions
        plain = (FORMAT_SENTENCE.split(text.replace("<image>", " "))[0] for text in (answer.prompt, question.text))
        asked, expected = (" ".join(text.split()) for text in plain)
        if asked and expected.casefold() not in asked.casefold():
            raise InputError(
                f"{source} answers {asked!r} as question {answer.question_id}, but in {benchmark.question_file} that "
                f"question is {expected!r}: these answers belong to another benchmark"
            )
        paired[name] = answer
    return paired


def run_file(answers: str | Path) -> Path:
    """Return the file of the run's record that belongs to an answer file: out/m.jsonl has out/m.run.json."""
    return Path(answers).with_suffix(".run.json")


def read_run_record(answers: str | Path) -> dict[str, Any]:
    """Read the record of the run that wrote `answers`; {} if there is none (answers from elsewhere)."""
    path = run_file(answers)
    record = read_json(path) if path.is_file() else {}
    names = ("data_dir", "data_dir_from_here", "image_folder", "question_file")
    if not isinstance(record, dict) or not all(isinstance(record.get(name, ""), str) for name in names):
        raise InputError(f"{path} is not the record of a run: expected a JSON object with the texts {', '.join(names)}")
    return record


def run_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a run's record, {} if there are none."""
    settings = record.get("settings")
    return settings if isinstance(settings, dict) else {}
