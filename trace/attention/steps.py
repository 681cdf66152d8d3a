"""Which generated tokens belong to which step of the reasoning, and where the model looked during each.

The five milestones are the four steps of the Chain of Reasoning and the final answer. A milestone's tokens are found
from the text itself: `reasoning.parse` gives each step's characters, `token_spans` each token's characters, in any
order of the steps. A step that the answer does not hold is reported as missing and has no map; nothing is guessed
from positions in the sequence. A map is the mean attention of a milestone's tokens (over the chosen layers and all
heads) on the image tokens, as it is: it sums to the share of attention that went to the image, so steps and images
can be compared. How the rows are recorded is decided in `capture`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core import prompts, reasoning
from ..core.images import unpad_map
from ..core.reasoning import Response
from ..core.records import Answer
from ..drawing.figures import StepMap, answer_text
from ..utils.command import InputError
from .capture import Capture, Captured, teacher_forced, while_generating

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.checkpoint import Checkpoint

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

    spans: of each milestone found, its tokens (indices into token_ids).
    layer_maps: float32 [layers, 5, grid, grid] over the padded square, in the order of MILESTONES; NaN for a missing
        milestone.
    layers: the decoder layers of `layer_maps`.
    uniform: float32 [5], the share of attention that the image would get if every token were looked at alike.
    captured: the rows that the maps are means of.
    """

    response: Response
    token_ids: tuple[int, ...]
    spans: Mapping[str, Span]
    layer_maps: NDArray[np.float32]
    layers: tuple[int, ...]
    uniform: NDArray[np.float32]
    captured: Captured

    @property
    def maps(self) -> NDArray[np.float32]:
        """[5, grid, grid], the mean over the layers: what is drawn."""
        return self.layer_maps.mean(axis=0)

    @property
    def shares(self) -> NDArray[np.float32]:
        """[5], the attention mass on the image; NaN for a missing milestone, and where heads were not averaged."""
        shares = self.maps.sum(axis=(1, 2))
        return shares if self.captured.capture.reduction == "mean" else np.full_like(shares, np.nan)

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
        maps, shares = self.maps, self.shares
        return [
            StepMap(
                title,
                self.text(key),
                unpad_map(maps[index], size) if key in self.spans else None,
                float(shares[index]),
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
    many (a token of blanks: all of its characters). Of an answer that is points and no steps all tokens belong to the
    final answer. `characters` are the tokens' spans in `response.text`.
    """
    wanted = {step.key: step.span for step in reversed(response.steps)}  # of two steps with one key, the first
    if response.answer_span is not None:
        wanted[ANSWER] = response.answer_span
    elif not wanted and response.points:  # nothing but points: the whole text is the answer
        wanted[ANSWER] = (0, len(response.text))
    in_order = sorted(wanted.items(), key=lambda item: item[1])
    tokens: dict[str, list[int]] = {}
    for index, span in enumerate(characters):
        visible = [place for place in range(*span) if not response.text[place].isspace()] or range(*span)
        held = {key: sum(start <= place < end for place in visible) for key, (start, end) in in_order}
        best = max(held, key=lambda key: held[key], default=None)
        if best is not None and held[best]:
            tokens.setdefault(best, []).append(index)
    return {key: (tokens[key][0], tokens[key][-1] + 1) for key in MILESTONES if key in tokens}


def milestone_maps(attention: NDArray[np.floating], spans: Mapping[str, Span]) -> NDArray[np.float32]:
    """The mean attention of each milestone's tokens, layer by layer.

    Args:
        attention: [layers, tokens, patches], row t of token t, columns the image tokens row by row.
        spans: tokens of each milestone.
    Returns:
        [layers, 5, grid, grid]; NaN where a milestone is missing.
    Raises:
        ValueError: the image tokens are no square grid, or a span reaches past the rows.
    """
    layers, tokens, patches = attention.shape
    side = isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} image tokens are no square grid")
    maps = np.full((layers, len(MILESTONES), side, side), np.nan, dtype=np.float32)
    for index, key in enumerate(MILESTONES):
        if key in spans:
            start, end = spans[key]
            if end > tokens:
                raise ValueError(f"milestone {key!r} ends at token {end}, attention was recorded for {tokens}")
            mean = attention[:, start:end].astype(np.float32).mean(axis=1)
            maps[:, index] = mean.reshape(layers, side, side)
    return maps


def of_captured(tokenizer: Any, captured: Captured, size: tuple[int, int]) -> MilestoneMaps:
    """The milestones of an answer about an image of `size` (width, height), and where the model looked in each."""
    text, characters = token_spans(tokenizer, captured.token_ids)
    response = reasoning.parse(text, size)
    spans = milestone_spans(response, characters)
    maps = milestone_maps(captured.attention, spans)
    alike = captured.attention.shape[-1] / captured.keys
    uniform = [float(alike[slice(*spans[key])].mean()) if key in spans else np.nan for key in MILESTONES]
    return MilestoneMaps(
        response, captured.token_ids, spans, maps, captured.layers, np.asarray(uniform, np.float32), captured
    )


def analyse(
    checkpoint: Checkpoint,
    image: Image,
    question_text: str,
    capture: Capture | None = None,
    max_new_tokens: int = 512,
    style: str = "vicuna_v1",
) -> MilestoneMaps:
    """Ask a model with its reasoning, greedily, and read out where it looks during each milestone meanwhile.

    Args:
        question_text: the instruction; the request for reasoning and the format of the answer are added.
    Raises:
        InputError: the model has no such layer.
    """
    prompt = prompts.render_prompt(prompts.question_text(question_text, True), style)
    captured = while_generating(checkpoint, image, prompt, capture, max_new_tokens=max_new_tokens)
    return of_captured(checkpoint.tokenizer, captured, image.size)


def analyse_answer(
    checkpoint: Checkpoint,
    image: Image,
    question_text: str,
    answer: Answer,
    capture: Capture | None = None,
    style: str = "vicuna_v1",
) -> MilestoneMaps:
    """The same for an answer that was saved, in one teacher-forced pass and without generating again.

    An answer that was saved without its token ids is encoded anew, which may cut its words otherwise than the model
    did when it wrote them.

    Raises:
        InputError: the answer is empty, or its token ids belong to another tokenizer; the model has no such layer.
    """
    asked = answer.prompt or prompts.question_text(question_text, True)
    prompt = prompts.render_prompt(asked.replace(prompts.IMAGE_TAG, "").strip(), style)
    tokenizer = checkpoint.tokenizer
    ids = list(answer.token_ids) or tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"the answer to question {answer.question_id} is empty: it has no attention")
    if max(ids) >= len(tokenizer) or tokenizer.decode(ids, skip_special_tokens=True).strip() != answer.text.strip():
        raise InputError(
            f"the token ids of the answer to question {answer.question_id} do not spell its text with the tokenizer of "
            f"{checkpoint.name}: these answers are another model's"
        )
    captured = teacher_forced(checkpoint, image, prompt, ids, capture)
    return of_captured(tokenizer, captured, image.size)
