"""A folder with the attention of one model: what `visualization/attention_map.py` writes, and summary and report read.

    QUESTION.json              the answer, its milestones, and every number of `attention_numbers`, layer by layer
    QUESTION.npz               `rows` [layers, tokens, patches] in float16, `heads_L` of the layers asked for, and the
                               milestones' `maps`, `target` and `reference` over the padded square
    QUESTION_1_reference.png   one picture a milestone, and QUESTION_milestones.png, all of them
    images/QUESTION.jpg        the image, small
    index.json, failures.json  which records there are; what failed, and why

A record is written after its pictures and arrays, so that a question that has one is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.images import Square, unpad_map
from ..core.points import Box, Point
from ..core.prompts import bare_instruction
from ..core.reasoning import parse
from ..core.records import Question, QuestionId
from ..drawing import figures
from ..drawing.canvas import save
from ..eval.benchmark import Benchmark
from ..eval.error_classes import ErrorClassifier
from ..eval.scoring import score
from ..report.comparison_files import INDEX, Outline, file_name, outline, save_small
from ..utils.command import InputError
from ..utils.files import read_json, replacing, write_json
from .metrics import DECIMALS, MEASURES, Regions, measure, regions, rounded, uniform
from .steps import MILESTONES, MilestoneMaps

if TYPE_CHECKING:
    from PIL.Image import Image

FAILURES = "failures.json"
MEAN = "mean"  # of the layers: what is drawn
DECIDE = (
    "model",
    "model_base",
    "dtype",
    "layers",
    "reduce",
    "row",
    "answers",
    "max_new_tokens",
    "conv_mode",
)  # the numbers
Numbers = Mapping[str, Sequence[float | None]]  # measure -> one value a milestone


@dataclass(frozen=True, slots=True)
class MilestoneRecord:
    """One milestone. Of a missing one tokens, share and picture are None."""

    key: str
    title: str
    text: str
    tokens: tuple[int, int] | None
    share: float | None
    picture: str | None


@dataclass(frozen=True, slots=True)
class Attended:
    """One question with the attention of one model; `order` is its place in the question file.

    numbers: layer (or "mean", of all layers) -> measure -> a value for each milestone, None where there is none.
    uniform: measure -> the same for attention spread evenly.
    """

    question_id: QuestionId
    order: int
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
    milestones: tuple[MilestoneRecord, ...]
    model: str
    layers: tuple[int, ...]
    numbers: Mapping[str, Numbers]
    uniform: Numbers
    settings: Mapping[str, Any]  # what decided the answer and the maps

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(milestone.title for milestone in self.milestones if milestone.tokens is None)

    @property
    def points(self) -> tuple[Point | Box, ...]:
        return parse(self.text, self.size).points

    def steps(self, maps: NDArray[np.float32]) -> list[figures.StepMap]:
        """What the figures draw of `maps` [5, grid, grid]."""
        return [
            figures.StepMap(
                one.title,
                one.text,
                None if one.tokens is None else unpad_map(grid, self.size),
                float("nan") if one.share is None else one.share,
                one.tokens,
            )
            for one, grid in zip(self.milestones, maps, strict=True)
        ]


def named_object(suite: Benchmark, question: Question) -> NDArray[np.bool_] | None:
    """The pixels [height, width] of what the instruction names, where the benchmark knows it; None where it does not.

    That is every reference of the question, or the target itself where there is none. Generated benchmarks store
    instance maps; others may give normalised boxes.
    """
    meta = question.meta
    named = [one for one in meta.get("references") or [meta.get("target")] if isinstance(one, dict)]
    width, height = suite.image_size(question)
    found = np.zeros((height, width), bool)
    instances = ErrorClassifier(question, found, suite.question_file.parent).instances
    if instances is not None:
        found = np.isin(instances, [one["instance"] for one in named if isinstance(one.get("instance"), int)])
    else:
        for one in named:
            if isinstance(one.get("box"), list) and len(one["box"]) == 4:
                left, top, right, bottom = Box(*map(float, one["box"])).to_pixels(width, height)
                found[max(0, int(top)) : int(np.ceil(bottom)), max(0, int(left)) : int(np.ceil(right))] = True
    return found if found.any() else None


# --- writing -------------------------------------------------------------------------------------------------------


def write_attended(
    folder: Path,
    order: int,
    question: Question,
    image: Image,
    masks: tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None],
    maps: MilestoneMaps,
    model: str,
    settings: Mapping[str, Any],
    scaling: str = "shared",
) -> Attended:
    """Pictures, arrays and the record, in this order; `masks` are the target and the named object.

    `scaling` is of the pictures only: "shared" is one colour scale over all steps, "each" one a step.
    """
    stem, instruction = file_name(question.question_id), bare_instruction(question.text)
    target, reference = masks
    steps, points = maps.steps(image.size), maps.response.points
    top = figures.shared_top(steps)
    records = []
    for index, (key, step) in enumerate(zip(MILESTONES, steps, strict=True)):
        picture = f"{stem}_{index + 1}_{key}.png"
        (folder / picture).unlink(missing_ok=True)  # of an earlier answer that had this step
        if step.heat is None:
            records.append(MilestoneRecord(key, step.title, "", None, None, None))
            continue
        own = top if scaling == "shared" else figures.shared_top([step])
        save(figures.milestone(image, step, index + 1, own, points, target), folder / picture)
        share = None if np.isnan(step.share) else round(step.share, DECIMALS)
        records.append(MilestoneRecord(key, step.title, step.text, step.tokens, share, picture))
    strip = f"{stem}_milestones.png"
    name = f"question {question.question_id}"
    save(figures.progression(image, instruction, steps, points, target, name, scaling), folder / strip)
    save_small(image, folder / "images" / f"{stem}.jpg")
    where = regions(image.size, maps.maps.shape[-1], points, target, reference)
    _write_arrays(folder / f"{stem}.npz", maps, where)
    record = Attended(
        question.question_id,
        order,
        question.image,
        instruction,
        question.category,
        image.size,
        f"images/{stem}.jpg",
        strip,
        f"{stem}.npz",
        outline(target),
        maps.response.text,
        maps.token_ids,
        None if target is None else score(points, target),
        tuple(records),
        model,
        maps.layers,
        _numbers(maps, where),
        _uniform(maps, where),
        dict(settings),
    )
    write_json(folder / f"{stem}.json", asdict(record))
    return record


def _write_arrays(path: Path, maps: MilestoneMaps, where: Regions) -> None:
    arrays: dict[str, NDArray[Any]] = {"rows": maps.captured.attention, "maps": maps.maps}
    arrays |= {f"heads_{layer}": heads for layer, heads in maps.captured.heads.items()}
    if where.target is not None:
        arrays["target"] = where.target
    if where.reference is not None:
        arrays["reference"] = where.reference
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


def _numbers(maps: MilestoneMaps, where: Regions) -> dict[str, dict[str, list[float | None]]]:
    shares = maps.captured.capture.reduction == "mean"
    every = {MEAN: maps.maps, **dict(zip(map(str, maps.layers), maps.layer_maps, strict=True))}
    found: dict[str, dict[str, list[float | None]]] = {}
    for layer, grids in every.items():
        values = [
            rounded(measure(grid, where)) if key in maps.spans else dict.fromkeys(MEASURES)
            for key, grid in zip(MILESTONES, grids, strict=True)
        ]
        found[layer] = {name: [value[name] for value in values] for name in MEASURES}
        if not shares:
            found[layer]["share"] = [None] * len(MILESTONES)
    return found


def _uniform(maps: MilestoneMaps, where: Regions) -> dict[str, list[float | None]]:
    patches = maps.maps.shape[-1]
    values = [
        rounded(uniform(patches, where, float(share))) if key in maps.spans else dict.fromkeys(MEASURES)
        for key, share in zip(MILESTONES, maps.uniform, strict=True)
    ]
    return {name: [value[name] for value in values] for name in MEASURES}


def whole(folder: Path, question_id: QuestionId, settings: Mapping[str, Any]) -> bool:
    """Whether a question's record, arrays and pictures are there and were made under the same settings."""
    path = folder / f"{file_name(question_id)}.json"
    if not path.is_file():
        return False
    record = _attended(path)
    pictures = [m.picture for m in record.milestones if m.picture is not None]
    same = record.question_id == question_id and dict(record.settings) == dict(settings)
    return same and all((folder / name).is_file() for name in [record.image, record.picture, record.arrays, *pictures])


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """`failures`: question id -> reason, of every run into the folder that was not mended since."""
    write_json(folder / FAILURES, dict(failures))


def read_failures(folder: Path) -> dict[str, str]:
    path = folder / FAILURES
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path} is not the list of failed questions; remove it")
    return {str(name): str(reason) for name, reason in found.items()}


def write_attention_index(folder: Path) -> None:
    """The index of every record in the folder, also of earlier runs."""
    write_json(folder / INDEX, {"records": [name for _, name, _ in sorted(_every(folder), key=lambda one: one[:2])]})


def _every(folder: Path) -> list[tuple[int, str, Attended]]:
    own = {INDEX, FAILURES, "summary.json", "interventions.json"}
    paths = [path for path in folder.glob("*.json") if path.name not in own]
    return [(record.order, path.name, record) for path in paths for record in [_attended(path)]]


def refuse_other_settings(folder: Path, settings: Mapping[str, Any], drawn: Collection[QuestionId]) -> None:
    """InputError where records that stay beside those of the questions `drawn` were made under other settings."""
    alike(folder, [*(one.settings for _, _, one in _every(folder) if one.question_id not in drawn), settings])


def alike(folder: Path, settings: Sequence[Mapping[str, Any]]) -> None:
    """InputError where the settings of records differ in what decides the numbers: they cannot be summarised as one."""
    for name in DECIDE:
        found = list(dict.fromkeys(f"{one.get(name)}"[:20] for one in settings))
        if len(found) > 1:
            raise InputError(
                f"the records of attention in {folder} differ in {name} ({' and '.join(found)}), and their numbers "
                "are summarised as one: give each setting its own --output-dir"
            )


# --- reading -------------------------------------------------------------------------------------------------------


def read_attention(folder: Path) -> list[Attended]:
    """The records of a folder in the order of its index. InputError when index or a record is absent or broken."""
    path = folder / INDEX
    found = read_json(path, "the index of attention pictures")
    if not isinstance(found, dict) or not isinstance(found.get("records"), list):
        raise InputError(f"{path} is not an index of attention pictures; write it anew")
    return [_attended(folder / str(name)) for name in found["records"]]


def read_maps(folder: Path, record: Attended) -> tuple[NDArray[np.float32], Regions]:
    """The milestones' maps [5, grid, grid] of a record, and what they are compared with.

    Raises:
        InputError: the arrays are lost or broken.
    """
    path = folder / record.arrays
    try:
        with np.load(path) as arrays:
            maps = arrays["maps"]
            target, reference = (arrays[name] if name in arrays else None for name in ("target", "reference"))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"the arrays {path} cannot be read ({error}); write them anew") from None
    square = Square(*record.size)
    centers = [item.center for item in record.points]
    return maps, Regions(target, reference, tuple(square.pad_point(point) for point in centers if point.inside))


def _attended(path: Path) -> Attended:
    found = read_json(path, "the attention record")
    try:
        milestones = tuple(
            MilestoneRecord(**{**one, "tokens": None if one["tokens"] is None else tuple(one["tokens"])})
            for one in found["milestones"]
        )
        fields = {"size": tuple(found["size"]), "milestones": milestones, "token_ids": tuple(found["token_ids"]),
                  "layers": tuple(found["layers"])}  # fmt: skip
        return Attended(**{**found, **fields})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record of attention ({error}); remove it") from None
