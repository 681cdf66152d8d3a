"""What a remote writer is shown and told: the picture with the answer drawn in, the instruction, four steps to fill.

`VERSION` stands for every word below and for how the marks look. It is part of the cache's key, so that changed wording
is asked anew: change it with the wording (a test holds the two together).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...core.images import Images, open_image
from ...core.points import Box, Point
from ...core.reasoning import STEPS
from ...remote.client import Picture, Request
from ...utils.files import escapes_folder
from .checks import SUBTYPES, Rules
from .tasks import Task, answer_text

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = "cor-1"
SYSTEM = (
    "You write training data for a robot's vision-language model. The model gets an image and an instruction, reasons "
    "in four short steps, and then gives points on the image. You are given the image, the instruction and the correct "
    "points; you write the four steps that lead there, as the model itself would: from the image and the instruction "
    "alone."
)
_TASK = """\
Instruction: {instruction}

The correct points, as (x, y) fractions of the image's width and height from its top left corner: {points}
In the image they are drawn as magenta dots with a white rim. The robot will see neither the dots nor the points.

Write the four steps:
- "reference": which object (or surface) the instruction refers to. Call it by the instruction's own words, and say \
how it can be told apart in the image.
- "target": where, relative to it, the area lies that the instruction asks for, and what bounds it.
- "subtype": whether the goal is "object reference" (the points lie on an object) or "free space reference" (they lie \
where nothing stands){subtype}.
- "output": how the points are chosen within that area.

Every step is one to three plain sentences. State only what the image and the instruction show. Never mention the \
dots, their color, or that an answer was given to you. {coordinates}
Answer with one JSON object whose keys are "reference", "target", "subtype" and "output"."""
_NO_COORDINATES = "Write no coordinates, percentages or pixel numbers in any step."
_COORDINATES = "After the name of each object, write its place in brackets: (x, y), fractions with three decimals."
_AGAIN = "\n\nThese earlier texts of yours were not accepted; write a better one:\n{reasons}"

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in STEPS},
    "required": list(STEPS),
    "additionalProperties": False,
}
DOT = "#ff00ff"


@dataclass(frozen=True, slots=True)
class Writing:
    """How remote writers are asked."""

    image_folder: Path
    version: str  # VERSION and whatever else shapes the answers
    rules: Rules
    decimals: int = 3
    max_side: int = 1024  # pixels of the picture's longer side, as it is sent


def request_for(task: Task, writing: Writing) -> Request:
    """The first request about a sample. The picture is drawn only when it is sent.

    ValueError without an image, and for an answer with too many decimals: nothing is to be paid for it in vain.
    """
    image = task.sample.image
    if image is None:
        raise ValueError("the sample has no image")
    if escapes_folder(image):
        raise ValueError(f"the name {image!r} leaves the image folder; no such picture is sent")
    text = _TASK.format(
        instruction=task.instruction,
        points=answer_text(task, writing.decimals),
        subtype=f'; here it is "{SUBTYPES[task.facts.task]}"' if task.facts else "",
        coordinates=_COORDINATES if writing.rules.coordinates else _NO_COORDINATES,
    )
    picture = Drawing(Images(writing.image_folder).path(image), task.points, writing.max_side)
    return Request(task.sample.id, writing.version, text, SYSTEM, picture, image, SCHEMA)


def asked_again(first: Request, reasons: Sequence[str]) -> Request:
    """The first question once more, with the reasons for which the answers so far were rejected."""
    listed = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))
    return replace(first, text=first.text + _AGAIN.format(reasons=listed), attempt=len(reasons) + 1)


@dataclass(frozen=True, slots=True)
class Drawing:
    """The image with the answer drawn in, made when it is called: in a thread, or in another process."""

    path: Path
    points: tuple[Point | Box, ...]
    max_side: int

    def __call__(self) -> Picture:
        with _LOCKS[hash(self.path) % len(_LOCKS)]:  # threads that want one image wait for the first to read it
            image = _opened(self.path, self.max_side)
        buffer = io.BytesIO()
        drawn(image.copy(), self.points).save(buffer, "JPEG", quality=90)
        return Picture(buffer.getvalue())


_LOCKS = tuple(Lock() for _ in range(16))


@lru_cache(maxsize=16)  # samples about one image stand together; at most 16 x 3 MB at the default size
def _opened(path: Path, max_side: int) -> Image:
    image = open_image(path)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side))
    return image


def drawn(image: Image, points: Sequence[Point | Box]) -> Image:
    """The image with the answer drawn into it: a dot a point, an outline a box.

    Drawn with PIL: the figures of `marks` take matplotlib fifty times as long, and this is done for every sample.
    """
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    radius = max(3.0, max(image.size) / 110)
    rim = max(1, round(radius / 3))
    for item in points:
        if isinstance(item, Box):
            draw.rectangle(item.to_pixels(*image.size), outline=DOT, width=max(2, rim))
            continue
        x, y = item.to_pixels(*image.size)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=DOT, outline="white", width=rim)
    return image
