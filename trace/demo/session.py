"""The demo without its page: load models, answer with the reasoning streaming in, read the attention when asked.

One answer is generated at a time, by `inference.predictor`; the attention of its steps is read in one pass.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attention.capture import capture_teacher_forced
from ..attention.metrics import measure, regions
from ..attention.steps import AnswerAttention, attention_by_step
from ..utils.command import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.predictor import Prediction, Predictor

MOST_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class DemoAnswer:
    """A finished answer: points and confidence in `prediction`, the attention of each step once it is read."""

    model: str
    instruction: str
    size: tuple[int, int]
    prediction: Prediction
    attention: AnswerAttention | None = None


class Models:
    """Models by the name in the menu; the last two used stay loaded."""

    def __init__(self, paths: Mapping[str, str], device: str | None = None, dtype: str | None = None) -> None:
        from ..inference.predictor import Predictor

        self.paths, self._lock = dict(paths), threading.Lock()
        self._load = lru_cache(maxsize=2)(lambda name: Predictor.load(self.paths[name], None, device, dtype))

    def get(self, name: str) -> Predictor:
        """Return a model, loaded if needed. InputError: there is no such model, or it cannot be loaded."""
        if name not in self.paths:
            raise InputError(f"there is no model {name!r}; there are {', '.join(self.paths)}")
        with self._lock:
            return self._load(name)


def model_paths(models: Sequence[str]) -> dict[str, str]:
    """Name the models of the command line (`NAME=FOLDER`, `FOLDER` or a bundled name); the bundled ones follow."""
    from ..model.presets import bundled_models

    bundled = {name: str(folder) for name, folder in bundled_models().items()}
    paths: dict[str, str] = {}
    for model in models:
        name, equals, folder = model.partition("=")
        if not equals or (Path(model).is_dir() and not Path(folder).is_dir()):
            name, folder = Path(model).resolve().name, model
        folder = folder if Path(folder).is_dir() else bundled.get(folder, folder)
        if not Path(folder).is_dir():
            raise InputError(f"the model {folder} is not a folder. Give --model NAME=FOLDER or a bundled name.")
        if (bundled | paths).get(name, folder) != folder:
            name = folder
        paths[name] = folder
    return paths | {name: folder for name, folder in bundled.items() if name not in paths}


_generating = threading.Lock()  # one answer at a time: a model's attention function is swapped while it is recorded


class _Stopped(Exception):
    """Ends a generation that nobody reads any more."""


def ask(predictor: Predictor, name: str, image: Image, instruction: str, **settings: Any) -> Iterator[str | DemoAnswer]:
    """Yield the text so far, token by token, and at last the complete answer. Closing the iterator ends generation.

    `settings` are those of `Predictor.predict`. InputError: the instruction is empty, the image too large, or the
    settings do not go together.
    """
    if not instruction.strip():
        raise InputError("an instruction is missing: say what to point at")
    if image.width * image.height > MOST_PIXELS:
        raise InputError(f"the image has {image.width} x {image.height} pixels; the limit is {MOST_PIXELS:,}")
    checkpoint, stop = predictor.checkpoint, threading.Event()
    updates: queue.Queue[str | DemoAnswer | BaseException] = queue.Queue()

    def on_step(rows: Sequence[Any]) -> None:
        if stop.is_set():
            raise _Stopped
        updates.put(checkpoint.tokenizer.decode(rows[0].token_ids, skip_special_tokens=True))

    def answer() -> None:
        try:
            (prediction,) = predictor.predict([image], [instruction], on_step=on_step, **settings)
            if not prediction.token_ids:
                raise InputError("the model's answer is empty. Ask in other words, or raise the temperature.")
            updates.put(DemoAnswer(name, instruction, image.size, prediction))
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that asked)
            updates.put(error)

    with _generating:
        worker = threading.Thread(target=answer)
        worker.start()
        try:
            while isinstance(update := updates.get(), str):
                yield update
        finally:
            stop.set()
            worker.join()
    if isinstance(update, BaseException):
        raise update
    yield update


def with_attention(answer: DemoAnswer, predictor: Predictor, image: Image) -> DemoAnswer:
    """Return the answer with the attention of each step, which takes one pass of the model."""
    prediction = answer.prediction
    with _generating:
        captured = capture_teacher_forced(predictor.checkpoint, image, prediction.prompt, prediction.token_ids)
    return replace(answer, attention=attention_by_step(predictor.checkpoint, captured, image))


def as_record(answer: DemoAnswer) -> dict[str, Any]:
    """Return an answer as JSON: as `trace-vlm predict --json` gives it, and each step's attention if it was read."""
    from ..inference.answer import answer_record

    record = answer_record(answer.prediction, answer.size, answer.model).as_json()
    record, attention = {"instruction": answer.instruction, **record}, answer.attention
    if attention is None:
        return record
    where = regions(answer.size, attention.maps.shape[-1], attention.response.points)
    steps = [{"key": key, "title": title, "tokens": (span := attention.spans.get(key)) and list(span),
              "numbers": span and measure(grid, where)}
             for (key, title), grid in zip(attention.titles.items(), attention.maps, strict=True)]  # fmt: skip
    return {**record, "layers": list(attention.captured.layers), "attention": steps}
