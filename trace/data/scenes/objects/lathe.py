"""Turned bodies as meshes of one fixed topology, so that a compiled model's mesh can be rewritten for another profile.

Every piece of a profile has two rings of vertices of its own: where two pieces meet in an edge, their normals differ;
where they continue each other, the normals agree and the surface is smooth.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .primitives import BANDS, SIDES, Profile, Vector

Floats = NDArray[np.float64]

SHARP = math.cos(math.radians(50))  # pieces that meet at a larger angle keep their edge
_ANGLES = np.linspace(0, 2 * math.pi, SIDES, endpoint=False)
_COS, _SIN = np.cos(_ANGLES), np.sin(_ANGLES)


def _faces() -> NDArray[np.int64]:
    faces = []
    for band in range(BANDS):
        low, high = 2 * band * SIDES, (2 * band + 1) * SIDES
        for side in range(SIDES):
            after = (side + 1) % SIDES
            faces += [(low + side, low + after, high + after), (low + side, high + after, high + side)]
    return np.array(faces)


LATHE_FACES = _faces()


def unit_lathe() -> Floats:
    """Vertices [n, 3] of a plain cylinder, which the compiler accepts."""
    heights = np.linspace(0, 1, BANDS + 1)
    return lathe_arrays(tuple((1.0, float(height)) for height in heights), (1.0, 1.0, 1.0))[0]


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
    rings, turned = np.zeros((BANDS, 2, 2)), np.tile([0.0, 1.0], (BANDS, 2, 1))
    rings[:count, 0], rings[:count, 1] = points[:-1], points[1:]
    rings[count:] = points[-1]  # pieces that are not needed have no area
    turned[:count, 0], turned[:count, 1] = starts, ends
    return _spin(rings.reshape(-1, 2)), _spin(turned.reshape(-1, 2))


def _spin(rings: Floats) -> Floats:
    """Pairs (radius, height) [n, 2] as n rings of SIDES points."""
    radius, height = rings[:, :1], rings[:, 1:]
    points = np.stack([radius * _COS, radius * _SIN, np.broadcast_to(height, (len(rings), SIDES))], -1)
    return points.reshape(-1, 3)
