"""Which samples of a source a mix takes: reproducible, nested, and in one pass over a file of any size.

Every sample has a number that depends on the seed and its id alone, and the n smallest are taken. So the choice does
not depend on the order of the file, and a smaller choice lies inside a larger one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..core.points import parse_points
from ..core.prompts import IMAGE_TAG, question_text
from ..core.records import Sample, Turn
from .sources.problems import CONVERSATION, Problem, Problems
from .sources.registry import number_of
from .sources.sample_checks import part_of, reasoned


@dataclass(slots=True)
class Pick:
    """The `wanted` samples (all, when None) of some parts of one source: a heap of the smallest numbers."""

    name: str
    parts: frozenset[str]
    wanted: int | None
    cor: bool  # only samples with reasoning
    seen: int = 0  # of these parts; those found to be unusable are not counted
    _heap: list[tuple[int, int]] = field(default_factory=list)  # (-number, place): the largest number is on top

    def accepts(self, number: int) -> bool:
        return self.wanted is None or len(self._heap) < self.wanted or number < -self._heap[0][0]

    def add(self, number: int, place: int) -> None:
        if self.wanted is None or len(self._heap) < self.wanted:
            heapq.heappush(self._heap, (-number, place))
        else:
            heapq.heapreplace(self._heap, (-number, place))

    def chosen(self, share: float) -> dict[int, bool]:
        """The place of every chosen sample, and whether it keeps its reasoning: the smallest `share` percent do."""
        order = sorted((-number, place) for number, place in self._heap)
        keep = round(len(order) * share / 100)
        return {place: self.cor and rank < keep for rank, (_, place) in enumerate(order)}


def choose(
    samples: Iterator[Sample],
    picks: Sequence[Pick],
    seed: int,
    trouble: Callable[[Sample], tuple[str, str] | None],
    problems: Problems,
) -> None:
    """Fill the picks from one pass over a source; places count its samples from 0.

    Args:
        trouble: (kind, sentence) of what makes a sample unusable; only those are asked that would be taken.
    """
    for place, sample in enumerate(samples):
        part = part_of(sample)
        pick = next((pick for pick in picks if part in pick.parts), None)
        if pick is None:
            continue
        number = number_of(seed, sample.id)
        pick.seen += 1
        if not pick.accepts(number):
            continue
        found = trouble(sample)
        if found is None and pick.cor and without_reasoning(sample) is None:
            found = CONVERSATION, "it has no Chain of Reasoning with a final answer"
        if found is None:
            pick.add(number, place)
        else:
            pick.seen -= 1
            problems.report(Problem(sample.id, *found))


def without_reasoning(sample: Sample) -> Sample | None:
    """The same question and final answer, to the character, without the reasoning; None when there is none."""
    response = reasoned(sample)
    if response is None or response.answer_span is None:
        return None
    answer = response.text[slice(*response.answer_span)]
    begins = [place for place in (answer.find("["), answer.find("(")) if place >= 0]
    listed = answer[min(begins) :].strip() if begins else ""
    if tuple(parse_points(listed)) != response.points:
        return None
    asked = f"{IMAGE_TAG}\n{question_text(sample.conversations[0].text, reasoning=False)}"
    return Sample(sample.id, sample.image, (Turn("human", asked), Turn("gpt", listed)), sample.meta)
