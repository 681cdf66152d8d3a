"""Which generated tokens belong to which step of the reasoning, and where the model looked during each.

The steps are the four of the Chain of Reasoning, the hops of the first one if it has some, and the final answer. Their
tokens follow from the text: `parse` gives each step's characters, `token_spans` each token's. A step that the answer
lacks is missing and has no map. A map is the mean attention of a step's tokens over the recorded layers, unscaled: it
sums to the share of attention on the image, so steps and images can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.conventions import CONVENTIONS, read
from ..core.images import unpad_map
from ..core.prompts import IMAGE_TAG
from ..core.reasoning import HEADINGS, HOP, Response, Span
from ..core.records import Answer
from ..drawing.figures import StepMap, answer_text
from ..inference.predictor import build_question
from ..utils.command import InputError
from .capture import CaptureConfig, CapturedAnswer, capture_teacher_forced, capture_while_generating

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.families.base import Checkpoint

ANSWER = "answer"
STEP_TITLES: Mapping[str, str] = {**HEADINGS, ANSWER: "Final answer"}


@dataclass(frozen=True, slots=True)
class AnswerAttention:
    """One answer, its steps and the attention of each, in the order of `titles`; NaN for a missing step."""

    response: Response
    spans: Mapping[str, Span]  # the tokens (first, one past the last) of each step that the answer has
    layer_maps: NDArray[np.float32]  # [layers, steps, grid, grid] over the padded square
    uniform: NDArray[np.float32]  # [steps], the image's share of attention if every token were attended to equally
    captured: CapturedAnswer  # the rows that the maps are means of
    convention: str = "unit"  # in which the answer writes points
    sent: tuple[int, int] | None = None  # the size of the picture that the model saw; None for fractions

    @property
    def titles(self) -> dict[str, str]:
        """The titles of the steps, by key; of the hops those that the answer has."""
        return step_titles(self.spans)

    @property
    def maps(self) -> NDArray[np.float32]:
        """[steps, grid, grid], the mean over the layers: what is drawn."""
        return self.layer_maps.mean(axis=0)

    @property
    def shares(self) -> NDArray[np.float32]:
        """[steps], the attention mass on the image; NaN for a missing step, and where heads were not averaged."""
        shares = self.maps.sum(axis=(1, 2))
        return shares if self.captured.config.reduction == "mean" else np.full_like(shares, np.nan)

    def text(self, key: str) -> str:
        """Return the words of a step without its heading; empty for a missing one."""
        if key not in self.spans:
            return ""
        return next((part.text for part in self.response.parts if part.key == key), answer_text(self.response))

    def step_maps(self, size: tuple[int, int]) -> list[StepMap]:
        """Return what the figures draw: each step's map over the original image of `size` (width, height)."""
        return [
            StepMap(title, self.text(key), unpad_map(grid, size) if key in self.spans else None, float(share),
                    self.spans.get(key))
            for (key, title), grid, share in zip(self.titles.items(), self.maps, self.shares, strict=True)
        ]  # fmt: skip


def step_titles(keys: Iterable[str]) -> dict[str, str]:
    """Return the titles of STEP_TITLES, and behind the first step those of the hops among `keys`."""
    numbers = sorted(int(key.removeprefix(HOP)) for key in keys if key.startswith(HOP))
    hops = {f"{HOP}{number}": f"Hop {number}" for number in numbers}
    return {next(iter(STEP_TITLES)): "", **hops, **STEP_TITLES}


def token_spans(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, list[Span]]:
    """Return the text of generated ids and each token's characters in it.

    The text is `tokenizer.decode(token_ids, skip_special_tokens=True)`. Special tokens have an empty span. Tokens
    that only together make a character (the bytes of an emoji) all have that character. Every prefix is decoded, so
    the spans are exact for any tokenizer; 500 tokens take about 30 ms.
    """
    ids = [int(token) for token in token_ids]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    special = set(tokenizer.all_special_ids)
    ends: list[int] = []
    settled: list[bool] = []
    for count in range(1, len(ids) + 1):
        prefix = tokenizer.decode(ids[:count], skip_special_tokens=True)
        settled.append(text.startswith(prefix))
        shared = len(prefix if settled[-1] else commonprefix((prefix, text)))
        ends.append(max(shared, ends[-1] if ends else 0))
    spans: list[Span] = []
    following = len(text)  # where the next settled token ends: an unsettled one (half a character) reaches to there
    for index in reversed(range(len(ids))):
        following = ends[index] if settled[index] else following
        start, end = (ends[index - 1] if index else 0), following
        if ids[index] in special:
            end = start
        elif start == end and text[max(0, start - 1) : start] == "\ufffd":
            start -= 1  # a further byte of an invalid character: the first one already made the replacement
        spans.append((start, end))
    return text, spans[::-1]


def step_spans(response: Response, characters: Sequence[Span]) -> dict[str, Span]:
    """Return each step's tokens, from the tokens' `characters` in the text; a step that the answer lacks has no entry.

    A token belongs to the step that holds most of its visible characters, the earlier one if two hold as many (a
    token of blanks: all of its characters). Of an answer without steps, only points or "none", all tokens are the final
    answer.
    """
    spans = {step.key: step.span for step in reversed(response.parts)}  # of two steps with one key, the first
    if response.answer_span is not None:
        spans[ANSWER] = response.answer_span
    elif not spans and response.parsable:
        spans[ANSWER] = (0, len(response.text))
    in_order = sorted(spans.items(), key=lambda item: item[1])
    tokens: dict[str, list[int]] = {}
    for index, span in enumerate(characters):
        visible = [place for place in range(*span) if not response.text[place].isspace()] or range(*span)
        held = {key: sum(start <= place < end for place in visible) for key, (start, end) in in_order}
        best = max(held, key=lambda key: held[key], default=None)
        if best is not None and held[best]:
            tokens.setdefault(best, []).append(index)
    return {key: (tokens[key][0], tokens[key][-1] + 1) for key in step_titles(tokens) if key in tokens}


def mean_maps(attention: NDArray[np.floating], spans: Mapping[str, Span]) -> NDArray[np.float32]:
    """Average the attention [layers, tokens, patches] of each step's tokens: [layers, steps, grid, grid], NaN if missing.

    ValueError: the image tokens are no square grid, or a span reaches past the rows.
    """
    layers, tokens, patches = attention.shape
    side = isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} image tokens are no square grid")
    titles = step_titles(spans)
    maps = np.full((layers, len(titles), side, side), np.nan, dtype=np.float32)
    for index, key in enumerate(titles):
        if key in spans:
            start, end = spans[key]
            if end > tokens:
                raise ValueError(f"step {key!r} ends at token {end}, but attention was recorded for {tokens}")
            maps[:, index] = attention[:, start:end].astype(np.float32).mean(axis=1).reshape(layers, side, side)
    return maps


def attention_by_step(checkpoint: Checkpoint, captured: CapturedAnswer, image: Image) -> AnswerAttention:
    """Split a captured answer about an image into its steps."""
    text, characters = token_spans(checkpoint.tokenizer, captured.token_ids)
    sent = checkpoint.sent_size(image)
    response = read(text, image.size, CONVENTIONS[checkpoint.coordinates], sent)
    spans = step_spans(response, characters)
    even = captured.image_tokens / captured.keys
    uniform = [float(even[slice(*spans[key])].mean()) if key in spans else np.nan for key in step_titles(spans)]
    maps = mean_maps(captured.attention, spans)
    shares = np.asarray(uniform, np.float32)
    return AnswerAttention(response, spans, maps, shares, captured, checkpoint.coordinates, sent)


def ask_with_attention(
    checkpoint: Checkpoint, image: Image, question_text: str, config: CaptureConfig | None = None,
    max_new_tokens: int = 512, style: str = "vicuna_v1",
) -> AnswerAttention:  # fmt: skip
    """Ask a model with reasoning, greedily, and record where it looks during each step.

    The request for reasoning and the answer's format are added to `question_text`. InputError: there is no such layer.
    """
    prompt = checkpoint.prompt(build_question(question_text, True, None, checkpoint.coordinates), style)
    captured = capture_while_generating(checkpoint, image, prompt, config, max_new_tokens=max_new_tokens)
    return attention_by_step(checkpoint, captured, image)


def replay_answer(
    checkpoint: Checkpoint, image: Image, question_text: str, answer: Answer, config: CaptureConfig | None = None,
    style: str = "vicuna_v1",
) -> AnswerAttention:  # fmt: skip
    """Record the attention of a saved answer in one teacher-forced pass.

    An answer saved without its token ids is encoded again, which may split words differently than the model did.
    InputError: the answer is empty, its token ids belong to another tokenizer, or the model has no such layer.
    """
    question = answer.prompt or build_question(question_text, True, None, checkpoint.coordinates)
    prompt = checkpoint.prompt(question.replace(IMAGE_TAG, "").strip(), style)
    tokenizer = checkpoint.tokenizer
    ids = list(answer.token_ids) or tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"the answer to question {answer.question_id} is empty: it has no attention")
    if max(ids) >= len(tokenizer) or tokenizer.decode(ids, skip_special_tokens=True).strip() != answer.text.strip():
        raise InputError(
            f"the token ids of the answer to question {answer.question_id} do not spell its text with the tokenizer of "
            f"{checkpoint.name}: another model gave it. Name that model with --model."
        )
    return attention_by_step(checkpoint, capture_teacher_forced(checkpoint, image, prompt, ids, config), image)
