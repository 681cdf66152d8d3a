"""From points in an image to points in space, by a depth image and a camera.

Points go to the camera's frame (x right, y down, z forward, metres) by the pinhole model, with intrinsics as ROS,
RealSense and OpenCV write them, and to the robot's base by a 4 x 4 matrix. A coordinate of 0 is the image's left edge,
so the centre of the first pixel is at half a pixel; intrinsics count from that centre, as in OpenCV and ROS.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.images import BROKEN_IMAGE, FORMATS
from ..core.points import Point
from ..utils.command import InputError, existing_file
from ..utils.files import read_json

Floats = NDArray[np.float64]
UNITS = {"mm": 0.001, "m": 1.0}
NEAR, FAR = 0.01, 100.0  # metres; other distances are no measurements
ALIGNMENTS = ("registered", "scaled")
WINDOW = 5  # pixels along a side of the window whose median depth is taken
FEWEST = 0.2  # of a window's pixels that make a surface


@dataclass(frozen=True, slots=True)
class Camera:
    """Focal lengths and principal point in pixels of the colour image."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, slots=True)
class Point3D:
    """A point in space, metres, in the camera's frame or the robot's base; None without depth, and `note` says why.

    `surfaces` are the depths of two surfaces that meet at the point; `note` says which one it is on.
    """

    xyz: tuple[float, float, float] | None
    frame: Literal["camera", "base"]
    note: str = ""
    surfaces: tuple[float, ...] = ()


def backproject(points: Sequence[Point], depth: Floats, camera: Camera, pose: Floats | None = None) -> list[Point3D]:
    """Lift an answer's points into the camera's frame or, with `pose`, the base's.

    The depth of a point is the median of a 5 x 5 window, of the pixels that have one. Where the window holds two
    surfaces (a mug and the wall behind it), it is the median of one of them: the one at the depth of the answer's other
    points or, if none of these is clear, the one that the point's own pixel shows.
    """
    height, width = depth.shape
    frame: Literal["camera", "base"] = "camera" if pose is None else "base"
    windows = [_window(depth, point) for point in points]
    clear = [float(np.median(found)) for found, *other in windows if found.size and not other]
    placed = []
    for point, (near, *far) in zip(points, windows, strict=True):
        if not near.size:
            outside = "the point is outside the image"
            reason = f"no depth within {WINDOW // 2} pixels of the point" if point.inside else outside
            placed.append(Point3D(None, frame, reason))
            continue
        depths, note, z = tuple(float(np.median(surface)) for surface in (near, *far)), "", float(np.median(near))
        if far:
            own = _own_depth(depth, point)
            z = min(depths, key=lambda value: abs(value - (float(np.median(clear)) if clear else own)))
            note = f"two surfaces meet here, {depths[0]:.2f} m and {depths[1]:.2f} m away; the point is at {z:.2f} m"
        elif len(clear) > 2 and abs(z - (others := float(np.median(clear)))) > _gap(others):
            note = f"{z:.2f} m away, the other points about {others:.2f} m: it may lie on what is behind or in front"
        x, y = point.to_pixels(width, height)
        position = np.array([(x - 0.5 - camera.cx) / camera.fx * z, (y - 0.5 - camera.cy) / camera.fy * z, z])
        if pose is not None:
            position = pose[:3, :3] @ position + pose[:3, 3]
        placed.append(Point3D(tuple(position.tolist()), frame, note, depths if far else ()))
    return placed


def _window(depth: Floats, point: Point) -> list[Floats]:
    """The depths around a point, those of the nearer surface first if there are two; one empty array without any."""
    pixel = point.to_pixel(depth.shape[1], depth.shape[0])
    if pixel is None:
        return [np.empty(0)]
    (column, row), half = pixel, WINDOW // 2
    window = depth[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
    valid = np.sort(window[np.isfinite(window)])
    if valid.size < 2:
        return [valid]
    at = int(np.diff(valid).argmax()) + 1
    fewest = min(at, valid.size - at)
    two = valid[at] - valid[at - 1] > _gap(valid[at - 1]) and fewest >= FEWEST * valid.size
    return [valid[:at], valid[at:]] if two else [valid]


def _own_depth(depth: Floats, point: Point) -> float:
    """The depth of the valid pixel nearest to a point."""
    height, width = depth.shape
    x, y = point.to_pixels(width, height)
    rows, columns = np.nonzero(np.isfinite(depth))
    nearest = int(np.hypot(columns + 0.5 - x, rows + 0.5 - y).argmin())
    return float(depth[rows[nearest], columns[nearest]])


def _gap(distance: float) -> float:
    """The step in depth, metres, from which two neighbouring pixels show two surfaces: noise grows with distance."""
    return max(0.02, 0.04 * distance)


def read_depth(source: str | Path | bytes, unit: str | None, alignment: str, size: tuple[int, int]) -> Floats:
    """Depth in metres `[height, width]`, NaN where there is none, in the pixels of a colour image of `size`.

    Args:
        source: a 16-bit or floating-point image, or an array in .npy: a path, or the file's content. Its median must be
            from `NEAR` to `FAR`; single values outside count as missing.
        unit: of the stored values, a key of `UNITS`; by default metres for floats and millimetres for integers.
        alignment: "registered" (pixel by pixel with the image) or "scaled" (the same view at another resolution).
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else existing_file(source, "the depth image")
    name, (width, height) = "the depth image" + ("" if isinstance(source, bytes) else f" {source}"), size
    try:
        with Image.open(stream, formats=FORMATS) as image:
            raw = np.asarray(image)
    except BROKEN_IMAGE as error:
        try:
            raw = np.load(io.BytesIO(source) if isinstance(source, bytes) else stream, allow_pickle=False)
        except (*BROKEN_IMAGE, OverflowError, TokenError):  # numpy's header
            raise InputError(f"{name} cannot be read: {error}. Give a PNG, a TIFF or .npy") from None
    if not isinstance(raw, np.ndarray):
        raise InputError(f"{name} holds several arrays. Give one")
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in "uif" or raw.dtype == np.uint8:
        raise InputError(f"{name} must have one number a pixel, 16-bit or float, not {raw.dtype} {raw.shape}")
    unit = unit or ("m" if raw.dtype.kind == "f" else "mm")
    depth = raw.astype(np.float64) * UNITS[unit]
    depth[~np.isfinite(depth) | (depth <= 0)] = np.nan
    median = float(np.nanmedian(depth)) if not np.isnan(depth).all() else NEAR
    if not NEAR <= median <= FAR:
        (other,) = UNITS.keys() - {unit}
        raise InputError(
            f"{name} has a median of {median:g} m when read as {unit}; {NEAR:g} to {FAR:g} m are possible. "
            f"Give depth unit {other} if these are {other}, otherwise convert them"
        )
    depth[(depth < NEAR) | (depth > FAR)] = np.nan
    if alignment == "scaled":
        rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
        return depth[rows[:, None], columns]
    if depth.shape != (height, width):
        raise InputError(
            f"{name} has {depth.shape[1]} x {depth.shape[0]} pixels, the colour image {width} x {height}. Register it to "
            "the colour image; trace-vlm predict scales it with --depth-alignment scaled, the server does not"
        )
    return depth


# --- cameras --------------------------------------------------------------------------------------

FIELDS = {"fx": ("fx",), "fy": ("fy",), "cx": ("cx", "ppx"), "cy": ("cy", "ppy")}  # the latter as RealSense writes them
MATRICES = ("K", "k", "camera_matrix", "cameraMatrix", "intrinsics")  # 3 x 3
PROJECTIONS = ("P", "p", "projection_matrix")  # 3 x 4, of the rectified image
DISTORTIONS = ("D", "d", "distortion_coefficients", "coeffs")
MIN_FOCAL = 10  # pixels
FOCAL_RANGE = (1 / 20, 50)  # times the image's side: 169 to 1 degree of view


def read_intrinsics(path: str | Path, size: tuple[int, int]) -> Camera:
    """Read a camera from JSON, YAML or the XML of OpenCV, for a colour image of `size` (width, height).

    Understood are "fx", "fy", "cx", "cy" (RealSense: "ppx", "ppy"), a 3 x 3 matrix alone or under a name of MATRICES,
    and a 3 x 4 one under a name of PROJECTIONS; ROS and OpenCV write matrices as lists or as an object with "data".
    Only the pinhole model is used; a distortion or an unusual camera gives a warning on standard error. InputError:
    something is missing or broken, or impossible for this size.
    """
    return camera_of(_read_camera_file(Path(path)), size, path)


def camera_of(content: Any, size: tuple[int, int], path: str | Path) -> Camera:
    """Return the camera that parsed JSON or YAML describes, as `read_intrinsics`; errors name `path`."""
    camera_file: Mapping[str, Any] = content if isinstance(content, dict) else {"K": content}
    for name, side in zip(("width", "height"), size, strict=True):
        for key in (name, f"image_{name}"):
            if camera_file.get(key, side) != side:
                raise InputError(f"{path} is for images of {name} {camera_file[key]}; this one has {side}")
    given = [next((camera_file[key] for key in keys if key in camera_file), None) for keys in FIELDS.values()]
    if None in given:
        matrix = _camera_matrix(camera_file, path)
        given = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    try:
        camera = Camera(*map(float, given))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: fx, fy, cx and cy must be numbers") from None
    (fx, fy, cx, cy), (width, height) = astuple(camera), size
    for name, value, side in (("fx", fx, width), ("fy", fy, height)):
        if not (value >= MIN_FOCAL and FOCAL_RANGE[0] <= value / side <= FOCAL_RANGE[1]):
            raise InputError(
                f"{path}: {name} {value:g} is impossible for a {width} x {height} image: it is in pixels, at least "
                f"{MIN_FOCAL} and from 1/20 to 50 times the width and height. Multiply fractions by the sides"
            )
    principal_point = f"{path}: the principal point ({cx:g}, {cy:g})"
    if not (-0.5 < cx < width - 0.5 and -0.5 < cy < height - 0.5):
        raise InputError(
            f"{principal_point} is outside the {width} x {height} image. Give the intrinsics of this resolution"
        )
    if abs(cx + 0.5 - width / 2) > width / 4 or abs(cy + 0.5 - height / 2) > height / 4:
        _warn(
            f"{principal_point} is far from the centre of {width} x {height} pixels. Are they for another resolution?"
        )
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

    from ..utils.config import BROKEN_YAML

    # OpenCV's FileStorage writes a first line and a tag of its own.
    text = text.partition("\n")[2] if text.startswith("%YAML:") else text
    try:
        return next(iter(yaml.safe_load_all(text.replace("!!opencv-matrix", ""))), None)
    except BROKEN_YAML as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _camera_matrix(camera_file: Mapping[str, Any], path: str | Path) -> Floats:
    matrix, projection = (
        next((matrix for name in names if (matrix := _matrix(camera_file.get(name), shape)) is not None), None)
        for names, shape in ((MATRICES, (3, 3)), (PROJECTIONS, (3, 4)))
    )
    if matrix is not None and projection is not None and projection.any():
        if not np.allclose(matrix, projection[:, :3], atol=0.5):
            _warn(f"{path} has two cameras; K is used, P differs. For a rectified image leave out K")
    elif matrix is None and projection is not None:
        matrix = projection[:, :3]
    if matrix is None:
        raise InputError(
            f'{path} has no intrinsics: expected "fx", "fy", "cx" and "cy" (or "ppx" and "ppy"), a 3 x 3 matrix "K" or '
            '"camera_matrix", or a 3 x 4 matrix "P"'
        )
    if matrix[0, 1] or matrix[1, 0] or list(matrix[2]) != [0, 0, 1]:
        raise InputError(f"{path}: the matrix must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; skew is not supported")
    return matrix


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def read_extrinsics(path: str | Path) -> Floats:
    """The camera's pose in the robot's base, 4 x 4 (JSON, alone or under "base_from_camera"). InputError otherwise."""
    return pose_of(read_json(path, "the extrinsics"), path)


def pose_of(content: Any, path: str | Path) -> Floats:
    """Return the pose that parsed JSON describes, as `read_extrinsics`; errors name `path`."""
    pose = _matrix(content.get("base_from_camera") if isinstance(content, dict) else content, (4, 4))
    if pose is None:
        raise InputError(f'{path} has no pose: expected a 4 x 4 matrix, alone or as "base_from_camera"')
    rotation = pose[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not rigid or list(pose[3]) != [0, 0, 0, 1]:
        raise InputError(f"{path}: the pose must be a rotation, a translation in metres and the row 0 0 0 1")
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
