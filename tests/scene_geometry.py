"""Scenes as geometry, from views.jsonl alone: rays, planes, footprints. It calls no function of the generator.

World: metres, z up. Camera: x right, y down, z forward; pixel (column 0, row 0) has its middle at (0.5, 0.5).
An area is a disc {"center", "radius"} or a rectangle {"center", "half_size", "yaw"}, as views.jsonl writes it.
"""

import math
from typing import Any

import numpy as np

Array = np.ndarray


class Sight:
    """A camera of views.jsonl: rays through pixels, and left and right as seen from it."""

    def __init__(self, view: dict[str, Any]) -> None:
        self.view = view
        self.pose = np.array(view["camera"]["world_from_camera"], float)
        self.intrinsics = np.array(view["camera"]["intrinsics"], float)
        self.origin = self.pose[:3, 3]
        self.ahead = self.pose[:2, 2] / np.linalg.norm(self.pose[:2, 2])
        self.right = np.array([self.ahead[1], -self.ahead[0]])

    def rays(self, rows: Array, columns: Array) -> Array:
        """Directions [n, 3] through the middles of pixels."""
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1)
        return pixels @ np.linalg.inv(self.intrinsics).T @ self.pose[:3, :3].T

    def on_plane(self, rows: Array, columns: Array, z: float) -> Array:
        """Where the rays meet the level plane at height z: [n, 2]; NaN where they do not."""
        rays = self.rays(rows, columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = (z - self.origin[2]) / rays[:, 2]
            return np.where((scale > 0)[:, None], self.origin[:2] + scale[:, None] * rays[:, :2], np.nan)

    def way(self, word: str) -> Array:
        """The unit vector [2] of left, right, front and behind (and back)."""
        return {"left": -self.right, "right": self.right, "front": -self.ahead}.get(word, self.ahead)


def axes(yaw: float) -> Array:
    """[2, 2]: the x and y axes of something turned by yaw, in the world."""
    return np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])


def footprint(item: dict[str, Any]) -> dict[str, Any]:
    """The footprint of an object with its center in the world."""
    return {**item["footprint"], "center": item["position"][:2]}


def gap(points: Array, area: dict[str, Any]) -> Array:
    """Distance of points [n, 2] to an area, 0 inside it."""
    offset = points - np.array(area["center"][:2])
    if area.get("shape") == "disc":
        return np.maximum(np.hypot(*offset.T) - area["radius"], 0)
    return np.hypot(*np.maximum(np.abs(offset @ axes(area["yaw"]).T) - np.array(area["half_size"][:2]), 0).T)


def depth_inside(points: Array, area: dict[str, Any]) -> Array:
    """How far points [n, 2] are inside an area's border; negative outside."""
    offset = points - np.array(area["center"][:2])
    if area.get("shape") == "disc":
        return area["radius"] - np.hypot(*offset.T)
    return (np.array(area["half_size"][:2]) - np.abs(offset @ axes(area["yaw"]).T)).min(1)


def half_extent(area: dict[str, Any], way: Array) -> float:
    """Half extent of an area along a unit vector [2]."""
    if area.get("shape") == "disc":
        return float(area["radius"])
    return float(np.abs(axes(area["yaw"]) @ way) @ np.array(area["half_size"][:2]))


def corners(area: dict[str, Any], steps: int = 24) -> Array:
    """The border of an area as points [n, 2]."""
    center, t = np.array(area["center"][:2]), np.linspace(-1, 1, steps)
    if area.get("shape") == "disc":
        return center + area["radius"] * np.stack([np.cos(math.pi * t), np.sin(math.pi * t)], 1)
    one = np.ones(steps)
    square = np.concatenate([np.stack(pair, 1) for pair in ((t, one), (t, -one), (one, t), (-one, t))])
    return center + (square * np.array(area["half_size"][:2])) @ axes(area["yaw"])


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Gap between two areas that do not cross (0 where one holds the middle of the other)."""
    return float(min(gap(corners(first), second).min(), gap(corners(second), first).min()))
