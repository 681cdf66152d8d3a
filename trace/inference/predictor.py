"""Ask a model: images and instructions in, predictions out, batched and repeatable.

    from trace_vlm import Predictor
    (prediction,) = Predictor.load("nano").predict(["table.png"], ["Point to the mug."])

Greedy answers do not depend on their batch. Sampled ones are drawn by a generator of their own, seeded by the
question's position and the number of the sample, so that a resumed job gives the same answers.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from ..core.conventions import CONVENTIONS, read, write_question
from ..core.prompts import bare_instruction, question_text
from ..core.reasoning import Response
from ..utils.command import InputError
from .confidence import agreement, medoid, point_confidence
from .generation import PASS_TOKENS, AnswerRow, Decoding, OnStep, generate, generate_with_transformers
from .vision_cache import ImageLike, Loaded, VisionCache, free_memory, pass_bytes, row_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.families.base import Checkpoint
    from .constrained_decoding import Grammar

READERS = 4  # threads that decode images while the model generates
BATCH_LIMITS = {"cpu": 32, "cuda": 256}  # beyond these a batch gains nothing
FREE_SHARE = 0.85  # of the free memory that a batch may take
LONGEST = 16  # prompts whose tokens are counted to find the longest: more characters are not always more tokens
FRAME = 8  # tokens by which a longer one may have been missed
PLACEHOLDER = "{instruction}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one instruction; `text` is without the end-of-sequence token.

    A point's confidence is the probability of its tokens or, with several `samples` (all texts that were drawn), the
    share of the others that agree. `response.none`: the answer is that there is nothing to point at.
    """

    text: str
    token_ids: tuple[int, ...]
    response: Response  # points (normalised to the original image) and steps read from the text
    prompt: str
    confidence: float | None  # the mean of `point_confidence`, or that of "none"; None for an unreadable answer
    seconds: float  # this answer's share of its batch's time
    point_confidence: tuple[float, ...] = ()  # in [0, 1], one a point
    samples: tuple[str, ...] = ()
    cut: bool = False  # whether the answer reached its last token before it ended
    convention: str = "unit"  # in which the text writes points
    logprobs: tuple[float, ...] = ()  # of `token_ids`; () where unknown
    sent: tuple[int, int] | None = None  # width and height of the picture that the model saw; None for fractions


class PromptedImage(NamedTuple):
    image: str  # the key of an image
    prompt: str  # as rendered
    seed: int  # decides the samples
    position: int  # among the questions


def device_and_dtype(device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """Where and as what a model is loaded; see `Predictor.load`."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or ("float32" if device == "cpu" else "auto")


class Predictor:
    """A loaded model that answers questions about images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._fitting = sys.maxsize  # answers at a time; lowered when so many did not fit

    @classmethod
    def load(
        cls, path: str | Path, base: str | Path | None = None, device: str | None = None, dtype: str | None = None
    ) -> Predictor:
        """Load a checkpoint in any known format, or a bundled model by its name.

        Args:
            base: the model that an adapter at `path` belongs to.
            device: as torch names it; by default a GPU if there is one.
            dtype: as torch names it; by default float32 on a CPU, on a GPU the stored type.
        """
        from ..model.checkpoint import load

        device, dtype = device_and_dtype(device, dtype)
        return cls(load(path, base=base, dtype=dtype, device=device))

    @overload
    def predict(self, images: ImageLike, instructions: str, **settings: Any) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], instructions: Sequence[str], **settings: Any
    ) -> list[Prediction]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], instructions: str | Sequence[str], *, reasoning: bool | None = None,
        batch_size: int | None = 32, style: str = "vicuna_v1", template: str | None = None,
        prefixes: Sequence[str] = (), on_step: OnStep | None = None, **settings: Any,
    ) -> Prediction | list[Prediction]:  # fmt: skip
        """Answer one instruction an image, in the order given; one image and one text give one prediction.

        Args:
            images: paths, PIL images, or arrays `[height, width, 3]` of uint8 in RGB (OpenCV's are BGR: turn them).
            reasoning: ask for the Chain of Reasoning before the points; None: as the model was trained.
            batch_size: answers generated together; None takes as many as fit.
            style: the conversation template, a key of `prompts.TEMPLATES`.
            template: the text of the question, with `{instruction}` in it, instead of the built-in one.
            prefixes: text that each answer begins with; only what follows it is generated and returned.
            on_step: called with the batch's answers so far (`AnswerRow`) after each token; an exception ends it.
            settings: the fields of `Decoding`: max_new_tokens, temperature, num_points, samples ...
        """
        if isinstance(instructions, str):
            (prediction,) = self.predict(
                [images], [instructions], reasoning=reasoning, style=style, template=template, prefixes=prefixes,
                on_step=on_step, **settings,
            )  # fmt: skip
            return prediction
        predictions: dict[int, Prediction] = {}
        for batch in self.stream(
            images, instructions, Decoding(**settings), reasoning=reasoning, batch_size=batch_size, style=style,
            template=template, prefixes=prefixes, on_step=on_step,
        ):  # fmt: skip
            predictions |= batch
        return [predictions[index] for index in range(len(instructions))]

    def stream(
        self, images: Sequence[ImageLike], instructions: Sequence[str], decoding: Decoding | None = None, *,
        reasoning: bool | None = None, batch_size: int | None = 32, style: str = "vicuna_v1", template: str | None = None,
        prefixes: Sequence[str] = (), done: Collection[int] = (), seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None, keys: Sequence[str] = (), cache: VisionCache | None = None,
    ) -> Iterator[dict[int, Prediction]]:  # fmt: skip
        """Predictions batch by batch, longest questions first, keyed by position; the next images load meanwhile.

        A batch that does not fit in the memory of a GPU is halved, and those after it are no larger. The other arguments
        are those of `predict`.

        Args:
            done: positions that need no answer; the others' answers do not depend on them.
            seeds: a number for every question that decides its samples; by default its position.
            keys: a name for every image, the same for the same image; by default its path or identity.
            cache: keeps features between calls, by `keys`.
        """
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} images for {len(instructions)} instructions")
        decoding = decoding or Decoding()
        reasoning = self.checkpoint.reasons if reasoning is None else reasoning
        prompts = [
            self.checkpoint.prompt(
                build_question(text, reasoning, template, self.checkpoint.coordinates), style, prefix
            )
            for text, prefix in zip(instructions, prefixes or [""] * len(instructions), strict=True)
        ]
        keys = keys or [str(image) if isinstance(image, str | Path) else f"object {id(image)}" for image in images]
        if batch_size is None:
            batch_size = self.largest_batch(prompts, decoding)
        batches = [[index for index in batch if index not in done] for batch in make_batches(prompts, batch_size, keys)]
        batches = [batch for batch in batches if batch]
        cache = cache or VisionCache(self.checkpoint, Counter(keys[index] for batch in batches for index in batch))
        grammar = None
        if decoding.constrained:
            if self.checkpoint.coordinates != "unit":
                raise InputError(
                    f"--constrain, --num-points and a server's num_points write fractions; {self.checkpoint.name} writes "
                    f"points as {self.checkpoint.coordinates} does. Leave them out"
                )
            from .constrained_decoding import Grammar

            rows = self.checkpoint.model.get_output_embeddings().weight.shape[0]
            grammar = Grammar(
                self.checkpoint.tokenizer, rows, reasoning, decoding.num_points, decoding.max_new_tokens,
                self.checkpoint.answer_lead,
            )  # fmt: skip
        with ThreadPoolExecutor(READERS) as readers:

            def start(batch: Sequence[int]) -> dict[str, Future[Loaded]]:
                first = {keys[index]: images[index] for index in batch}
                return {key: readers.submit(cache.read, key, image) for key, image in first.items()}

            upcoming = start(batches[0]) if batches else {}
            for number, batch in enumerate(batches, start=1):
                loading, upcoming = upcoming, start(batches[number]) if number < len(batches) else {}
                loaded = {key: future.result() for key, future in loading.items()}
                questions = [
                    PromptedImage(keys[index], prompts[index], seeds[index] if seeds else index, index)
                    for index in batch
                ]
                predictions = self._answer(questions, loaded, cache, decoding, grammar, on_step)
                yield dict(zip(batch, predictions, strict=True))

    def largest_batch(self, prompts: Sequence[str], decoding: Decoding) -> int:
        """How many answers to these rendered prompts fit in the free memory, or fewer, so that batches are equal."""
        longest = max((self.prompt_tokens(prompt) for prompt in sorted(prompts, key=len)[-LONGEST:]), default=0)
        model = self.checkpoint.model
        kind = "cuda" if model.device.type == "cuda" else "cpu"
        free = FREE_SHARE * free_memory(model) - pass_bytes(model, PASS_TOKENS[kind])
        row = row_bytes(model, longest + decoding.max_new_tokens)
        if not self.checkpoint.packed_generation:  # the prompts pass through the layers together
            row += pass_bytes(model, longest)
        most = max(1, min(BATCH_LIMITS[kind], int(free / (decoding.samples * decoding.num_beams * row))))
        return math.ceil(len(prompts) / math.ceil(len(prompts) / most)) if prompts else 1

    def prompt_tokens(self, prompt: str) -> int:
        """The number of tokens, image included, in the conversation's frame."""
        return len(self.checkpoint.prompt_ids(prompt)) + FRAME

    def _answer(
        self, questions: Sequence[PromptedImage], loaded: Mapping[str, Loaded], cache: VisionCache, decoding: Decoding,
        grammar: Grammar | None, on_step: OnStep | None,
    ) -> list[Prediction]:  # fmt: skip
        """Answer a batch, in parts if the GPU's memory does not suffice; a size that did not fit is not tried again."""
        import torch

        predictions: list[Prediction] = []
        while len(predictions) < len(questions):
            part = questions[len(predictions) : len(predictions) + self._fitting]
            started, rows = time.perf_counter(), None
            try:
                rows = self._generate(part, loaded, cache, decoding, grammar, on_step)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise InputError(
                        "one question does not fit in the memory of the GPU. Lower --max-new-tokens, or load the model "
                        "with another --dtype"
                    ) from None
                self._fitting = len(part) // 2
            if rows is None:  # outside of the handler, which holds the failed pass's tensors
                torch.cuda.empty_cache()
                continue
            cache.used(Counter(question.image for question in part))
            seconds = (time.perf_counter() - started) / len(part)
            for index, question in enumerate(part):
                samples = rows[index * decoding.samples : (index + 1) * decoding.samples]
                image = loaded[question.image][0]
                predictions.append(self._prediction(samples, question.prompt, image, seconds, decoding))
        return predictions

    def _generate(
        self, questions: Sequence[PromptedImage], loaded: Mapping[str, Loaded], cache: VisionCache, decoding: Decoding,
        grammar: Grammar | None, on_step: OnStep | None,
    ) -> list[AnswerRow]:  # fmt: skip
        """A finished row for every sample of every question."""
        import numpy as np

        from .constrained_decoding import Guide

        packed = self.checkpoint.packed_generation and decoding.num_beams == 1
        images, rows = list(dict.fromkeys(question.image for question in questions)), []
        for question in questions:
            ids = self.checkpoint.prompt_ids(question.prompt) if packed else ()
            for sample in range(decoding.samples):
                seed = [decoding.seed, question.seed, sample]
                rng = np.random.default_rng(seed) if decoding.temperature > 0 else None
                guide = Guide(grammar) if grammar is not None else None
                rows.append(AnswerRow(images.index(question.image), ids, rng, guide, question.position))
        if packed:
            generate(self.checkpoint, rows, cache.features(images, loaded), decoding, on_step)
            return rows
        prompts = [question.prompt for question in questions for _ in range(decoding.samples)]
        inputs = self.checkpoint.inputs([loaded[images[row.image]][0] for row in rows], prompts)
        decoding = replace(decoding, seed=(decoding.seed + questions[0].seed) % 2**63)
        generate_with_transformers(self.checkpoint, rows, inputs, decoding, on_step)
        return rows

    def _prediction(
        self, rows: Sequence[AnswerRow], prompt: str, image: Image, seconds: float, decoding: Decoding
    ) -> Prediction:
        tokenizer, size, sent = self.checkpoint.tokenizer, image.size, self.checkpoint.sent_size(image)
        convention = CONVENTIONS[self.checkpoint.coordinates]
        texts = tuple(tokenizer.decode(row.token_ids, skip_special_tokens=True).strip() for row in rows)
        responses = [read(text, size, convention, sent) for text in texts]
        chosen = medoid(responses, size) if decoding.aggregate == "medoid" else 0
        ids, response = rows[chosen].token_ids, responses[chosen]
        if len(rows) > 1:
            values = agreement(responses, size)[chosen]
        else:
            values = point_confidence(tokenizer, ids, rows[0].logprobs, response)
        # a grammar ends every answer in time
        cut = len(ids) >= decoding.max_new_tokens and not decoding.constrained
        return Prediction(
            texts[chosen], tuple(ids), response, prompt, sum(values) / len(values) if values else None, seconds,
            () if response.none else values, texts if len(texts) > 1 else (), cut, convention.name,
            tuple(rows[chosen].logprobs), sent,
        )  # fmt: skip


def build_question(instruction: str, reasoning: bool, template: str | None = None, convention: str = "unit") -> str:
    """The text of the human turn: the built-in wording, which ends with what the convention of coordinates asks for, or
    the user's with `{instruction}` replaced."""
    if template is None:
        return write_question(question_text(instruction, reasoning), CONVENTIONS[convention])
    return template.replace(PLACEHOLDER, bare_instruction(instruction))


def make_batches(prompts: Sequence[str], batch_size: int, images: Sequence[str] | None = None) -> list[list[int]]:
    """Positions of `prompts` in batches: those about one image together, the longest first, to fail at once if at all."""
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1")
    groups: dict[Any, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)):
        groups.setdefault(images[index] if images is not None else index, []).append(index)
    order = [index for group in groups.values() for index in group]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
