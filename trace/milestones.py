"""Which generated tokens belong to which step of the reasoning, and where the model looked during each.

The five milestones are the four steps of the Chain of Reasoning and the final answer. A milestone's tokens are found
from the text itself: `reasoning.parse` gives each step's characters, `token_spans` each token's characters, in any
order of the steps. A step that the answer does not hold is reported as missing and has no map; nothing is guessed
from positions in the sequence. A map is the mean attention of a milestone's tokens (over the chosen layers and all
heads) on the image tokens, as it is: it sums to the share of attention that went to the image, so steps and images
can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import prompts, reasoning
from .command import InputError
from .images import unpad_map
from .plots import StepMap, answer_text
from .reasoning import Response

if TYPE_CHECKING:
    from PIL.Image import Image

    from .model.checkpoint import Checkpoint

MILESTONES: Mapping[str, str] = {
    "reference": "Identify reference object",
    "target": "Define target area",
    "subtype": "Determine goal subtype",
    "output": "Generate output",
    "answer": "Final answer",
}
ANSWER = "answer"
Span = tuple[int, int]  # first and one past the last


@dataclass(frozen=True, slots=True)
class MilestoneMaps:
    """One answer, its milestones and the attention of each.

    maps: float32 [5, grid, grid] over the padded square, in the order of MILESTONES; NaN for a missing milestone.
    shares: float32 [5], the attention mass on the image; NaN for a missing milestone.
    spans: of each milestone found, its tokens (indices into token_ids).
    layers: the decoder layers that were averaged.
    """

    response: Response
    token_ids: tuple[int, ...]
    spans: Mapping[str, Span]
    maps: NDArray[np.float32]
    shares: NDArray[np.float32]
    layers: tuple[int, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(key for key in MILESTONES if key not in self.spans)

    def text(self, key: str) -> str:
        """The words of a milestone, without its heading; empty for a missing one."""
        if key not in self.spans:
            return ""
        if key == ANSWER:
            return answer_text(self.response)
        step = self.response.step(key)
        return step.text if step else ""

    def steps(self, size: tuple[int, int]) -> list[StepMap]:
        """What the figures draw: each milestone's map over the original image of `size` (width, height)."""
        return [
            StepMap(
                title,
                self.text(key),
                unpad_map(self.maps[index], size) if key in self.spans else None,
                float(self.shares[index]),
                self.spans.get(key),
            )
            for index, (key, title) in enumerate(MILESTONES.items())
        ]


def token_spans(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of generated ids and each token's characters in it.

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
        prefix = text if count == len(ids) else tokenizer.decode(ids[:count], skip_special_tokens=True)
        shared = _shared_prefix(prefix, text)
        ends.append(max(shared, ends[-1] if ends else 0))
        settled.append(shared == len(prefix))
    spans: list[Span] = []
    following = len(text)  # where the next settled token ends: an unsettled one (half a character) reaches to there
    for index in reversed(range(len(ids))):
        following = ends[index] if settled[index] else following
        start, end = (ends[index - 1] if index else 0), following
        if ids[index] in special:
            end = start
        elif start == end and text[max(0, start - 1) : start] == "\ufffd":
            start -= 1  # a further byte of what is no character: the first one already made the replacement
        spans.append((start, end))
    return text, spans[::-1]


def _shared_prefix(first: str, second: str) -> int:
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def milestone_spans(response: Response, characters: Sequence[Span]) -> dict[str, Span]:
    """Each milestone's tokens, from its characters in the answer; a milestone that the answer lacks has no entry.

    A token belongs to the one milestone that holds most of its visible characters, the earlier one if two hold as
    many (a token of blanks: all of its characters). `characters` are the tokens' spans in `response.text`.
    """
    wanted = {step.key: step.span for step in reversed(response.steps)}  # of two steps with one key, the first
    if response.answer_span is not None:
        wanted[ANSWER] = response.answer_span
    in_order = sorted(wanted.items(), key=lambda item: item[1])
    tokens: dict[str, list[int]] = {}
    for index, span in enumerate(characters):
        visible = [place for place in range(*span) if not response.text[place].isspace()] or range(*span)
        held = {key: sum(start <= place < end for place in visible) for key, (start, end) in in_order}
        best = max(held, key=lambda key: held[key], default=None)
        if best is not None and held[best]:
            tokens.setdefault(best, []).append(index)
    return {key: (tokens[key][0], tokens[key][-1] + 1) for key in MILESTONES if key in tokens}


def milestone_maps(
    attention: NDArray[np.floating], spans: Mapping[str, Span]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean attention of each milestone's tokens.

    Args:
        attention: [layers, heads, tokens, patches] or [layers, tokens, patches] (heads averaged already), row t
            where token t is fed in, columns the image tokens row by row.
        spans: tokens of each milestone.
    Returns:
        maps [5, grid, grid] and the shares of attention on the image [5]; NaN where a milestone is missing.
    Raises:
        ValueError: the image tokens are no square grid, or a span reaches past the rows.
    """
    rows = attention.astype(np.float32).mean(axis=tuple(range(attention.ndim - 2)))
    side = isqrt(rows.shape[1])
    if side * side != rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} image tokens are no square grid")
    maps = np.full((len(MILESTONES), side, side), np.nan, dtype=np.float32)
    for index, key in enumerate(MILESTONES):
        if key in spans:
            start, end = spans[key]
            if end > len(rows):
                raise ValueError(f"milestone {key!r} ends at token {end}, attention was recorded for {len(rows)}")
            maps[index] = rows[start:end].mean(axis=0).reshape(side, side)
    return maps, maps.sum(axis=(1, 2))


def analyse(
    checkpoint: Checkpoint,
    image: Image,
    question_text: str,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 512,
    style: str = "vicuna_v1",
) -> MilestoneMaps:
    """Ask a model with its reasoning, greedily, and read out where it looks during each milestone meanwhile.

    Args:
        question_text: the instruction; the request for reasoning and the format of the answer are added.
        layers: decoder layers to average, negative ones from the end; the last three by default.
    Raises:
        InputError: the model has no such layer.
    """
    from .attention import GenerationRecorder, recording
    from .model.predictor import Predictor

    chosen = _layers(layers, int(checkpoint.model.config.text_config.num_hidden_layers))
    recorder = GenerationRecorder(chosen, _image_columns(checkpoint, image, question_text, style))
    with recording(checkpoint.model, recorder):
        (prediction,) = Predictor(checkpoint).predict(
            [image], [question_text], batch_size=1, max_new_tokens=max_new_tokens, style=style
        )
    text, characters = token_spans(checkpoint.tokenizer, prediction.token_ids)
    response = reasoning.parse(text, image.size)
    attention = recorder.attention().float().numpy()
    # An answer cut off by max_new_tokens ends in a token that was never fed in: it has no row.
    spans = milestone_spans(response, characters[: attention.shape[2]])
    maps, shares = milestone_maps(attention, spans)
    return MilestoneMaps(response, prediction.token_ids, spans, maps, shares, tuple(chosen))


def _layers(layers: Sequence[int] | None, count: int) -> list[int]:
    wanted = range(max(0, count - 3), count) if layers is None else layers
    for layer in wanted:
        if not -count <= layer < count:
            raise InputError(f"the model has no layer {layer}: its {count} decoder layers count from 0")
    return sorted({layer % count for layer in wanted})


def _image_columns(checkpoint: Checkpoint, image: Image, question: str, style: str) -> slice:
    """Where the image's tokens stand in the prompt that the predictor will make of this question."""
    prompt = prompts.render_prompt(prompts.question_text(question, True), style)
    ids = checkpoint.inputs([image], [prompt])["input_ids"][0].tolist()
    start = ids.index(checkpoint.image_token_id)
    return slice(start, start + ids.count(checkpoint.image_token_id))
