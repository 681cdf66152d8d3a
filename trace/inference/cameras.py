"""Cameras from the files that people have: intrinsics of ROS, RealSense and OpenCV, and the camera's pose at the robot.

For `trace-vlm predict --intrinsics FILE --extrinsics FILE`. The pinhole model is all that is used; what a file says
beside it and what looks wrong is refused or said on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.command import InputError, existing_file
from ..utils.files import read_json

Floats = NDArray[np.float64]
FIELDS = {"fx": ("fx",), "fy": ("fy",), "cx": ("cx", "ppx"), "cy": ("cy", "ppy")}  # the latter as RealSense writes them
MATRICES = ("K", "k", "camera_matrix", "cameraMatrix", "intrinsics")  # 3 x 3
PROJECTIONS = ("P", "p", "projection_matrix")  # 3 x 4, of the rectified image
DISTORTIONS = ("D", "d", "distortion_coefficients", "coeffs")
LEAST_FOCAL = 10  # pixels
FOCAL_RANGE = (1 / 20, 50)  # times the image's side: 169 to 1 degree of view


@dataclass(frozen=True, slots=True)
class Camera:
    """Focal lengths and principal point in pixels of the colour image."""

    fx: float
    fy: float
    cx: float
    cy: float


def read_intrinsics(path: str | Path, size: tuple[int, int]) -> Camera:
    """A camera from JSON, YAML or the XML of OpenCV.

    Understood are "fx", "fy", "cx", "cy" (RealSense: "ppx", "ppy"), a 3 x 3 matrix alone or under a name of MATRICES,
    and a 3 x 4 one under a name of PROJECTIONS; ROS and OpenCV write matrices as lists or as an object with "data".

    Args:
        size: (width, height) of the colour image, with which the file has to agree.
    Raises:
        InputError: something is missing or broken, or no camera of such an image is like that.
    """
    read = _read(Path(path))
    found: Mapping[str, Any] = read if isinstance(read, dict) else {"K": read}
    for name, side in zip(("width", "height"), size, strict=True):
        for key in (name, f"image_{name}"):
            if found.get(key, side) != side:
                raise InputError(f"{path} belongs to images of {name} {found[key]}, this one has {side}")
    camera = _fields(found, path) or _from_matrix(found, path)
    _check(camera, size, path)
    if any(np.any(_numbers(found.get(name))) for name in DISTORTIONS):
        _warn(f"{path} names a distortion, which is not corrected: points in space are exact for rectified images only")
    return camera


def _read(path: Path) -> Any:
    if path.suffix.lower() not in (".yaml", ".yml", ".xml"):
        return read_json(path, "the intrinsics")
    text = existing_file(path, "the intrinsics").read_text("utf-8-sig", errors="replace")
    return _xml(text, path) if path.suffix.lower() == ".xml" else _yaml(text, path)


def _yaml(text: str, path: Path) -> Any:
    """The first document; with the first line and the tag that OpenCV's FileStorage writes."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor(
        "tag:yaml.org,2002:opencv-matrix", lambda loader, node: loader.construct_mapping(node, deep=True)
    )
    if text.startswith("%YAML:"):
        text = text.partition("\n")[2]
    try:
        return next(iter(yaml.load_all(text, Loader)), None)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is broken YAML: {' '.join(str(error).split())}") from None


def _xml(text: str, path: Path) -> dict[str, Any]:
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is broken XML: {error}") from None
    return {child.tag: _xml_value(child) for child in root}


def _xml_value(element: Any) -> Any:
    data = element.findtext("data")
    if data is not None:
        return data.split()
    text = (element.text or "").strip()
    return int(text) if text.isdecimal() else text


def _fields(found: Mapping[str, Any], path: str | Path) -> Camera | None:
    given = [next((found[key] for key in keys if key in found), None) for keys in FIELDS.values()]
    if any(value is None for value in given):
        return None
    try:
        return Camera(*map(float, given))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: fx, fy, cx and cy have to be numbers") from None


def _from_matrix(found: Mapping[str, Any], path: str | Path) -> Camera:
    matrix = next((one for name in MATRICES if (one := _matrix(found.get(name), (3, 3))) is not None), None)
    projection = next((one for name in PROJECTIONS if (one := _matrix(found.get(name), (3, 4))) is not None), None)
    if matrix is None and projection is None:
        raise InputError(
            f'{path} holds no intrinsics: "fx", "fy", "cx" and "cy" (or "ppx" and "ppy"), a 3 x 3 matrix "K" or '
            '"camera_matrix", or a 3 x 4 matrix "P" were expected'
        )
    if matrix is None:
        assert projection is not None
        matrix = projection[:, :3]
    elif projection is not None and projection.any() and not np.allclose(matrix, projection[:, :3], atol=0.5):
        _warn(f"{path} holds two cameras; K is taken, P differs: for a rectified image leave out K")
    if matrix[0, 1] or matrix[1, 0] or list(matrix[2]) != [0, 0, 1]:
        raise InputError(f"{path}: the matrix has to be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; skew is not supported")
    return Camera(float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2]))


def _check(camera: Camera, size: tuple[int, int], path: str | Path) -> None:
    """InputError for what no camera of an image of this size has; a warning for what few have."""
    width, height = size
    if not (np.isfinite([camera.fx, camera.fy, camera.cx, camera.cy]).all() and camera.fx > 0 and camera.fy > 0):
        raise InputError(f"{path}: the focal lengths have to be positive, not {camera.fx} and {camera.fy}")
    for name, value, side in (("fx", camera.fx, width), ("fy", camera.fy, height)):
        if value < LEAST_FOCAL or not FOCAL_RANGE[0] <= value / side <= FOCAL_RANGE[1]:
            raise InputError(
                f"{path}: {name} {value:g} is no focal length of a {width} x {height} image: it is counted in pixels, at "
                f"least {LEAST_FOCAL} and from 1/20 to 50 times the width and height. Multiply fractions by the sides"
            )
    where = f"{path}: the principal point ({camera.cx:g}, {camera.cy:g})"
    if not (-0.5 < camera.cx < width - 0.5 and -0.5 < camera.cy < height - 0.5):
        raise InputError(f"{where} lies outside the {width} x {height} image: give the intrinsics of this resolution")
    if abs(camera.cx + 0.5 - width / 2) > width / 4 or abs(camera.cy + 0.5 - height / 2) > height / 4:
        _warn(
            f"{where} lies far from the centre of the {width} x {height} image: are they those of another resolution?"
        )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


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


def _numbers(value: Any) -> Floats:
    """The numbers of a list, of nested lists, or of an object with "data", as ROS and OpenCV write them; else none."""
    listed = value.get("data") if isinstance(value, dict) else value
    try:
        return np.asarray([] if listed is None else listed, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0)


def _matrix(value: Any, shape: tuple[int, int]) -> Floats | None:
    found = _numbers(value)
    if found.size == shape[0] * shape[1] and found.ndim == 1:
        found = found.reshape(shape)
    return found if found.shape == shape and bool(np.isfinite(found).all()) else None
