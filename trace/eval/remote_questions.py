"""How a remote model is asked a benchmark's question, and what of its reply becomes the answer.

The text asks in the model's own convention of coordinates (`conventions`), and the answer keeps the reply as it came,
with the name of that convention: points are always read from the text. The picture itself is sent, as the file is where
nothing has to change, otherwise resized and as a JPEG.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..core.conventions import Convention, sent_size
from ..core.images import is_turned, open_image
from ..core.prompts import REASONING_SUFFIX, bare_instruction, question_text
from ..core.reasoning import FINAL_ANSWER
from ..core.records import Answer, Question
from ..inference.predictor import PLACEHOLDER
from ..utils.command import InputError
from ..utils.files import sha256
from .benchmark import Benchmark

if TYPE_CHECKING:
    from ..remote.client import Completion, Picture, Request

WORDING = "vqa-1"  # stands for every word below: part of the cache's key, so that changed wording is asked anew
EXPECTED_TOKENS = {False: 60, True: 250}  # of an answer, for the estimate: points at once, or after reasoning
_FORMAT = "Your answer should be formatted"  # how sentences begin that questions of published files end with
_ANSWER_LAST = f'Begin the final answer with "{FINAL_ANSWER}".'
_QUALITY = 95  # of a JPEG that has to be made
_AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}  # what every provider takes


@dataclass(frozen=True, slots=True)
class Asking:
    """How the questions of one run are asked. `options` stands for all that shapes an answer beside text and server."""

    suite: Benchmark
    convention: Convention
    box: bool
    reasoning: bool
    template: str | None
    max_side: int
    options: str
    server: str | None  # its address; None for the provider's own
    run: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.box and not self.convention.box:
            raise InputError(f"models of the convention {self.convention.name} write no boxes: leave out --box")

    def text(self, question: Question) -> str:
        """What is asked: the question's own words, then how the answer is to be written."""
        core = bare_instruction(question.text).partition(_FORMAT)[0].rstrip()
        how = self.convention.box if self.box else self.convention.points
        if self.template is not None:
            return self.template.replace(PLACEHOLDER, core)
        if self.convention.name == "unit" and not self.box:  # to the letter what the project's models are trained with
            return question_text(core, self.reasoning)
        return " ".join([core, *([REASONING_SUFFIX, _ANSWER_LAST] if self.reasoning else []), how])

    def sent(self, question: Question) -> tuple[int, int]:
        """The size of the picture as it is sent."""
        return sent_size(self.suite.image_size(question), self.max_side, self.convention)

    def request(self, question: Question) -> Request:
        from ..remote.client import Request

        path, sent = self.suite.image_path(question), self.sent(question)
        # Turned pictures were once sent as they are stored, under a name without the last word.
        upright = " upright" if is_turned(path) else ""
        name = f"{question.image} {sha256(path)[:16]} {sent[0]}x{sent[1]}{upright}"
        item = f"{str(question.question_id)} run {self.run} seed {self.seed}"
        version = f"{WORDING} {self.options}" + (f" server={self.server}" if self.server else "")
        return Request(item, version, self.text(question), "", _picture(path, sent), name)

    def answer(self, question: Question, completion: Completion, model: str) -> Answer:
        """The reply as a record like any other; why it ended, if not by itself, stands in the metadata."""
        request = self.request(question)
        metadata = {
            "convention": self.convention.name,
            "sent": list(self.sent(question)),
            "finish": completion.finish,
            "tokens_in": completion.tokens_in,
            "tokens_out": completion.tokens_out,
        }
        return Answer(
            question_id=question.question_id,
            prompt=request.text,
            text=completion.text,
            answer_id=hashlib.sha256(request.key(model)).hexdigest()[:22],
            model_id=model,
            category=question.category,
            seed=self.seed,
            run=self.run,
            metadata=metadata,
        )

    def tokens(self, question: Question, provider: str) -> int:
        """Of the request, roughly."""
        from ..remote.cost import image_tokens, text_tokens

        return text_tokens(self.text(question)) + image_tokens(provider, *self.sent(question))


def _picture(path: Path, size: tuple[int, int]) -> Callable[[], Picture]:
    from ..remote.client import Picture

    def make() -> Picture:
        picture = open_image(path)  # also says that the file is whole
        with Image.open(path) as image:
            kind = _AS_IT_IS.get(image.format or "")
        if kind and not is_turned(path) and picture.size == size:  # not every server turns a picture as EXIF says
            return Picture(path.read_bytes(), kind)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        return Picture(buffer.getvalue())

    return make
