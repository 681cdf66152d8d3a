"""Ask a model: images and instructions in, predictions out, batched and repeatable.

    from trace_vlm import Predictor
    (prediction,) = Predictor.load("nano-base").predict(["table.png"], ["Point to the mug."])

Greedy answers do not depend on the batch they are in, and sampled ones are drawn by a generator of their own,
seeded by the question's position and the number of the sample: a job that was interrupted gives, once resumed, what
it would have given.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.prompts import bare_instruction, question_text, render_prompt
from ..core.reasoning import Response, parse
from ..utils.command import InputError
from .confidence import agreement, medoid, point_confidence
from .generation import PASS_TOKENS, Decoding, Row, generate
from .vision_cache import Features, ImageLike, free_memory, pass_bytes, row_bytes

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..model.checkpoint import Checkpoint
    from .grammar import Grammar

READERS = 4  # threads that decode images while the model generates
BATCH_LIMITS = {"cpu": 32, "cuda": 256}  # beyond these a batch gains nothing
FREE_SHARE = 0.85  # of the free memory that a batch may take
LONGEST = 16  # prompts whose tokens are counted to find the longest: more characters are not always more tokens
FRAME = 8  # tokens by which a longer one may have been missed

Asking = tuple[str, str, int]  # the image's key, the prompt, the number that seeds the samples
Generated = tuple[Sequence[int], Sequence[float]]  # token ids and their log-probabilities
PLACEHOLDER = "{instruction}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one instruction.

    `text` is the raw answer without the end-of-sequence token, `token_ids` what was generated up to that token,
    `response` what was read from the text (points normalised to the original image), `prompt` the whole text that
    the model was asked with, `seconds` this answer's share of its batch's time.

    `point_confidence` holds one value in [0, 1] a point: the probability of its tokens, or, of several `samples`
    (all texts that were drawn), the share of the others that agree. `confidence` is their mean; None without points.
    `cut` says that the answer reached its last token before it ended.
    """

    text: str
    token_ids: tuple[int, ...]
    response: Response
    prompt: str
    confidence: float | None
    seconds: float
    point_confidence: tuple[float, ...] = ()
    samples: tuple[str, ...] = ()
    cut: bool = False


def device_and_dtype(device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """Where a model is loaded, and as what: see `Predictor.load`."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or ("float32" if device == "cpu" else "auto")


class Predictor:
    """A loaded model that answers questions about images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._grammars: dict[tuple[bool, int | None, int], Grammar] = {}
        self.on_step: Callable[[Sequence[Row]], object] | None = None  # see `generation.generate`
        self._most = sys.maxsize  # answers at a time; less once so many did not fit

    @classmethod
    def load(
        cls, path: str | Path, base: str | Path | None = None, device: str | None = None, dtype: str | None = None
    ) -> Predictor:
        """Load a checkpoint in any format that is known, or a bundled model by its name.

        Args:
            base: the model that an adapter at `path` belongs to.
            device: as torch names it; a GPU when there is one.
            dtype: as torch names it; float32 on a CPU, on a GPU the type that the weights are stored in.
        Raises:
            InputError: the path is no model, or the device or type is not to be had.
        """
        from ..model.checkpoint import load

        device, dtype = device_and_dtype(device, dtype)
        return cls(load(path, base=base, dtype=dtype, device=device))

    def predict(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        *,
        reasoning: bool = True,
        batch_size: int | None = 32,
        style: str = "vicuna_v1",
        template: str | None = None,
        prefixes: Sequence[str] = (),
        progress: Callable[[int], object] | None = None,
        **settings: Any,
    ) -> list[Prediction]:
        """Answer one instruction an image, in the order given.

        Args:
            reasoning: ask for the Chain of Reasoning before the points.
            batch_size: answers generated together; None takes as many as fit.
            style: the conversation template, `prompts.TEMPLATES`.
            template: the text of the question, `{instruction}` in it, instead of the built-in one.
            prefixes: words that each answer begins with; only what follows them is generated and returned.
            progress: called with the number of answers after each batch.
            settings: the fields of `Decoding`: max_new_tokens, temperature, num_points, samples ...
        Raises:
            InputError: an image cannot be read, or an option is out of range.
        """
        decoding = Decoding(**settings)
        found: dict[int, Prediction] = {}
        for batch in self.stream(
            images, instructions, decoding, reasoning=reasoning, batch_size=batch_size, style=style, template=template,
            prefixes=prefixes,
        ):  # fmt: skip
            found.update(batch)
            if progress is not None:
                progress(len(batch))
        return [found[index] for index in range(len(instructions))]

    def stream(
        self,
        images: Sequence[ImageLike],
        instructions: Sequence[str],
        decoding: Decoding | None = None,
        *,
        reasoning: bool = True,
        batch_size: int | None = 32,
        style: str = "vicuna_v1",
        template: str | None = None,
        prefixes: Sequence[str] = (),
        done: Collection[int] = (),
        seeds: Sequence[int] | None = None,
    ) -> Iterator[dict[int, Prediction]]:
        """Predictions batch by batch, longest questions first, keyed by position; the next images load meanwhile.

        Questions about one image (equal paths, or the same object) stand next to one another, so that it is looked at
        once. A batch that does not fit in the memory of a GPU is halved, and those after it are no larger.

        Args:
            done: positions that need no answer. They change nothing about the others.
            seeds: a number for every question that decides its samples; by default its position.
        """
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} images for {len(instructions)} instructions")
        if style == "plain":
            raise InputError(
                "the conversation template 'plain' is an image and its caption: it has no place for a question"
            )
        decoding = decoding or Decoding()
        prompts = [render_prompt(build_question(text, reasoning, template), style) for text in instructions]
        if prefixes:
            prompts = [f"{prompt} {prefix}" for prompt, prefix in zip(prompts, prefixes, strict=True)]
        keys = [str(image) if isinstance(image, str | Path) else f"object {id(image)}" for image in images]
        if batch_size is None:
            batch_size = self.largest_batch(prompts, decoding)
        plan = make_batches(prompts, batch_size, keys)
        left = [[index for index in batch if index not in done] for batch in plan]
        store = Features(self.checkpoint, Counter(keys[index] for batch in left for index in batch))
        grammar = self._grammar(reasoning, decoding)
        with ThreadPoolExecutor(READERS) as readers:

            def start(batch: Sequence[int]) -> dict[str, Future[tuple[Image, Tensor | None]]]:
                first = {keys[index]: images[index] for index in batch}
                return {key: readers.submit(store.read, key, image) for key, image in first.items()}

            queue = [batch for batch in left if batch]
            upcoming = start(queue[0]) if queue else {}
            for place, batch in enumerate(queue):
                loading, upcoming = upcoming, start(queue[place + 1]) if place + 1 < len(queue) else {}
                pictures = {key: future.result() for key, future in loading.items()}
                rows = [(keys[index], prompts[index], seeds[index] if seeds else index) for index in batch]
                predictions = self._fitting(pictures, rows, decoding, grammar, store)
                yield dict(zip(batch, predictions, strict=True))

    def largest_batch(self, prompts: Sequence[str], decoding: Decoding) -> int:
        """How many answers fit in the free memory together, or a little less, so that all batches are alike.

        Args:
            prompts: rendered ones.
        """
        longest = max((self.prompt_tokens(prompt) for prompt in sorted(prompts, key=len)[-LONGEST:]), default=0)
        kind = "cuda" if self.checkpoint.model.device.type == "cuda" else "cpu"
        free = FREE_SHARE * free_memory(self.checkpoint.model) - pass_bytes(self.checkpoint.model, PASS_TOKENS[kind])
        row = row_bytes(self.checkpoint.model, longest + decoding.max_new_tokens)
        most = max(1, min(BATCH_LIMITS[kind], int(free / (decoding.samples * decoding.num_beams * row))))
        return math.ceil(len(prompts) / math.ceil(len(prompts) / most)) if prompts else 1

    def prompt_tokens(self, prompt: str) -> int:
        """The image's among them, in the conversation's frame."""
        return len(self.checkpoint.prompt_ids(prompt)) + FRAME

    def _fitting(
        self, pictures: dict[str, Any], rows: Sequence[Asking], decoding: Decoding, grammar: Grammar | None,
        store: Features,
    ) -> list[Prediction]:  # fmt: skip
        """Answer a batch, in parts where the GPU's memory does not suffice; what did not fit is not tried again."""
        import torch

        found: list[Prediction] = []
        while len(found) < len(rows):
            part = rows[len(found) : len(found) + self._most]
            try:
                found += self._answer(pictures, part, decoding, grammar, store)
                continue
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise InputError(
                        "one question does not fit in the memory of the GPU: lower --max-new-tokens, or load the model "
                        "with another --dtype"
                    ) from None
                self._most = len(part) // 2
            torch.cuda.empty_cache()
        return found

    def _answer(
        self, pictures: dict[str, Any], rows: Sequence[Asking], decoding: Decoding, grammar: Grammar | None,
        store: Features,
    ) -> list[Prediction]:  # fmt: skip
        from ..model.attention_recorder import listening

        started = time.perf_counter()
        sizes = [pictures[key][0].size for key, _, _ in rows]
        if decoding.num_beams > 1 or listening():
            generated = self._by_transformers([pictures[key][0] for key, _, _ in rows], rows, decoding)
        else:
            generated = self._by_rows(pictures, rows, decoding, grammar, store)
        store.used(Counter(key for key, _, _ in rows))
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            self._prediction(answers, prompt, size, seconds, decoding)
            for answers, (_, prompt, _), size in zip(generated, rows, sizes, strict=True)
        ]

    def _prediction(
        self, answers: Sequence[Generated], prompt: str, size: tuple[int, int], seconds: float, decoding: Decoding
    ) -> Prediction:
        texts = [self.checkpoint.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids, _ in answers]
        responses = [parse(text, size) for text in texts]
        chosen = medoid(responses, size) if decoding.aggregate == "medoid" else 0
        ids, logprobs = answers[chosen]
        if len(answers) > 1:
            points = agreement(responses, size)[chosen]
        else:
            points = point_confidence(self.checkpoint.tokenizer, ids, logprobs, responses[chosen])
        mean = sum(points) / len(points) if points else None
        samples = tuple(texts) if len(texts) > 1 else ()
        cut = len(ids) >= decoding.max_new_tokens and not decoding.constrained  # a grammar ends every answer in time
        return Prediction(texts[chosen], tuple(ids), responses[chosen], prompt, mean, seconds, points, samples, cut)

    def _by_rows(
        self, pictures: dict[str, Any], asked: Sequence[Asking], decoding: Decoding, grammar: Grammar | None,
        store: Features,
    ) -> list[list[Generated]]:  # fmt: skip
        """The project's own loop: every sample of every question is a row."""
        import numpy as np

        names = list(dict.fromkeys(key for key, _, _ in asked))
        features = store.features(names, pictures)
        number = {name: place for place, name in enumerate(names)}
        rows: list[Row] = []
        for key, prompt, seed in asked:
            ids = self.checkpoint.prompt_ids(prompt)
            for sample in range(decoding.samples):
                rng = np.random.default_rng([decoding.seed, seed, sample]) if decoding.temperature > 0 else None
                rows.append(Row(number[key], ids, rng, grammar.guide() if grammar is not None else None))
        generate(self.checkpoint, rows, features, decoding, self.checkpoint.suppressed_ids, self.on_step)
        answers = [(row.token_ids, row.logprobs) for row in rows]
        return [answers[start : start + decoding.samples] for start in range(0, len(rows), decoding.samples)]

    def _by_transformers(
        self, images: Sequence[Image], asked: Sequence[Asking], decoding: Decoding
    ) -> list[list[Generated]]:
        """Beams, and what a recorder of attention listens to: transformers' own loop, left-padded."""
        import torch

        if decoding.constrained or decoding.samples > 1:
            raise InputError("attention is recorded for one answer without a grammar: leave out --num-points and such")
        inputs = self.checkpoint.inputs(images, [prompt for _, prompt, _ in asked])
        model = self.checkpoint.model
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices), self._biased(inputs, decoding):
            torch.manual_seed((decoding.seed + asked[0][2]) % 2**63)
            sequences = model.generate(**inputs, generation_config=self._configuration(decoding))
        end = self.checkpoint.tokenizer.eos_token_id
        rows = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        rows = [row[: row.index(end)] if end in row else row for row in rows]
        return [[(row, [])] for row in rows]

    def _biased(self, inputs: dict[str, Tensor], decoding: Decoding) -> Any:
        from contextlib import nullcontext

        from ..model.attention_recorder import image_bias

        if not decoding.image_attention_bias:
            return nullcontext()
        image_BK = inputs["input_ids"] == self.checkpoint.image_token_id
        return image_bias(self.checkpoint.model, decoding.image_attention_bias, image_BK)

    def _configuration(self, decoding: Decoding) -> Any:
        """Every setting is given: generate fills what is None from the checkpoint's own file, whatever that says."""
        from transformers import GenerationConfig

        sampled = decoding.temperature > 0
        tokenizer = self.checkpoint.tokenizer
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=0,
            do_sample=sampled,
            temperature=decoding.temperature if sampled else 1.0,
            top_p=decoding.top_p if sampled else 1.0,
            top_k=0 if sampled else 50,  # 50 is the default, which greedy search does not warn about
            num_beams=decoding.num_beams,
            num_return_sequences=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            return_dict_in_generate=False,
            suppress_tokens=self.checkpoint.suppressed_ids,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )

    def _grammar(self, reasoning: bool, decoding: Decoding) -> Grammar | None:
        if not decoding.constrained:
            return None
        from .grammar import Grammar

        key = (reasoning, decoding.num_points, decoding.max_new_tokens)
        if key not in self._grammars:
            self._grammars[key] = Grammar(self.checkpoint.tokenizer, self._vocabulary(), *key)
        return self._grammars[key]

    def _vocabulary(self) -> int:
        """Rows of the output layer, those that only round it up included."""
        return int(self.checkpoint.model.get_output_embeddings().weight.shape[0])


def build_question(instruction: str, reasoning: bool, template: str | None = None) -> str:
    """What a model is asked: the built-in wording, or the user's, in which `{instruction}` is replaced."""
    if template is None:
        return question_text(instruction, reasoning)
    return template.replace(PLACEHOLDER, bare_instruction(instruction))


def make_batches(prompts: Sequence[str], batch_size: int, images: Sequence[str] | None = None) -> list[list[int]]:
    """Positions of `prompts` in batches: those about one image together, of similar length, the longest first.

    What does not fit in memory shows at once.
    """
    if batch_size < 1:
        raise InputError(f"a batch of {batch_size} cannot be: --batch-size has to be at least 1")
    groups: dict[Any, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)):
        groups.setdefault(images[index] if images is not None else index, []).append(index)
    order = [index for group in groups.values() for index in group]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
