"""A few samples of a generated set, spread over its questions, and their files in a small form."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

JPEG_QUALITY = 90
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a choice needs to know: where the sample is in its set, which picture it shows, and what is asked."""

    place: int
    view: str
    task: str
    group: str  # kind and relation: the choice is spread over these

    @classmethod
    def of(cls, place: int, meta: Any) -> Candidate:
        return cls(place, meta["view"], meta["task"], f"{meta['kind']} {meta['relation'] or ''}".strip())


def spread(
    candidates: Iterable[Candidate], count: int, rng: np.random.Generator, used: set[str] | None = None
) -> list[Candidate]:
    """Up to `count` candidates, one a view, the groups in turn; the rarest group first. `used` views are left out."""
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
    return sorted(chosen, key=lambda candidate: candidate.place)


def at_places(records: Iterable[T], chosen: Sequence[Candidate], key: Callable[[Candidate], int]) -> list[T]:
    """The records at the chosen places, in the order of `chosen`; the others are read past."""
    wanted = {key(candidate) for candidate in chosen}
    found = {place: record for place, record in enumerate(records) if place in wanted}
    return [found[key(candidate)] for candidate in chosen]


def jpeg(path: Path) -> bytes:
    """A picture as JPEG."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def small_mask(path: Path) -> bytes:
    """A mask as the smallest PNG of the same pixels."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
