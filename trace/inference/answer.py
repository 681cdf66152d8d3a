"""An answer as programs take it: `trace-vlm predict --json`, the demo's download and the server write this record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

from ..core.points import Box
from ..core.reasoning import HEADINGS

if TYPE_CHECKING:
    from .backprojection import Point3D
    from .predictor import Prediction


@dataclass(frozen=True, slots=True)
class AnswerPoint:
    """One point; of a box, its centre.

    `x` and `y` are fractions of the image's width and height, `pixel` the same in pixels, `confidence` is in [0, 1] or
    null. With depth, `xyz` is in metres in `frame` ("camera": x right, y down, z forward; or "base"), null where there
    is no depth; `note` says why, or what else is uncertain, and `surfaces` are the depths of two surfaces that meet there.
    """

    x: float
    y: float
    pixel: tuple[float, float]
    inside: bool
    confidence: float | None
    box: tuple[float, float, float, float] | None = None
    xyz: tuple[float, float, float] | None = None
    frame: str | None = None
    note: str = ""
    surfaces: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningStep:
    """One step of the Chain of Reasoning: its key, its heading and its words."""

    step: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class PointAnswer:
    """A model's answer to one instruction about one image.

    `none`: the model says that there is nothing to point at. Without points and without `none`, the answer could not be
    read, or ended at the limit of tokens (`cut`). `confidence` is the mean of the points', or that of "none".
    """

    points: list[AnswerPoint]
    none: bool
    reasoning: list[ReasoningStep]
    text: str
    confidence: float | None
    cut: bool
    seconds: float
    model: str
    image_size: tuple[int, int]
    samples: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def answer_record(
    prediction: Prediction, size: tuple[int, int], model: str, space: Sequence[Point3D] | None = None
) -> PointAnswer:
    """Return the record of a prediction.

    Args:
        size: width and height of the image in pixels.
        model: the model's name.
        space: the points in space, one for each of the prediction's.
    """
    response, points = prediction.response, []
    for index, item in enumerate(response.points):
        point, lifted = item.center, space[index] if space is not None else None
        confidence = prediction.point_confidence[index] if prediction.point_confidence else None
        points.append(
            AnswerPoint(
                point.x,
                point.y,
                point.to_pixels(*size),
                point.inside,
                confidence,
                astuple(item) if isinstance(item, Box) else None,
                *((lifted.xyz, lifted.frame, lifted.note, lifted.surfaces) if lifted else ()),
            )  # fmt: skip
        )
    steps = [ReasoningStep(step.key, HEADINGS[step.key], step.text) for step in response.steps]
    return PointAnswer(
        points, response.none, steps, prediction.text, prediction.confidence, prediction.cut,
        round(prediction.seconds, 3), model, size, list(prediction.samples),
    )  # fmt: skip
