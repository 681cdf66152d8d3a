"""What holds between the objects of a scene whoever looks: next to, above, below, on, inside, between.

An object either has a relation, clearly does not have it, or is unsure: a question about its noun is then not asked.
Computed once a scene and when first asked for; the views of a scene share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..config import RelationsConfig
from ..objects.catalog import Body
from ..world.surfaces import Support
from .relations import between_region, split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

YES, UNSURE, NO = 1, 0, -1
OUTSIDE = 0.1  # beyond the corridor of "between" by this part of its length
POINTS = 32  # of a footprint's outline


class Facts:
    """Relations among bodies; the numbers are slots."""

    def __init__(self, bodies: Sequence[Body], supports: Sequence[Support], config: RelationsConfig) -> None:
        self.bodies, self.supports, self._config = bodies, supports, config
        self.roots = [self._root(slot) for slot in range(len(bodies))]
        self._near: dict[str, Ints] = {}
        self._between: dict[tuple[int, int], Ints] = {}

    def _root(self, slot: int) -> int:
        """The number of the surface on which a body stands, directly or on other objects."""
        support = self.bodies[slot].support
        owner = self.supports[support].owner
        return support if owner is None else self._root(owner)

    def near(self, relation: str) -> Ints:
        """[reference, object] for "next to", "above", "below", "on" and "inside"."""
        if relation not in self._near:
            size = range(len(self.bodies))
            judge = self._next_to if relation == "next to" else self._stacked
            self._near[relation] = np.array(
                [[NO if one == other else judge(relation, one, other) for one in size] for other in size]
            )
        return self._near[relation]

    def _held(self, one: int, other: int) -> bool:
        """Whether `one` stands on or in `other`."""
        return self.supports[self.bodies[one].support].owner == other

    def _next_to(self, relation: str, one: int, other: int) -> int:
        a, b = self.bodies[one], self.bodies[other]
        offset = np.subtract(a.position, b.position)
        gap = float(np.hypot(*offset)) - a.radius - b.radius
        if gap < self._config.next_to_far:
            gap = footprint_gap(a, b)
        if gap >= self._config.next_to_far:
            return NO
        apart = self._held(one, other) or self._held(other, one)
        return YES if a.support == b.support and not apart and gap <= self._config.next_to else UNSURE

    def _stacked(self, relation: str, one: int, other: int) -> int:
        held, place = self._held(one, other), self.supports[self.bodies[one].support]
        if relation in ("on", "inside"):
            return YES if held and place.area == ("top" if relation == "on" else "inside") else NO
        high, low = (one, other) if relation == "above" else (other, one)
        higher, lower = self.bodies[high], self.bodies[low]
        if self.roots[one] == self.roots[other]:  # one on the other is rather "on" than "above"
            return UNSURE if self._held(high, low) else NO
        if higher.z < lower.z + lower.height:
            return NO
        gap = float(self.bodies[other].distance(np.array(self.bodies[one].position)))
        return YES if gap <= self._config.column else UNSURE if gap <= 2 * self._config.column else NO

    def between(self, first: int, second: int) -> Ints:
        """[object]: which lie between two references on their support."""
        if (first, second) not in self._between:
            self._between[first, second] = self._judge_between(first, second)
        return self._between[first, second]

    def _judge_between(self, first: int, second: int) -> Ints:
        config = self._config
        points = np.array([body.position for body in self.bodies])
        radii = np.array([body.radius for body in self.bodies])
        axis = points[second] - points[first]
        length = float(np.hypot(axis[0], axis[1]))
        result = np.full(len(points), UNSURE)
        if not 0 < length <= config.between_reach:
            return result
        support = self.bodies[first].support
        same = np.array([body.support == support for body in self.bodies])
        inside = between_region(points, points[first], points[second], config) & same
        along, across = split(points - points[first], axis / length)
        beyond = (along < -OUTSIDE * length) | (along > (1 + OUTSIDE) * length)
        result[(across - radii > config.corridor_half_width) | beyond] = NO
        result[inside] = YES if self.bodies[second].support == support else UNSURE
        result[[first, second]] = NO
        return result


def footprint_gap(one: Body, other: Body) -> float:
    """The distance between two footprints, 0 where they overlap; their outlines are taken at a few points."""
    gaps = (other.distance(_outline(one)).min(), one.distance(_outline(other)).min())
    return max(0.0, float(min(gaps)))


def _outline(body: Body) -> Floats:
    if body.half is None:
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        return np.array(body.position) + body.radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    t = np.linspace(-1, 1, POINTS // 4 + 1)
    one = np.ones_like(t)
    edges = np.concatenate([np.stack(pair, 1) for pair in ((t, one), (t, -one), (one, t), (-one, t))])
    return (edges * np.array(body.half)) @ body.axes + np.array(body.position)
