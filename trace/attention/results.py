"""A folder with the attention of one model: written by `visualization/attention_map.py`, read by summary and report.

    QUESTION.json         the answer, its steps, and every number of `metrics`, layer by layer
    QUESTION.npz          rows [layers, tokens, patches], heads_L if asked for, the steps' maps, target, reference

Pictures are QUESTION_1_reference.png and so on, QUESTION_steps.png, images/QUESTION.jpg; failures.json lists the
questions that failed. A question that has a record is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..core.conventions import CONVENTIONS, read
from ..core.points import Box, Point
from ..core.prompts import bare_instruction
from ..core.reasoning import Response
from ..core.records import Question, QuestionId
from ..drawing import figures
from ..drawing.canvas import file_stem, save_figure, save_thumbnail
from ..drawing.overlay import Outline, mask_outline
from ..eval.benchmark import Benchmark
from ..eval.error_classes import ErrorClassifier
from ..eval.scoring import score_response
from ..utils.command import InputError
from ..utils.files import read_json, replacing, write_json
from .metrics import DECIMALS, MEASURES, Regions, Values, measure, regions, uniform
from .steps import AnswerAttention

if TYPE_CHECKING:
    from PIL.Image import Image

FAILURES, SUMMARY, EFFECTS = "failures.json", "summary.json", "interventions.json"  # beside the records
MEAN = "mean"  # of the layers: what is drawn
# the settings that change the numbers
DECISIVE = ("model", "model_base", "dtype", "layers", "reduce", "row", "answers", "max_new_tokens", "conv_mode")
Numbers = Mapping[str, Sequence[float | None]]  # measure -> one value a step, None where it is not defined


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step. Tokens, share and picture of a missing one are None."""

    key: str
    title: str
    text: str
    tokens: tuple[int, int] | None
    share: float | None
    picture: str | None


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """One question with the attention of one model."""

    question_id: QuestionId
    order: int  # in the question file
    source: str  # the image's name in the benchmark
    instruction: str
    category: str | None
    size: tuple[int, int]
    image: str
    picture: str
    arrays: str
    outline: Outline
    text: str
    token_ids: tuple[int, ...]
    accuracy: float | None  # of this answer, 0 to 1; None without ground truth
    steps: tuple[StepRecord, ...]
    model: str
    layers: tuple[int, ...]
    numbers: Mapping[str, Numbers]  # by layer, or "mean" of all layers
    uniform: Numbers  # of attention spread evenly
    settings: Mapping[str, Any]  # everything that decided the answer, the maps and the pictures
    convention: str = "unit"  # in which answers write points
    sent: tuple[int, int] | None = None  # the size of the picture that the model saw; None for fractions

    def read(self, text: str) -> Response:
        """Read an answer of this model about this image."""
        return read(text, self.size, CONVENTIONS[self.convention], self.sent)

    @property
    def points(self) -> tuple[Point | Box, ...]:
        return self.read(self.text).points


def named_object_mask(benchmark: Benchmark, question: Question) -> NDArray[np.bool_] | None:
    """Return the pixels [height, width] of what the instruction names; None where the benchmark does not record it.

    That is every reference of the question, or the target itself without one. Generated benchmarks store instance
    maps; others may give normalised boxes.
    """
    entries = question.meta.get("references") or [question.meta.get("target")]
    named = [entry for entry in entries if isinstance(entry, dict)]
    width, height = benchmark.image_size(question)
    mask = np.zeros((height, width), bool)
    instances = ErrorClassifier(question, mask, benchmark.question_file.parent).instances
    if instances is not None:
        mask = np.isin(instances, [entry["instance"] for entry in named if isinstance(entry.get("instance"), int)])
    else:
        for entry in named:
            if isinstance(entry.get("box"), list) and len(entry["box"]) == 4:
                left, top, right, bottom = Box(*map(float, entry["box"])).to_pixels(width, height)
                mask[max(0, int(top)) : int(np.ceil(bottom)), max(0, int(left)) : int(np.ceil(right))] = True
    return mask if mask.any() else None


def write_record(
    folder: Path, order: int, question: Question, image: Image,
    masks: tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None], attention: AnswerAttention, model: str,
    settings: Mapping[str, Any], scaling: str = "shared",
) -> AttentionRecord:  # fmt: skip
    """Write pictures, arrays and the record, in this order; `masks` are the target and the named object, [height, width].

    `scaling`, of the pictures only: "shared" is one colour scale over all steps, "each" one a step.
    """
    stem, instruction = file_stem(question.question_id), bare_instruction(question.text)
    target, reference = masks
    maps, points = attention.step_maps(image.size), attention.response.points
    records = []
    for number, (key, step) in enumerate(zip(attention.titles, maps, strict=True), 1):
        picture = f"{stem}_{number}_{key}.png"
        (folder / picture).unlink(missing_ok=True)  # of an earlier answer that had this step
        if step.heat is None:
            records.append(StepRecord(key, step.title, "", None, None, None))
            continue
        vmax = figures.shared_vmax(maps if scaling == "shared" else [step])
        save_figure(figures.draw_step(image, step, number, vmax, points, target), folder / picture)
        share = None if np.isnan(step.share) else round(step.share, DECIMALS)
        records.append(StepRecord(key, step.title, step.text, step.tokens, share, picture))
    name = f"question {question.question_id}"
    overview = figures.draw_steps(image, instruction, maps, points, target, name, scaling)
    save_figure(overview, folder / f"{stem}_steps.png")
    save_thumbnail(image, folder / "images" / f"{stem}.jpg")
    grid = attention.maps.shape[-1]
    where = regions(image.size, grid, points, target, reference)
    arrays: dict[str, NDArray[Any]] = {"rows": attention.captured.attention, "maps": attention.maps}
    arrays |= {f"heads_{layer}": heads for layer, heads in attention.captured.heads.items()}
    arrays |= {name: region for name in ("target", "reference") if (region := getattr(where, name)) is not None}
    with replacing(folder / f"{stem}.npz") as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
    layers = attention.captured.layers
    present = [key in attention.spans for key in attention.titles]
    by_layer = {MEAN: attention.maps, **dict(zip(map(str, layers), attention.layer_maps, strict=True))}
    numbers = {layer: _by_measure([measure(grid, where) if known else None
                                   for known, grid in zip(present, grids, strict=True)])
               for layer, grids in by_layer.items()}  # fmt: skip
    if attention.captured.config.reduction != "mean":  # a sum over the largest head is no share
        numbers = {layer: {**values, "share": [None] * len(present)} for layer, values in numbers.items()}
    even_grid = attention.captured.even.reshape(grid, grid)
    even = [uniform(even_grid, where, float(share)) if known else None
            for known, share in zip(present, attention.uniform, strict=True)]  # fmt: skip
    record = AttentionRecord(
        question_id=question.question_id, order=order, source=question.image, instruction=instruction,
        category=question.category, size=image.size, image=f"images/{stem}.jpg", picture=f"{stem}_steps.png",
        arrays=f"{stem}.npz", outline=mask_outline(target), text=attention.response.text,
        token_ids=attention.captured.token_ids,
        accuracy=None if target is None else score_response(attention.response, question, target),
        steps=tuple(records), model=model, layers=layers, numbers=numbers, uniform=_by_measure(even),
        settings=dict(settings), convention=attention.convention, sent=attention.sent,
    )  # fmt: skip
    write_json(folder / f"{stem}.json", asdict(record))
    return record


def _by_measure(steps: Sequence[Values | None]) -> dict[str, list[float | None]]:
    """measure -> a rounded value for each step; None for a missing step."""
    return {name: [None if values is None or (value := values[name]) is None else round(value, DECIMALS)
                   for values in steps] for name in MEASURES}  # fmt: skip


def is_complete(folder: Path, question_id: QuestionId, settings: Mapping[str, Any]) -> bool:
    """Return whether a question's record, arrays and pictures exist and were made under the same settings."""
    path = folder / f"{file_stem(question_id)}.json"
    if not path.is_file():
        return False
    record = _read_record(path)
    pictures = [step.picture for step in record.steps if step.picture is not None]
    same = record.question_id == question_id and dict(record.settings) == dict(settings)
    return same and all((folder / name).is_file() for name in [record.image, record.picture, record.arrays, *pictures])


def read_failures(folder: Path) -> dict[str, str]:
    """Return question id -> reason, of every run into the folder, as long as the question was not drawn since."""
    path = folder / FAILURES
    failures = read_json(path) if path.is_file() else {}
    if not isinstance(failures, dict):
        raise InputError(f"{path} is not the list of failed questions. Remove it.")
    return {str(name): str(reason) for name, reason in failures.items()}


def require_same_settings(
    folder: Path, settings: Mapping[str, Any] | None = None, replaced: Collection[QuestionId] = ()
) -> None:
    """Raise InputError if settings of records differ in what decides the numbers, which are summarised together.

    `settings` are those of records still to be written, `replaced` the questions whose records are written again.
    """
    every = [record.settings for record in read_records(folder) if record.question_id not in replaced]
    every += [settings] if settings else []
    for name in DECISIVE:
        values = list(dict.fromkeys(f"{of_record.get(name)}"[:20] for of_record in every))
        if len(values) > 1:
            raise InputError(
                f"the records of attention in {folder} differ in {name} ({' and '.join(values)}), and their numbers "
                "are summarised together. Give each setting its own --out."
            )


def read_records(folder: Path) -> list[AttentionRecord]:
    """Read every record of a folder in the order of the question file. InputError when one of them is broken."""
    paths = [path for path in sorted(folder.glob("*.json")) if path.name not in (FAILURES, SUMMARY, EFFECTS)]
    return sorted(map(_read_record, paths), key=lambda record: record.order)


def read_maps(folder: Path, record: AttentionRecord) -> tuple[NDArray[np.float32], Regions]:
    """Read the steps' maps [steps, grid, grid] of a record, and the regions they are compared with. InputError if broken."""
    path = folder / record.arrays
    try:
        with np.load(path) as arrays:
            maps = arrays["maps"]
            target, reference = (arrays[name] if name in arrays else None for name in ("target", "reference"))
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"the arrays {path} cannot be read ({error}). Write them again.") from None
    return maps, Regions(target, reference, regions(record.size, maps.shape[-1], record.points).points)


def _read_record(path: Path) -> AttentionRecord:
    record = read_json(path, "the attention record")
    try:
        steps = tuple(StepRecord(**{**step, "tokens": step["tokens"] and tuple(step["tokens"])})
                      for step in record["steps"])  # fmt: skip
        tuples = {name: tuple(record[name]) for name in ("size", "token_ids", "layers", "sent") if record.get(name)}
        return AttentionRecord(**{**record, **tuples, "steps": steps})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record of attention ({error}). Remove it.") from None
