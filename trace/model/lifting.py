"""From points in an image to points in space: depth, the camera's intrinsics, and its place at the robot.

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

from ..command import InputError, existing_file
from ..files import read_json
from ..images import BROKEN_IMAGE
from ..points import Point

UNITS = {"mm": 0.001, "m": 1.0}
ALIGNMENTS = ("registered", "scaled")
WINDOW = 5  # pixels along a side of the window whose median depth is taken
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Camera:
    """Focal lengths and principal point in pixels of the colour image."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, slots=True)
class Lifted:
    """A point in space, metres; `reason` says why there is none. `base` is None without extrinsics."""

    depth: float | None
    camera: tuple[float, float, float] | None
    base: tuple[float, float, float] | None
    reason: str = ""


def read_depth(path: str | Path, unit: str, alignment: str, size: tuple[int, int]) -> Floats:
    """Depth in metres `[height, width]`, NaN where there is none, in the pixels of a colour image of `size`.

    Args:
        path: a 16-bit or floating-point image, or an array in .npy.
        unit: of the stored values, a key of `UNITS`.
        alignment: "registered" (a pixel of the one is that pixel of the other) or "scaled" (the same view at another
            resolution: the nearest pixel is taken).
    Raises:
        InputError: the file is missing, no depth image, or does not fit the colour image.
    """
    path = existing_file(path, "the depth image")
    try:
        if path.suffix.lower() == ".npy":
            raw = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                raw = np.asarray(image)
    except BROKEN_IMAGE as error:
        raise InputError(f"the depth image {path} cannot be read: {error}") from None
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in "uif":
        raise InputError(f"{path} is no depth image: one number a pixel was expected, it has the shape {raw.shape}")
    if raw.dtype == np.uint8:
        raise InputError(f"{path} holds 8-bit values, which is a picture of depth; give the 16-bit or float values")
    depth = raw.astype(np.float64) * UNITS[unit]
    depth[~np.isfinite(depth) | (depth <= 0)] = np.nan
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


def read_intrinsics(path: str | Path, size: tuple[int, int]) -> Camera:
    """A camera from JSON: {"fx", "fy", "cx", "cy"}, or a 3 x 3 matrix under "K" or alone.

    InputError names what is missing; "width" and "height" must be those of the image where they are given.
    """
    found = read_json(path, "the intrinsics")
    if isinstance(found, dict) and not {"fx", "fy", "cx", "cy"} <= found.keys():
        found = found | _as_fields(found.get("K", found.get("intrinsics")), path)
    elif not isinstance(found, dict):
        found = _as_fields(found, path)
    for name, side in zip(("width", "height"), size, strict=True):
        if found.get(name, side) != side:
            raise InputError(f"{path} belongs to images of {name} {found[name]}, this one has {side}")
    try:
        camera = Camera(*(float(found[name]) for name in ("fx", "fy", "cx", "cy")))
    except (TypeError, ValueError):
        raise InputError(f"{path}: fx, fy, cx and cy have to be numbers") from None
    if not (np.isfinite([camera.fx, camera.fy, camera.cx, camera.cy]).all() and camera.fx > 0 and camera.fy > 0):
        raise InputError(f"{path}: the focal lengths have to be positive, not {camera.fx} and {camera.fy}")
    return camera


def _as_fields(matrix: Any, path: str | Path) -> dict[str, float]:
    found = _matrix(matrix, (3, 3))
    if found is None:
        raise InputError(f'{path} holds no intrinsics: "fx", "fy", "cx" and "cy", or a 3 x 3 matrix "K", were expected')
    if found[0, 1] or found[1, 0] or list(found[2]) != [0, 0, 1]:
        raise InputError(f"{path}: the matrix K has to be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; skew is not supported")
    return {"fx": found[0, 0], "fy": found[1, 1], "cx": found[0, 2], "cy": found[1, 2]}


def read_extrinsics(path: str | Path) -> Floats:
    """The camera's pose in the robot's base, 4 x 4 (JSON, alone or under "base_from_camera"). InputError otherwise."""
    found = read_json(path, "the extrinsics")
    pose = _matrix(found.get("base_from_camera") if isinstance(found, dict) else found, (4, 4))
    if pose is None:
        raise InputError(f'{path} holds no pose: a 4 x 4 matrix, alone or as "base_from_camera", was expected')
    rotation = pose[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not rigid or list(pose[3]) != [0, 0, 0, 1]:
        raise InputError(f"{path} is no rigid pose: a rotation, a translation in metres and the row 0 0 0 1 are needed")
    return pose


def _matrix(value: Any, shape: tuple[int, int]) -> Floats | None:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if found.size == shape[0] * shape[1] and found.ndim == 1:
        found = found.reshape(shape)  # ROS writes matrices as one list
    return found if found.shape == shape and bool(np.isfinite(found).all()) else None


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
