"""From points in an image to points in space, by depth and a camera (`cameras`).

Points are lifted to the camera's frame (x right, y down, z forward, metres) with the pinhole model, and on to the
robot's base with a 4 x 4 matrix. A coordinate of 0 is the image's left edge, so the centre of the first pixel is at
half a pixel; intrinsics count from that centre, as OpenCV and ROS do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.images import BROKEN_IMAGE
from ..core.points import Point
from ..utils.command import InputError, existing_file
from .cameras import Camera, Floats

UNITS = {"mm": 0.001, "m": 1.0}
NEAR, FAR = 0.01, 100.0  # metres; what lies nearer or farther is no measurement
ALIGNMENTS = ("registered", "scaled")
WINDOW = 5  # pixels along a side of the window whose median depth is taken


@dataclass(frozen=True, slots=True)
class Lifted:
    """A point in space, metres; `reason` says why there is none. `base` is None without extrinsics."""

    depth: float | None
    camera: tuple[float, float, float] | None
    base: tuple[float, float, float] | None
    reason: str = ""


def read_depth(path: str | Path, unit: str | None, alignment: str, size: tuple[int, int]) -> Floats:
    """Depth in metres `[height, width]`, NaN where there is none, in the pixels of a colour image of `size`.

    Args:
        path: a 16-bit or floating-point image, or an array in .npy.
        unit: of the stored values, a key of `UNITS`; by default metres for floats and millimetres for integers.
        alignment: "registered" (a pixel of the one is that pixel of the other) or "scaled" (the same view at another
            resolution: the nearest pixel is taken).
    Raises:
        InputError: the file is missing, no depth image, does not fit the colour image, or most of its distances lie
            outside of what is measured (`NEAR` to `FAR`). Single ones outside of it count as missing.
    """
    path = existing_file(path, "the depth image")
    try:
        if path.suffix.lower() == ".npy":
            raw = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                raw = np.asarray(image)
    except BROKEN_IMAGE as error:
        raise InputError(f"the depth image {path} cannot be read: {error}; give a PNG, a TIFF or .npy") from None
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in "uif":
        raise InputError(f"{path} is no depth image: one number a pixel was expected, it has the shape {raw.shape}")
    if raw.dtype == np.uint8:
        raise InputError(f"{path} holds 8-bit values, which is a picture of depth; give the 16-bit or float values")
    depth = _metres(raw, unit or ("m" if raw.dtype.kind == "f" else "mm"), path)
    width, height = size
    if alignment == "scaled":
        rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
        return depth[rows[:, None], columns]
    if depth.shape != (height, width):
        raise InputError(
            f"the depth image {path} is {depth.shape[1]} x {depth.shape[0]} pixels, the colour image {width} x "
            f"{height}: register it to the colour image, or say --depth-alignment scaled if both show the same view"
        )
    return depth


def _metres(raw: NDArray[Any], unit: str, path: Path) -> Floats:
    depth = raw.astype(np.float64) * UNITS[unit]
    depth[~np.isfinite(depth) | (depth <= 0)] = np.nan
    valid = depth[~np.isnan(depth)]
    median = float(np.median(valid)) if valid.size else NEAR
    if not NEAR <= median <= FAR:
        (other,) = UNITS.keys() - {unit}
        raise InputError(
            f"the depths in {path} have a median of {median:g} m when read as {unit}, and from {NEAR:g} to {FAR:g} m are "
            f"possible: give --depth-unit {other} if these are {other}, otherwise convert them"
        )
    depth[(depth < NEAR) | (depth > FAR)] = np.nan
    return depth


def lift(points: Sequence[Point], depth: Floats, camera: Camera, pose: Floats | None = None) -> list[Lifted]:
    """Each point in the camera's frame and, with `pose`, in the base's; the depth is the median of a 5 x 5 window.

    Pixels of the window without depth are left out; a window without any gives no point, and the reason.
    """
    return [_lift(point, depth, camera, pose) for point in points]


def _lift(point: Point, depth: Floats, camera: Camera, pose: Floats | None) -> Lifted:
    height, width = depth.shape
    pixel = point.to_pixel(width, height)
    if pixel is None:
        return Lifted(None, None, None, "the point lies outside the image")
    column, row = pixel
    half = WINDOW // 2
    window = depth[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    valid = window[np.isfinite(window)]
    if not valid.size:
        return Lifted(None, None, None, f"no depth within {half} pixels of ({column}, {row})")
    z = float(np.median(valid))
    x, y = point.to_pixels(width, height)
    seen = np.array([(x - 0.5 - camera.cx) / camera.fx * z, (y - 0.5 - camera.cy) / camera.fy * z, z])
    base = None if pose is None else _triple(pose[:3, :3] @ seen + pose[:3, 3])
    return Lifted(z, _triple(seen), base)


def _triple(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
