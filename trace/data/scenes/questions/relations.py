"""What "left of", "behind", "next to", "on" and "between" mean, for objects and for free space.

Everything is judged on the ground plane, in the frame of the camera (`GroundFrame`): objects are the footprints of
their oriented boxes, or the enclosing discs where those are smaller. "Left of B" is a cone of `cone` degrees around the
camera's left, with its tip in B's center, and the whole of the object beyond B's edge in that direction. An object near
the border of a relation is unsure: a question about its noun is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..config import RelationsConfig
from ..objects import Bools, Floats, Ints
from ..objects.catalog import Body
from ..wording import DIRECTIONS
from ..world.camera import GroundFrame
from ..world.surfaces import Support

YES, UNSURE, NO = 1, 0, -1
OUTSIDE = 0.1  # beyond the corridor of "between" by this part of its length
POINTS = 32  # of a footprint's outline


def direction(relation: str, ground: GroundFrame) -> tuple[float, float]:
    """The unit vector of left / right / front / behind as the camera sees it. "In front" is nearer to the camera."""
    sign = 1.0 if relation in ("right", "behind") else -1.0
    x, y = ground.right if relation in ("left", "right") else ground.forward
    return sign * x, sign * y


def directions(azimuths: Floats) -> Floats:
    """[num, 4, 2]: the vectors of DIRECTIONS for cameras at `azimuths` [num]."""
    forward = np.array([GroundFrame.at(azimuth).forward for azimuth in azimuths.tolist()])
    right = np.stack([forward[:, 1], -forward[:, 0]], 1)
    vectors = {"left": -right, "right": right, "front": -forward, "behind": forward}
    return np.stack([vectors[relation] for relation in DIRECTIONS], 1)


def split(offset: Floats, vector: Floats) -> tuple[Floats, Floats]:
    """Offsets [..., 2] along a unit vector [..., 2] and across it (absolute), each [...]."""
    along = offset[..., 0] * vector[..., 0] + offset[..., 1] * vector[..., 1]
    across = np.abs(offset[..., 0] * vector[..., 1] - offset[..., 1] * vector[..., 0])
    return along, across


def in_cone(along: Floats, across: Floats, reach: Floats | float, half_angle: float) -> Bools:
    """Whether offsets are inside a cone of `half_angle` degrees and at least `reach` along its axis."""
    inside: Bools = (along >= reach) & (across <= along * math.tan(math.radians(half_angle)))
    return inside


def outside_cone(along: Floats, across: Floats, half_angle: float) -> Bools:
    outside: Bools = across > along * math.tan(math.radians(half_angle))
    return outside


def free_region(
    relation: str, points: Floats, radius: float, reference: Body, ground: GroundFrame, config: RelationsConfig,
    distance: float, ambiguity: float = 0.0,
) -> Bools:  # fmt: skip
    """Whether a disc of `radius` at points [n, 2] stands `relation` the reference.

    `distance` is the largest gap to the reference ("next to" has its own). `ambiguity` (degrees) narrows the cone: the
    removed object is placed well inside the relation, the mask is all of it.
    """
    if relation == "next to":
        near: Bools = reference.distance(points) - radius <= config.next_to
        return near
    vector = np.array(direction(relation, ground))
    along, across = split(points - np.array(reference.position), vector)
    reach = float(reference.extent(vector)) + radius
    inside = in_cone(along, across, reach, config.cone - ambiguity)
    inside[inside] = reference.distance(points[inside]) - radius <= distance
    return inside


def between_region(points: Floats, first: Floats, second: Floats, config: RelationsConfig) -> Bools:
    """Whether points [n, 2] lie in the corridor between two reference centers [2]."""
    axis = second - first
    length = float(np.hypot(axis[0], axis[1]))
    along, across = split(points - first, axis / length)
    low, high = config.corridor
    inside: Bools = (along >= low * length) & (along <= high * length) & (across <= config.corridor_half_width)
    return inside


def names_part(relation: str, surface: Support) -> bool:
    """Whether the words say which part is meant: a shelf has a front and a back of its own, seen from anywhere."""
    return not (surface.kind == "shelf" and relation in ("front part", "back part"))


def part_position(relation: str, points: Floats, surface: Support, ground: GroundFrame) -> Floats:
    """How far points [n, 2] are towards the side that a part is named by: 0 in the middle, 1 at the border."""
    side = {"left part": "left", "right part": "right", "front part": "front", "back part": "behind"}[relation]
    vector = np.array(direction(side, ground))
    offset = points - np.array(surface.center[:2])
    result: Floats = split(offset, vector)[0] / surface.extent(vector)
    return result


class SpatialFacts:
    """Relations among the bodies of a scene, by slot: YES, NO or UNSURE. Computed when first asked for."""

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
            slots = range(len(self.bodies))
            judge: Callable[[int, int], int]
            judge = self._next_to if relation == "next to" else partial(self._stacked, relation)
            rows = [[NO if slot == reference else judge(slot, reference) for slot in slots] for reference in slots]
            self._near[relation] = np.array(rows)
        return self._near[relation]

    def _held(self, slot: int, other: int) -> bool:  # whether one body stands on or in the other
        return self.supports[self.bodies[slot].support].owner == other

    def _next_to(self, slot: int, reference: int) -> int:
        a, b = self.bodies[slot], self.bodies[reference]
        gap = float(np.hypot(*np.subtract(a.position, b.position))) - a.radius - b.radius
        if gap < self._config.next_to_far:
            gap = footprint_gap(a, b)
        if gap >= self._config.next_to_far:
            return NO
        apart = self._held(slot, reference) or self._held(reference, slot)
        return YES if a.support == b.support and not apart and gap <= self._config.next_to else UNSURE

    def _stacked(self, relation: str, slot: int, reference: int) -> int:
        held, place = self._held(slot, reference), self.supports[self.bodies[slot].support]
        if relation in ("on", "inside"):
            return YES if held and place.area == ("top" if relation == "on" else "inside") else NO
        high, low = (slot, reference) if relation == "above" else (reference, slot)
        higher, lower = self.bodies[high], self.bodies[low]
        if self.roots[slot] == self.roots[reference]:  # one on the other is rather "on" than "above"
            return UNSURE if self._held(high, low) else NO
        if higher.z < lower.z + lower.height:
            return NO
        gap = float(self.bodies[reference].distance(np.array(self.bodies[slot].position)))
        return YES if gap <= self._config.column else UNSURE if gap <= 2 * self._config.column else NO

    def between(self, first: int, second: int) -> Ints:
        """[object]: which lie between two references on their support."""
        if (first, second) in self._between:
            return self._between[first, second]
        config = self._config
        points = np.array([body.position for body in self.bodies])
        radii = np.array([body.radius for body in self.bodies])
        axis = points[second] - points[first]
        length = float(np.hypot(axis[0], axis[1]))
        result = np.full(len(points), UNSURE)
        if 0 < length <= config.between_reach:
            support = self.bodies[first].support
            same = np.array([body.support == support for body in self.bodies])
            inside = between_region(points, points[first], points[second], config) & same
            along, across = split(points - points[first], axis / length)
            beyond = (along < -OUTSIDE * length) | (along > (1 + OUTSIDE) * length)
            result[(across - radii > config.corridor_half_width) | beyond] = NO
            result[inside] = YES if self.bodies[second].support == support else UNSURE
            result[[first, second]] = NO
        self._between[first, second] = result
        return result


def footprint_gap(first: Body, second: Body) -> float:
    """The distance between two footprints, 0 where they overlap; their outlines are taken at a few points."""
    gaps = (second.distance(_outline(first)).min(), first.distance(_outline(second)).min())
    return max(0.0, float(min(gaps)))


def _outline(body: Body) -> Floats:
    if body.half is None:
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        return np.array(body.position) + body.radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    t = np.linspace(-1, 1, POINTS // 4 + 1)
    ones = np.ones_like(t)
    edges = np.concatenate([np.stack(pair, 1) for pair in ((t, ones), (t, -ones), (ones, t), (-ones, t))])
    return (edges * np.array(body.half)) @ body.axes + np.array(body.position)
