"""Choose a few samples of a generated set, spread over its kinds of question, and store their files small."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sample's position in its set, the picture it shows, and what it asks."""

    position: int
    view: str
    task: str
    group: str  # kind and relation: the choice is spread over these

    @classmethod
    def of(cls, position: int, meta: Any) -> Candidate:
        return cls(position, meta["view"], meta["task"], f"{meta['kind']} {meta['relation'] or ''}".strip())


def spread(
    candidates: Iterable[Candidate], count: int, rng: np.random.Generator, used: set[str] | None = None
) -> list[Candidate]:
    """Up to `count` candidates, one a view, the groups in turn, the rarest group first. `used` views are left out."""
    used = set() if used is None else used
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.group].append(candidate)
    queues = [[groups[name][index] for index in rng.permutation(len(groups[name]))] for name in sorted(groups)]
    queues.sort(key=len)
    chosen: list[Candidate] = []
    while queues and len(chosen) < count:
        for queue in list(queues):
            pick = next((candidate for candidate in queue if candidate.view not in used), None)
            if pick is None:
                queues.remove(queue)
            elif len(chosen) < count:
                queue.remove(pick)
                used.add(pick.view)
                chosen.append(pick)
    return sorted(chosen, key=lambda candidate: candidate.position)


def at_positions(records: Iterable[T], chosen: Sequence[Candidate]) -> list[T]:
    """The records of the chosen candidates, in the order of `chosen`."""
    wanted = {candidate.position for candidate in chosen}
    kept = {position: record for position, record in enumerate(records) if position in wanted}
    return [kept[candidate.position] for candidate in chosen]


def jpeg(path: Path) -> bytes:
    """A picture as JPEG of quality 90."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=90, optimize=True)
    return buffer.getvalue()


def small_mask(path: Path) -> bytes:
    """A mask as the smallest PNG of the same pixels."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
