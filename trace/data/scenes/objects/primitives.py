"""Building blocks of objects: primitives and turned profiles, placed in the object's own frame.

Frame: z up. Lengths are in units of the builder's choice; `catalog` scales the finished object to metres and puts the
middle of its footprint above the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

RGB = tuple[float, float, float]
Vector = tuple[float, float, float]
Floats = NDArray[np.float64]
Profile = tuple[tuple[float, float], ...]

METAL: RGB = (0.72, 0.72, 0.74)
STEEL: RGB = (0.52, 0.53, 0.56)
DARK: RGB = (0.10, 0.10, 0.11)
WOOD: RGB = (0.62, 0.42, 0.24)
CREAM: RGB = (0.94, 0.89, 0.76)
PAPER: RGB = (0.95, 0.94, 0.90)
LEAF: RGB = (0.14, 0.45, 0.13)
GLOW: RGB = (1.0, 0.80, 0.25)
BANDS = 14  # rings of faces a turned profile may have
SIDES = 24


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive of an object. `offset`: its center in the object's frame (origin: the footprint's center, z up).

    `profile` belongs to the shape "lathe": (radius, height) from the bottom of the axis along the outside to the top
    (and down the inside of something hollow), turned around z and scaled by `size`. `role` "top" or "interior" marks
    the flat part on which other objects can stand, "print" what is painted on the "top" before it.
    """

    shape: str  # "box", "cylinder", "sphere", "capsule", "ellipsoid", "cone" or "lathe"
    size: Vector  # MuJoCo's half sizes; for a cone (radius, radius, height); for a lathe the scale of its profile
    offset: Vector
    rgb: RGB
    axis: str = "z"  # direction of the long axis of cylinders and capsules
    turn: tuple[float, ...] = ()  # a rotation matrix by rows, instead of `axis`
    profile: Profile = ()
    role: str = ""

    def rotation(self) -> Floats:
        if self.turn:
            return np.array(self.turn).reshape(3, 3)
        return np.eye(3) if self.axis == "z" else X_UP


X_UP = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # the z axis of a part to x


def darker(rgb: RGB, factor: float) -> RGB:
    return (rgb[0] * factor, rgb[1] * factor, rgb[2] * factor)


def turned(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> tuple[float, ...]:
    """A rotation by degrees about x, then y, then z."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (x, y, z))
    return (
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    )  # fmt: skip


def _towards(start: Sequence[float], end: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    """Length of a segment and the rotation that lays z along it."""
    length = math.dist(start, end)
    x, y, z = ((b - a) / length for a, b in zip(start, end, strict=True))
    level = math.hypot(x, z)
    if level > 0.4:  # a side across y, then the third axis
        side = (-z / level, 0.0, x / level)
    else:
        level = math.hypot(y, z)
        side = (0.0, z / level, -y / level)
    third = (y * side[2] - z * side[1], z * side[0] - x * side[2], x * side[1] - y * side[0])
    return length, (side[0], third[0], x, side[1], third[1], y, side[2], third[2], z)


def _middle(start: Sequence[float], end: Sequence[float]) -> Vector:
    x, y, z = ((a + b) / 2 for a, b in zip(start, end, strict=True))
    return x, y, z


def box(
    width: float, depth: float, height: float, at: Vector, rgb: RGB, turn: tuple[float, ...] = (), role: str = ""
) -> Part:
    """A box of these full sizes (x, y, z); `at` is the middle of its lower face, or of the box where it is turned."""
    x, y, z = at
    center = at if turn else (x, y, z + height / 2)
    return Part("box", (width / 2, depth / 2, height / 2), center, rgb, turn=turn, role=role)


def cylinder(radius: float, height: float, at: Vector, rgb: RGB, role: str = "") -> Part:
    """An upright cylinder; `at` is the middle of its lower face."""
    x, y, z = at
    return Part("cylinder", (radius, height / 2, 0), (x, y, z + height / 2), rgb, role=role)


def bar(start: Vector, end: Vector, radius: float, rgb: RGB) -> Part:
    """A cylinder between two points."""
    length, turn = _towards(start, end)
    return Part("cylinder", (radius, length / 2, 0), _middle(start, end), rgb, turn=turn)


def rod(start: Vector, end: Vector, radius: float, rgb: RGB) -> Part:
    """A capsule whose half spheres have their centers at the two points."""
    length, turn = _towards(start, end)
    return Part("capsule", (radius, length / 2, 0), _middle(start, end), rgb, turn=turn)


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


def egg(radii: Vector, at: Vector, rgb: RGB, turn: tuple[float, ...] = ()) -> Part:
    """An ellipsoid."""
    return Part("ellipsoid", radii, at, rgb, turn=turn)


def lathe(profile: Sequence[tuple[float, float]], at: Vector, rgb: RGB, turn: tuple[float, ...] = ()) -> Part:
    """A body of revolution; `at` is the origin of its profile."""
    if len(profile) - 1 > BANDS:
        raise ValueError(f"a profile may have {BANDS} pieces, not {len(profile) - 1}")
    return Part("lathe", (1.0, 1.0, 1.0), at, rgb, turn=turn, profile=tuple(profile))


def ring(radius: float, thickness: float, at: Vector, rgb: RGB, turn: tuple[float, ...] = ()) -> Part:
    """A torus around z."""
    angles = np.radians(np.linspace(-90, 270, 11))
    profile = [(radius + thickness * math.cos(a), thickness * math.sin(a)) for a in angles]
    return lathe(profile, at, rgb, turn)


def dome(radius: float, height: float, steps: int = 5) -> list[tuple[float, float]]:
    """The upper part of a profile: from (radius, 0) to (0, height) along a quarter of an ellipse."""
    angles = np.linspace(0, math.pi / 2, steps + 1)
    return [(radius * math.cos(a), height * math.sin(a)) for a in angles]


def scaled(part: Part, factor: float, shift: Vector) -> Part:
    """The part moved by `shift` and then scaled about the origin."""
    x, y, z = ((value + move) * factor for value, move in zip(part.offset, shift, strict=True))
    a, b, c = (value * factor for value in part.size)
    return replace(part, size=(a, b, c), offset=(x, y, z))


_ANGLES = np.linspace(0, 2 * math.pi, 16, endpoint=False)
_COS, _SIN = np.cos(_ANGLES), np.sin(_ANGLES)
_CIRCLE = np.stack([_COS, _SIN, np.zeros(16)], 1)
_CYLINDER = np.concatenate([_CIRCLE - [0, 0, 1], _CIRCLE + [0, 0, 1]])
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
        points[..., :2] = rings[:, :1, None] * _CIRCLE[None, :, :2] * a
        points[..., 2] = rings[:, 1:] * c
        local = points.reshape(-1, 3)
    elif part.shape == "capsule":
        local = a * _SPHERE + np.sign(_SPHERE[:, 2:]) * np.array([0.0, 0.0, b])
    else:
        local = _SPHERE * part.size
    if part.turn or part.axis != "z":
        local = local @ part.rotation().T
    return local + part.offset
