"""From points in an image to points in space, by a depth image and a camera.

For `trace-vlm predict --depth D --intrinsics FILE --extrinsics FILE`, with intrinsics as ROS, RealSense and OpenCV
write them. Points go to the camera's frame (x right, y down, z forward, metres) by the pinhole model, and to the robot's
base by a 4 x 4 matrix. A coordinate of 0 is the image's left edge, so the centre of the first pixel is at half a
pixel; intrinsics count from that centre, as in OpenCV and ROS.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.images import BROKEN_IMAGE
from ..core.points import Point
from ..utils.command import InputError, existing_file
from ..utils.files import read_json

Floats = NDArray[np.float64]
UNITS = {"mm": 0.001, "m": 1.0}
NEAR, FAR = 0.01, 100.0  # metres; other distances are no measurements
ALIGNMENTS = ("registered", "scaled")
WINDOW = 5  # pixels along a side of the window whose median depth is taken


@dataclass(frozen=True, slots=True)
class Camera:
    """Focal lengths and principal point in pixels of the colour image."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, slots=True)
class Point3D:
    """A point in space, metres, or the reason why there is none. `base` is None without extrinsics."""

    depth: float | None
    camera: tuple[float, float, float] | None
    base: tuple[float, float, float] | None
    reason: str = ""


def backproject(points: Sequence[Point], depth: Floats, camera: Camera, pose: Floats | None = None) -> list[Point3D]:
    """Each point in the camera's frame and, with `pose`, in the base's; the depth is the median of a 5 x 5 window.

    Pixels of the window without depth are left out; a window without any gives no point, and the reason.
    """
    return [_backproject(point, depth, camera, pose) for point in points]


def _backproject(point: Point, depth: Floats, camera: Camera, pose: Floats | None) -> Point3D:
    height, width = depth.shape
    pixel = point.to_pixel(width, height)
    if pixel is None:
        return Point3D(None, None, None, "the point is outside the image")
    column, row = pixel
    half = WINDOW // 2
    window = depth[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    valid = window[np.isfinite(window)]
    if not valid.size:
        return Point3D(None, None, None, f"no depth within {half} pixels of ({column}, {row})")
    z = float(np.median(valid))
    x, y = point.to_pixels(width, height)
    position = np.array([(x - 0.5 - camera.cx) / camera.fx * z, (y - 0.5 - camera.cy) / camera.fy * z, z])
    base = None if pose is None else _triple(pose[:3, :3] @ position + pose[:3, 3])
    return Point3D(z, _triple(position), base)


def _triple(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def read_depth(path: str | Path, unit: str | None, alignment: str, size: tuple[int, int]) -> Floats:
    """Depth in metres `[height, width]`, NaN where there is none, in the pixels of a colour image of `size`.

    Args:
        path: a 16-bit or floating-point image, or an array in .npy.
        unit: of the stored values, a key of `UNITS`; by default metres for floats and millimetres for integers.
        alignment: "registered" (pixel by pixel with the image) or "scaled" (the same view at another resolution: the
            nearest pixel is taken).
    Raises:
        InputError: the file is missing, not a depth image, does not fit the colour image, or its median is outside
            `NEAR` to `FAR`. Single values outside of it count as missing.
    """
    path = existing_file(path, "the depth image")
    try:
        if path.suffix.lower() == ".npy":
            raw = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                raw = np.asarray(image)
    except BROKEN_IMAGE as error:
        raise InputError(f"the depth image {path} cannot be read: {error}. Give a PNG, a TIFF or .npy") from None
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in "uif":
        raise InputError(f"{path} is not a depth image: expected one number a pixel, its shape is {raw.shape}")
    if raw.dtype == np.uint8:
        raise InputError(f"{path} has 8-bit values, a picture of depth. Give the 16-bit or float values")
    depth = _metres(raw, unit or ("m" if raw.dtype.kind == "f" else "mm"), path)
    width, height = size
    if alignment == "scaled":
        rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
        return depth[rows[:, None], columns]
    if depth.shape != (height, width):
        raise InputError(
            f"the depth image {path} has {depth.shape[1]} x {depth.shape[0]} pixels, the colour image {width} x "
            f"{height}. Register it to the colour image, or give --depth-alignment scaled if both show the same view"
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
            f"the depths in {path} have a median of {median:g} m when read as {unit}; {NEAR:g} to {FAR:g} m are possible. "
            f"Give --depth-unit {other} if these are {other}, otherwise convert them"
        )
    depth[(depth < NEAR) | (depth > FAR)] = np.nan
    return depth


# --- cameras --------------------------------------------------------------------------------------

FIELDS = {"fx": ("fx",), "fy": ("fy",), "cx": ("cx", "ppx"), "cy": ("cy", "ppy")}  # the latter as RealSense writes them
MATRICES = ("K", "k", "camera_matrix", "cameraMatrix", "intrinsics")  # 3 x 3
PROJECTIONS = ("P", "p", "projection_matrix")  # 3 x 4, of the rectified image
DISTORTIONS = ("D", "d", "distortion_coefficients", "coeffs")
MIN_FOCAL = 10  # pixels
FOCAL_RANGE = (1 / 20, 50)  # times the image's side: 169 to 1 degree of view


def read_intrinsics(path: str | Path, size: tuple[int, int]) -> Camera:
    """Read a camera from JSON, YAML or the XML of OpenCV.

    Understood are "fx", "fy", "cx", "cy" (RealSense: "ppx", "ppy"), a 3 x 3 matrix alone or under a name of MATRICES,
    and a 3 x 4 one under a name of PROJECTIONS; ROS and OpenCV write matrices as lists or as an object with "data".
    Only the pinhole model is used; a distortion or an unusual camera gives a warning on standard error.

    Args:
        size: (width, height) of the colour image, with which the file has to agree.
    Raises:
        InputError: something is missing or broken, or impossible for an image of this size.
    """
    content = _read_camera_file(Path(path))
    camera_file: Mapping[str, Any] = content if isinstance(content, dict) else {"K": content}
    for name, side in zip(("width", "height"), size, strict=True):
        for key in (name, f"image_{name}"):
            if camera_file.get(key, side) != side:
                raise InputError(f"{path} is for images of {name} {camera_file[key]}; this one has {side}")
    given = [next((camera_file[key] for key in keys if key in camera_file), None) for keys in FIELDS.values()]
    if None in given:
        camera = _from_matrix(camera_file, path)
    else:
        try:
            camera = Camera(*map(float, given))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{path}: fx, fy, cx and cy must be numbers") from None
    _check_camera(camera, size, path)
    if any(np.any(_numbers(camera_file.get(name))) for name in DISTORTIONS):
        _warn(f"{path} has a distortion, which is not corrected: points in space are exact for rectified images only")
    return camera


def _read_camera_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".xml"):
        return read_json(path, "the intrinsics")
    text = existing_file(path, "the intrinsics").read_text("utf-8-sig", errors="replace")
    if suffix == ".xml":
        from xml.etree import ElementTree

        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise InputError(f"{path} is not valid XML: {error}") from None
        fields = {child.tag: (child.findtext("data"), (child.text or "").strip()) for child in root}
        return {tag: data.split() if data else int(value) if value.isdecimal() else value
                for tag, (data, value) in fields.items()}  # fmt: skip
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    # OpenCV's FileStorage writes a first line and a tag of its own.
    Loader.add_constructor(
        "tag:yaml.org,2002:opencv-matrix", lambda loader, node: loader.construct_mapping(node, deep=True)
    )
    if text.startswith("%YAML:"):
        text = text.partition("\n")[2]
    try:
        return next(iter(yaml.load_all(text, Loader)), None)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _from_matrix(camera_file: Mapping[str, Any], path: str | Path) -> Camera:
    matrices = [_matrix(camera_file.get(name), (3, 3)) for name in MATRICES]
    projections = [_matrix(camera_file.get(name), (3, 4)) for name in PROJECTIONS]
    matrix = next((one for one in matrices if one is not None), None)
    projection = next((one for one in projections if one is not None), None)
    if matrix is None and projection is None:
        raise InputError(
            f'{path} has no intrinsics: expected "fx", "fy", "cx" and "cy" (or "ppx" and "ppy"), a 3 x 3 matrix "K" or '
            '"camera_matrix", or a 3 x 4 matrix "P"'
        )
    if matrix is None:
        assert projection is not None
        matrix = projection[:, :3]
    elif projection is not None and projection.any() and not np.allclose(matrix, projection[:, :3], atol=0.5):
        _warn(f"{path} has two cameras; K is used, P differs. For a rectified image leave out K")
    if matrix[0, 1] or matrix[1, 0] or list(matrix[2]) != [0, 0, 1]:
        raise InputError(f"{path}: the matrix must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; skew is not supported")
    return Camera(float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2]))


def _check_camera(camera: Camera, size: tuple[int, int], path: str | Path) -> None:
    """InputError for what is impossible for an image of this size; a warning for what is unusual."""
    width, height = size
    if not (np.isfinite([camera.fx, camera.fy, camera.cx, camera.cy]).all() and camera.fx > 0 and camera.fy > 0):
        raise InputError(f"{path}: the focal lengths must be positive, not {camera.fx} and {camera.fy}")
    for name, value, side in (("fx", camera.fx, width), ("fy", camera.fy, height)):
        if value < MIN_FOCAL or not FOCAL_RANGE[0] <= value / side <= FOCAL_RANGE[1]:
            raise InputError(
                f"{path}: {name} {value:g} is impossible for a {width} x {height} image: it is in pixels, at least "
                f"{MIN_FOCAL} and from 1/20 to 50 times the width and height. Multiply fractions by the sides"
            )
    where = f"{path}: the principal point ({camera.cx:g}, {camera.cy:g})"
    if not (-0.5 < camera.cx < width - 0.5 and -0.5 < camera.cy < height - 0.5):
        raise InputError(f"{where} is outside the {width} x {height} image. Give the intrinsics of this resolution")
    if abs(camera.cx + 0.5 - width / 2) > width / 4 or abs(camera.cy + 0.5 - height / 2) > height / 4:
        _warn(f"{where} is far from the centre of the {width} x {height} image. Are they for another resolution?")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def read_extrinsics(path: str | Path) -> Floats:
    """The camera's pose in the robot's base, 4 x 4 (JSON, alone or under "base_from_camera"). InputError otherwise."""
    content = read_json(path, "the extrinsics")
    pose = _matrix(content.get("base_from_camera") if isinstance(content, dict) else content, (4, 4))
    if pose is None:
        raise InputError(f'{path} has no pose: expected a 4 x 4 matrix, alone or as "base_from_camera"')
    rotation = pose[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not rigid or list(pose[3]) != [0, 0, 0, 1]:
        raise InputError(
            f"{path} is not a rigid pose: expected a rotation, a translation in metres and the row 0 0 0 1"
        )
    return pose


def _numbers(value: Any) -> Floats:
    """The numbers of a list, of nested lists, or of an object with "data", as ROS and OpenCV write them; else none."""
    values = value.get("data") if isinstance(value, dict) else value
    try:
        return np.asarray([] if values is None else values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0)


def _matrix(value: Any, shape: tuple[int, int]) -> Floats | None:
    numbers = _numbers(value)
    if numbers.ndim == 1 and numbers.size == shape[0] * shape[1]:
        numbers = numbers.reshape(shape)
    return numbers if numbers.shape == shape and bool(np.isfinite(numbers).all()) else None
