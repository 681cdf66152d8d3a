"""What the demo does, without its page: load a model, answer with the reasoning streaming in, keep the attention.

One answer is generated at a time. The attention of every step is recorded meanwhile (`capture`), each point carries
the probability of its tokens, and a chosen number of points is met through the answer's grammar.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attention.capture import Captured, while_generating
from ..attention.metrics import measure, regions
from ..attention.steps import MILESTONES, MilestoneMaps, of_captured
from ..core import prompts
from ..core.reasoning import parse
from ..utils.command import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.predictor import Prediction
    from ..model.checkpoint import Checkpoint

MOST_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """How an answer is asked for; `num_points` 0 leaves the number to the model."""

    reasoning: bool = True
    num_points: int = 0
    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Told:
    """A finished answer: points and confidence in `prediction`, the attention of each step in `maps`."""

    model: str
    instruction: str
    size: tuple[int, int]
    prediction: Prediction
    maps: MilestoneMaps


class Models:
    """Models by the name that a person chooses; the last two that were used stay loaded."""

    def __init__(self, paths: Mapping[str, str], device: str | None = None, dtype: str | None = None) -> None:
        self.paths = dict(paths)
        self._device, self._dtype = device, dtype
        self._loaded: dict[str, Checkpoint] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Checkpoint:
        """InputError: there is no such model, or it cannot be loaded."""
        from ..inference.predictor import Predictor

        with self._lock:
            if name not in self.paths:
                raise InputError(f"there is no model {name!r}; there are {', '.join(self.paths)}")
            if name not in self._loaded:
                while len(self._loaded) > 1:
                    self._loaded.pop(next(iter(self._loaded)))
                path = self.paths[name]
                self._loaded[name] = Predictor.load(path, None, self._device, self._dtype).checkpoint
            self._loaded[name] = self._loaded.pop(name)  # the last one used goes last
            return self._loaded[name]


def model_paths(given: list[str]) -> dict[str, str]:
    """Names for the models of the command line, `NAME=FOLDER` or `FOLDER`, in their order; those that ship follow."""
    from ..model.presets import bundled_models

    ships = {name: str(folder) for name, folder in bundled_models().items()}
    paths: dict[str, str] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or (Path(one).is_dir() and not Path(folder).is_dir()):
            name, folder = Path(one).resolve().name, one
        if not Path(folder).is_dir():
            raise InputError(f"the model {folder} is no folder")
        if (ships | paths).get(name, folder) != folder:
            name = folder
        paths[name] = folder
    return paths | {name: folder for name, folder in ships.items() if name not in paths}


_generating = threading.Lock()  # the recording function is registered once: one answer at a time


def ask(
    checkpoint: Checkpoint, name: str, image: Image, instruction: str, options: Options | None = None
) -> Iterator[str | Told]:
    """The text so far, token by token, and at last the whole answer.

    Closing the iterator ends the generation.

    Raises:
        InputError: the instruction is empty, the image too large, or the settings do not go together.
    """
    options = options or Options()
    if not instruction.strip():
        raise InputError("an instruction is missing: say what to point at")
    if image.width * image.height > MOST_PIXELS:
        raise InputError(f"the image has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are taken")
    prompt = prompts.render_prompt(prompts.question_text(instruction, options.reasoning))
    stream, stop = _Stream(), threading.Event()
    chooser = _chooser(checkpoint, options)
    started = time.perf_counter()
    with _generating:
        worker = threading.Thread(target=_generate, args=(checkpoint, image, prompt, options, chooser, stream, stop))
        worker.start()
        try:
            ids: list[int] = []
            while isinstance(found := stream.queue.get(), int):
                ids.append(found)
                yield checkpoint.tokenizer.decode(ids, skip_special_tokens=True)
        finally:
            stop.set()
            worker.join()
    if isinstance(found, BaseException):
        raise found
    yield _told(checkpoint, name, image, instruction, prompt, found, chooser, time.perf_counter() - started)


class _Stream:
    """What `generate` hands its tokens to; the first call is the prompt."""

    def __init__(self) -> None:
        self.queue: queue.Queue[int | Captured | BaseException] = queue.Queue()
        self._begun = False

    def put(self, value: Any) -> None:
        if self._begun:
            self.queue.put(int(value.reshape(-1)[0]))
        self._begun = True

    def end(self) -> None:
        pass


def _generate(
    checkpoint: Checkpoint, image: Image, prompt: str, options: Options, chooser: Any, stream: _Stream,
    stop: threading.Event,
) -> None:  # fmt: skip
    import torch

    sampled = options.temperature > 0
    settings: dict[str, Any] = {"streamer": stream, "logits_processor": [chooser], "do_sample": sampled}
    if sampled:
        settings |= {"temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    settings["stopping_criteria"] = [
        lambda ids, scores, **_: torch.full((len(ids),), stop.is_set(), dtype=torch.bool, device=ids.device)
    ]
    try:
        with torch.random.fork_rng(devices=[checkpoint.model.device] if checkpoint.model.device.type == "cuda" else []):
            torch.manual_seed(options.seed)
            found = while_generating(checkpoint, image, prompt, max_new_tokens=options.max_new_tokens, **settings)
        stream.queue.put(found)
    except BaseException as error:  # noqa: BLE001 (handed to the thread that asked, which raises it)
        stream.queue.put(error)


def _chooser(checkpoint: Checkpoint, options: Options) -> Any:
    """Keeps to the grammar of a chosen number of points, and remembers how probable each token was."""
    import torch

    guide = None
    if options.num_points:
        from ..inference.grammar import Grammar

        rows = int(checkpoint.model.get_output_embeddings().weight.shape[0])
        guide = Grammar(
            checkpoint.tokenizer, rows, options.reasoning, options.num_points, options.max_new_tokens
        ).guide()
    end = checkpoint.tokenizer.eos_token_id

    class Chooser:
        """`logprobs`: of every token but the last one, which `of` adds."""

        def __init__(self) -> None:
            self.logprobs: list[float] = []
            self._last: Any = None

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if self._last is not None:
                token = int(input_ids[0, -1])
                self.logprobs.append(float(self._last[token]))
                if guide is not None:
                    guide.take(token)
            if guide is not None:
                scores = self._allowed(scores)
            self._last = scores[0].float().log_softmax(-1)
            return scores

        def _allowed(self, scores: Any) -> Any:
            from ..inference.grammar import allowed

            assert guide is not None
            if guide.finished:
                only = torch.full_like(scores, -torch.inf)
                only[:, end] = 0
                return only
            mask = allowed([guide], scores.shape[-1]).to(scores.device)
            return scores.masked_fill(~mask, -torch.inf)

        def of(self, ids: tuple[int, ...]) -> list[float]:
            found = self.logprobs[: len(ids)]
            if len(found) < len(ids):
                found.append(float(self._last[ids[-1]]))
            return found

    return Chooser()


def _told(
    checkpoint: Checkpoint, name: str, image: Image, instruction: str, prompt: str, captured: Captured, chooser: Any,
    seconds: float,
) -> Told:  # fmt: skip
    from ..inference.confidence import point_confidence
    from ..inference.predictor import Prediction

    text = checkpoint.tokenizer.decode(list(captured.token_ids), skip_special_tokens=True).strip()
    response = parse(text, image.size)
    sure = point_confidence(checkpoint.tokenizer, captured.token_ids, chooser.of(captured.token_ids), response)
    confidence = sum(sure) / len(sure) if sure else None
    prediction = Prediction(text, captured.token_ids, response, prompt, confidence, seconds, sure)
    maps = of_captured(checkpoint.tokenizer, captured, image.size)
    return Told(name, instruction, image.size, prediction, maps)


def as_record(told: Told) -> dict[str, Any]:
    """An answer as JSON: as `trace-vlm predict --json` gives it, with the model and the attention of each step."""
    from ..inference.predict import as_json

    maps = told.maps
    where = regions(told.size, maps.maps.shape[-1], maps.response.points, None, None)
    attention = [
        {
            "key": key,
            "title": title,
            "tokens": list(maps.spans[key]) if key in maps.spans else None,
            "numbers": measure(grid, where) if key in maps.spans else None,
        }
        for (key, title), grid in zip(MILESTONES.items(), maps.maps, strict=True)
    ]
    return {
        "model": told.model,
        "instruction": told.instruction,
        **as_json(told.prediction, told.size),
        "layers": list(maps.layers),
        "attention": attention,
    }
