"""A pinhole camera that looks down on the scene, and its frame on the ground.

World: metres, z up, the main surface at z = 0. Camera: OpenCV's axes (x right, y down, z forward). Pixels:
origin at the top left corner of the image, so that the center of pixel (column 0, row 0) is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..config import CameraConfig
from ..objects import Bools, Floats, Ints
from ..objects.catalog import Body


@dataclass(frozen=True, slots=True)
class GroundFrame:
    """The camera's right and forward, projected on the ground: unit vectors in world x, y."""

    right: tuple[float, float]
    forward: tuple[float, float]

    @classmethod
    def at(cls, azimuth: float) -> GroundFrame:
        """The frame of a camera at `azimuth` (radians) of what it looks at."""
        forward = (-math.cos(azimuth), -math.sin(azimuth))
        return cls((forward[1], -forward[0]), forward)


@dataclass(frozen=True, slots=True)
class Camera:
    position: tuple[float, float, float]
    azimuth: float  # radians: direction of the camera, seen from what it looks at
    elevation: float  # radians above the ground
    fovy: float  # radians, vertical
    width: int
    height: int
    roll: float = 0.0  # radians, clockwise

    @property
    def ground(self) -> GroundFrame:
        return GroundFrame.at(self.azimuth)

    @property
    def rotation(self) -> Floats:
        """World from camera [3, 3]: the columns are the camera's right, down and forward in the world."""
        return _rotation(self.azimuth, self.elevation, self.roll)

    @property
    def focal(self) -> float:
        """Focal length in pixels (square pixels)."""
        return self.height / 2 / math.tan(self.fovy / 2)

    @property
    def intrinsics(self) -> Floats:
        return np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1.0]])

    @property
    def world_from_camera(self) -> Floats:
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.position
        return matrix

    def rows_of(self, points: Floats) -> tuple[Floats, Floats, Bools]:
        """Smallest and largest pixel row of world points [..., k, 3], and whether one is behind: [...] each."""
        local = (points - np.array(self.position)) @ self.rotation[:, 1:]
        behind = (local[..., 1] <= 1e-3).any(-1)
        rows = local[..., 0] / np.maximum(local[..., 1], 1e-3) * self.focal + self.height / 2
        return rows.min(-1), rows.max(-1), behind

    def ground_points(self, rows: Ints, columns: Ints, z: float = 0.0) -> Floats:
        """Where rays through these pixels' centers meet height z: world x, y [num_pixels, 2]; NaN if they do not."""
        across = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal
        down = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal
        right, low, ahead = self.rotation.T  # the world's directions of the camera's axes
        points = np.empty((len(rows), 2), order="F")  # x and y are used one by one
        # A ray's direction is a sum of what its column and what its row adds.
        drop = (across * right[2])[columns]
        drop += (down * low[2] + ahead[2])[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(drop < 0, (z - self.position[2]) / drop, np.nan)
        scale[scale < 0] = np.nan
        for axis in (0, 1):
            ray = (across * right[axis])[columns]
            ray += (down * low[axis] + ahead[axis])[rows]
            ray *= scale
            np.add(ray, self.position[axis], out=points[:, axis])
        return points


@lru_cache(maxsize=64)  # a view needs its own many times
def _rotation(azimuth: float, elevation: float, roll: float = 0.0) -> Floats:
    ground = GroundFrame.at(azimuth)
    cos, sin = math.cos(elevation), math.sin(elevation)
    forward = np.array([ground.forward[0] * cos, ground.forward[1] * cos, -sin])
    right = np.array([*ground.right, 0.0])
    down = np.cross(forward, right)
    if roll:
        right, down = math.cos(roll) * right + math.sin(roll) * down, math.cos(roll) * down - math.sin(roll) * right
    rotation = np.stack([right, down, forward], axis=1)
    rotation.flags.writeable = False
    return rotation


def sample_camera(
    bodies: Sequence[Body], azimuth: float, size: tuple[int, int], config: CameraConfig, rng: np.random.Generator
) -> Camera:
    """Draw a camera at `azimuth` that has every body inside its picture of `size` (width, height)."""
    width, height = size
    elevation = math.radians(rng.uniform(*config.elevation))
    fovy = math.radians(rng.uniform(*config.fovy))
    roll = math.radians(rng.uniform(*config.roll)) if config.roll != (0.0, 0.0) else 0.0
    centers = np.array([[*body.position, body.z + body.height / 2] for body in bodies])
    radii = np.array([max(body.radius, math.hypot(body.radius, body.height) / 2) for body in bodies])
    # The middle of the objects' extent keeps the picture full; the jitter keeps them from always being centered.
    middle = (centers.min(0) + centers.max(0)) / 2 + np.array([*rng.uniform(-0.04, 0.04, 2), 0.0])
    rotation = _rotation(azimuth, elevation, roll)
    local = (centers - middle) @ rotation
    tangents = np.array([width / height * math.tan(fovy / 2), math.tan(fovy / 2)]) * (1 - config.margin)
    # A sphere is inside the half-plane of the frame's border when |x| + radius * sqrt(1 + t^2) <= t * depth.
    needed = (np.abs(local[:, :2]) + radii[:, None] * np.sqrt(1 + tangents**2)) / tangents - local[:, 2:]
    distance = float(needed.max()) * rng.uniform(*config.slack)
    x, y, z = (middle - distance * rotation[:, 2]).tolist()
    return Camera((x, y, z), azimuth, elevation, fovy, width, height, roll)
