"""Building blocks of objects: primitives and turned profiles, placed in the object's own frame.

Frame: z up. Lengths are in units of the builder's choice; `catalog.make_body` scales the finished object to metres
and puts the center of its footprint above the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import RGB, Floats, Ints, Vector

Profile = tuple[tuple[float, float], ...]
Turn = tuple[float, ...]  # a rotation matrix by rows; () is no rotation

BANDS = 14  # rings of faces that a turned profile may have
SIDES = 24
SHARP = math.cos(math.radians(50))  # pieces of a profile that meet at a larger angle keep their edge


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive of an object; `offset` is its center in the object's frame.

    `profile` belongs to the shape "lathe": (radius, height) from the bottom of the axis along the outside to the top
    (and down the inside of a hollow object), turned around z and scaled by `size`. `role`: "top" or "interior" is the
    flat part on which other objects can stand, "print" is painted on the "top" before it.
    """

    shape: str  # "box", "cylinder", "sphere", "capsule", "ellipsoid", "cone", "lathe" or "mesh"
    size: Vector  # MuJoCo's half sizes; for a cone (radius, radius, height); for a lathe the scale of its profile
    offset: Vector
    rgb: RGB
    turn: Turn = ()
    profile: Profile = ()
    role: str = ""

    def rotation(self) -> Floats:
        return np.array(self.turn).reshape(3, 3)


def ground_axes(yaw: float) -> Floats:
    """The x and y axes of something turned by `yaw` radians, in the world: the rows of [2, 2]."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, sin], [-sin, cos]])


def local_xy(points: Floats, center: Sequence[float], yaw: float) -> tuple[Floats, Floats]:
    """World points [..., 2] in a frame at `center` that is turned by `yaw`: x and y, each [...]."""
    x, y = points[..., 0] - center[0], points[..., 1] - center[1]
    if not yaw:
        return x, y
    cos, sin = math.cos(yaw), math.sin(yaw)
    return cos * x + sin * y, cos * y - sin * x


def rectangle_distance(points: Floats, center: Sequence[float], yaw: float, half: Sequence[float]) -> Floats:
    """Distance from points [..., 2] to a turned rectangle of these half sizes, 0 inside it."""
    x, y = local_xy(points, center, yaw)
    distance: Floats = np.hypot(np.maximum(np.abs(x) - half[0], 0), np.maximum(np.abs(y) - half[1], 0))
    return distance


def darker(rgb: RGB, factor: float) -> RGB:
    return (rgb[0] * factor, rgb[1] * factor, rgb[2] * factor)


def turned(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Turn:
    """A rotation by degrees about x, then y, then z."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (x, y, z))
    return (
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    )  # fmt: skip


LYING = turned(y=90)  # the z axis of a part along x


def box(width: float, depth: float, height: float, at: Vector, rgb: RGB, turn: Turn = (), role: str = "") -> Part:
    """A box of these full sizes (x, y, z); `at` is the middle of its lower face, or its center if it is turned."""
    x, y, z = at
    center = at if turn else (x, y, z + height / 2)
    return Part("box", (width / 2, depth / 2, height / 2), center, rgb, turn, role=role)


def cylinder(radius: float, height: float, at: Vector, rgb: RGB, role: str = "") -> Part:
    """An upright cylinder; `at` is the middle of its lower face."""
    x, y, z = at
    return Part("cylinder", (radius, height / 2, 0), (x, y, z + height / 2), rgb, role=role)


def bar(start: Vector, end: Vector, radius: float, rgb: RGB, shape: str = "cylinder") -> Part:
    """A cylinder between two points."""
    length = math.dist(start, end)
    x, y, z = ((b - a) / length for a, b in zip(start, end, strict=True))
    level = math.hypot(x, z)
    if level > 0.4:  # the first axis is perpendicular to y, or to x where the segment runs along y
        side = (-z / level, 0.0, x / level)
    else:
        level = math.hypot(y, z)
        side = (0.0, z / level, -y / level)
    third = (y * side[2] - z * side[1], z * side[0] - x * side[2], x * side[1] - y * side[0])
    turn = (side[0], third[0], x, side[1], third[1], y, side[2], third[2], z)
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
    return Part(shape, (radius, length / 2, 0), middle, rgb, turn)


def rod(start: Vector, end: Vector, radius: float, rgb: RGB) -> Part:
    """A capsule whose half spheres have their centers at the two points."""
    return bar(start, end, radius, rgb, "capsule")


def chain(points: Sequence[Vector], radius: float, rgb: RGB) -> list[Part]:
    return [rod(start, end, radius, rgb) for start, end in zip(points[:-1], points[1:], strict=True)]


def arc(center: Vector, radius: float, start: float, end: float, steps: int, plane: str = "xz") -> list[Vector]:
    """Points on an arc of degrees `start` to `end` in the plane "xz", "yz" or "xy"."""
    result: list[Vector] = []
    for angle in np.radians(np.linspace(start, end, steps + 1)).tolist():
        a, b = radius * math.cos(angle), radius * math.sin(angle)
        dx, dy, dz = {"xz": (a, 0.0, b), "yz": (0.0, a, b), "xy": (a, b, 0.0)}[plane]
        result.append((center[0] + dx, center[1] + dy, center[2] + dz))
    return result


def ball(radius: float, at: Vector, rgb: RGB) -> Part:
    return Part("sphere", (radius, radius, radius), at, rgb)


def egg(radii: Vector, at: Vector, rgb: RGB, turn: Turn = ()) -> Part:
    """An ellipsoid."""
    return Part("ellipsoid", radii, at, rgb, turn)


def lathe(profile: Sequence[tuple[float, float]], at: Vector, rgb: RGB, turn: Turn = ()) -> Part:
    """A body of revolution; `at` is the origin of its profile."""
    if len(profile) - 1 > BANDS:
        raise ValueError(f"a profile may have {BANDS} pieces, not {len(profile) - 1}")
    return Part("lathe", (1.0, 1.0, 1.0), at, rgb, turn, tuple(profile))


def ring(radius: float, thickness: float, at: Vector, rgb: RGB, turn: Turn = ()) -> Part:
    """A torus around z."""
    angles = np.radians(np.linspace(-90, 270, 11))
    profile = [(radius + thickness * math.cos(a), thickness * math.sin(a)) for a in angles]
    return lathe(profile, at, rgb, turn)


def dome(radius: float, height: float, steps: int = 5) -> list[tuple[float, float]]:
    """The upper part of a profile: from (radius, 0) to (0, height) along a quarter of an ellipse."""
    angles = np.linspace(0, math.pi / 2, steps + 1)
    return [(radius * math.cos(a), height * math.sin(a)) for a in angles]


def _circle(steps: int) -> tuple[Floats, Floats]:
    angles = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    return np.cos(angles), np.sin(angles)


_COS, _SIN = _circle(16)
_RIM = np.stack([_COS, _SIN, np.zeros(16)], 1)
_CYLINDER = np.concatenate([_RIM - [0, 0, 1], _RIM + [0, 0, 1]])
_CUBE = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_SPHERE = np.concatenate(
    [np.stack([math.cos(t) * _COS, math.cos(t) * _SIN, np.full(16, math.sin(t))], 1)
     for t in np.linspace(-math.pi / 2, math.pi / 2, 7)]
)  # fmt: skip


def outline(part: Part) -> Floats:
    """Points [n, 3] on the part's surface that span it: its measures are theirs, to the width of a facet."""
    a, b, c = part.size
    if part.shape == "box":
        local = _CUBE * part.size
    elif part.shape == "cylinder":
        local = _CYLINDER * (a, a, b)
    elif part.shape == "lathe":
        rings = np.array(part.profile)
        points = np.empty((len(rings), 16, 3))
        points[..., :2] = rings[:, :1, None] * _RIM[None, :, :2] * a
        points[..., 2] = rings[:, 1:] * c
        local = points.reshape(-1, 3)
    elif part.shape == "capsule":
        local = a * _SPHERE + np.sign(_SPHERE[:, 2:]) * np.array([0.0, 0.0, b])
    else:
        local = _SPHERE * part.size
    if part.turn:
        local = local @ part.rotation().T
    return local + part.offset


# A turned profile as a mesh of one fixed topology, so that a compiled model's mesh can be rewritten for another
# profile. Every piece of a profile has two rings of vertices of its own: where two pieces meet in an edge, their
# normals differ; where they continue each other, the normals agree and the surface is smooth.

_SIDES_COS, _SIDES_SIN = _circle(SIDES)


_BAND, _SIDE = np.divmod(np.arange(BANDS * SIDES), SIDES)
_LOW, _HIGH, _NEXT = 2 * _BAND * SIDES, (2 * _BAND + 1) * SIDES, (_SIDE + 1) % SIDES
_QUADS = [_LOW + _SIDE, _LOW + _NEXT, _HIGH + _NEXT, _LOW + _SIDE, _HIGH + _NEXT, _HIGH + _SIDE]
LATHE_FACES: Ints = np.stack(_QUADS, 1).reshape(-1, 3)


def lathe_arrays(profile: Profile, scale: Vector) -> tuple[Floats, Floats]:
    """Vertices and normals [2 * BANDS * SIDES, 3] of a profile turned around z and scaled."""
    points = np.array(profile) * np.array([scale[0], scale[2]])
    steps = np.diff(points, axis=0)
    normals = np.stack([steps[:, 1], -steps[:, 0]], 1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    starts, ends = normals.copy(), normals.copy()
    smooth = (normals[:-1] * normals[1:]).sum(1) > SHARP
    mean = normals[:-1] + normals[1:]
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    ends[:-1][smooth], starts[1:][smooth] = mean[smooth], mean[smooth]
    count = len(steps)
    rings, ring_normals = np.zeros((BANDS, 2, 2)), np.tile([0.0, 1.0], (BANDS, 2, 1))
    rings[:count, 0], rings[:count, 1] = points[:-1], points[1:]
    rings[count:] = points[-1]  # pieces that are not needed have no area
    ring_normals[:count, 0], ring_normals[:count, 1] = starts, ends
    return _spin(rings.reshape(-1, 2)), _spin(ring_normals.reshape(-1, 2))


def _spin(rings: Floats) -> Floats:
    """Pairs (radius, height) [n, 2] as n rings of SIDES points."""
    radius, height = rings[:, :1], rings[:, 1:]
    heights = np.broadcast_to(height, (len(rings), SIDES))
    return np.stack([radius * _SIDES_COS, radius * _SIDES_SIN, heights], -1).reshape(-1, 3)
