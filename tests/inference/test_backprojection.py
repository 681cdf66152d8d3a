"""Points in metres: a known pose back and forth, invalid depth, and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.core.points import Point
from trace_vlm.inference.backprojection import Camera, backproject, read_depth, read_extrinsics, read_intrinsics
from trace_vlm.inference.predict import main
from trace_vlm.utils.command import InputError

SIZE = (64, 48)
CAMERA = Camera(50.0, 60.0, 31.5, 23.5)
POSE = np.array([[0.0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.3], [0, 0, 0, 1]])


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a_point_comes_back_to_its_pixel() -> None:
    depth = np.linspace(1, 3, 64 * 48).reshape(48, 64)
    (found,) = backproject([Point(10.25 / 64, 40.75 / 48)], depth, CAMERA, POSE)
    assert found.camera is not None and found.base is not None and found.reason == ""
    x, y, z = found.camera
    assert (50 * x / z + 31.5, 60 * y / z + 23.5) == pytest.approx((9.75, 40.25))  # OpenCV counts from pixel centres
    assert z == found.depth == pytest.approx(np.median(depth[38:43, 8:13]))
    assert found.base == pytest.approx((0.1 - y, 0.2 + x, 0.3 + z))


def test_pixels_without_depth_are_left_out() -> None:
    depth = np.full((48, 64), np.nan)
    depth[20, 20] = 2.0
    near, far, out = backproject([Point(22 / 64, 22 / 48), Point(0.9, 0.9), Point(1.1, 0.5)], depth, CAMERA)
    assert near.depth == 2.0 and near.base is None
    assert far.camera is None and "(57, 43)" in far.reason
    assert out.camera is None and "outside the image" in out.reason


def test_depth_images_in_their_units(tmp_path: Path) -> None:
    raw = np.full((48, 64), 1500, np.uint16)
    raw[0, 0] = 0
    Image.fromarray(raw).save(tmp_path / "d.png")
    depth = read_depth(tmp_path / "d.png", "mm", "registered", SIZE)
    assert depth[1, 1] == 1.5 and np.isnan(depth[0, 0])
    np.save(tmp_path / "d.npy", np.array([[1.0, np.inf], [-1.0, 2.0]], np.float32))
    scaled = read_depth(tmp_path / "d.npy", "m", "scaled", SIZE)
    assert scaled.shape == (48, 64) and scaled[0, 0] == 1 and scaled[47, 63] == 2
    assert np.isnan(scaled[0, 63]) and np.isnan(scaled[47, 0])


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("size.png", np.zeros((10, 10), np.uint16)),
        ("bytes.png", np.zeros((48, 64), np.uint8)),
        ("colour.npy", np.zeros((48, 64, 3), np.float32)),
    ],
)
def test_depth_that_does_not_fit_is_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    path = tmp_path / name
    np.save(path, array) if name.endswith("npy") else Image.fromarray(array).save(path)
    with pytest.raises(InputError, match=name):
        read_depth(path, "mm", "registered", SIZE)


def test_the_unit_of_a_depth_image_follows_from_its_type(tmp_path: Path) -> None:
    """Float values are metres, integers millimetres, as cameras and simulators write them; --depth-unit wins."""
    metres, millimetres = np.full((48, 64), 1.25, np.float32), np.full((48, 64), 1250, np.uint16)
    Image.fromarray(metres).save(tmp_path / "f.tiff")
    Image.fromarray(millimetres).save(tmp_path / "i.png")
    Image.fromarray(millimetres.astype(np.int32)).save(tmp_path / "i.tiff")
    for kind in (np.float32, np.float16, np.float64):
        np.save(tmp_path / f"{kind.__name__}.npy", metres.astype(kind))
    for kind in (np.uint16, np.int64):
        np.save(tmp_path / f"{kind.__name__}.npy", millimetres.astype(kind))
    for path in sorted(tmp_path.iterdir()):
        assert read_depth(path, None, "registered", SIZE)[3, 3] == 1.25, path
    np.save(tmp_path / "mm.npy", metres * 1000)
    assert read_depth(tmp_path / "mm.npy", "mm", "registered", SIZE)[3, 3] == 1.25
    np.save(tmp_path / "m.npy", np.full((48, 64), 2, np.uint16))
    assert read_depth(tmp_path / "m.npy", "m", "registered", SIZE)[3, 3] == 2


@pytest.mark.parametrize(
    ("value", "kind", "unit", "message"),
    [
        (1.25, np.float32, "mm", "--depth-unit m "),
        (900, np.float32, None, "--depth-unit mm "),
        (3, np.uint16, None, "--depth-unit m "),
        (900, np.uint16, "m", "d.npy"),
    ],
)
def test_distances_that_no_camera_measures_are_refused(
    value: float, kind: type, unit: str | None, message: str, tmp_path: Path
) -> None:
    depth = np.full((48, 64), value, kind)
    depth[:10] = 0  # no depth there
    np.save(tmp_path / "d.npy", depth)
    with pytest.raises(InputError, match=message):
        read_depth(tmp_path / "d.npy", unit, "registered", SIZE)


def test_single_impossible_pixels_are_no_depth(tmp_path: Path) -> None:
    depth = np.full((48, 64), 1.5, np.float32)
    depth[0, 0], depth[1, 0], depth[2, 0] = 1e10, 0.001, 99.0  # background of a renderer, dust on the lens
    np.save(tmp_path / "d.npy", depth)
    read = read_depth(tmp_path / "d.npy", None, "registered", SIZE)
    assert np.isnan(read[0, 0]) and np.isnan(read[1, 0]) and read[2, 0] == 99.0
    np.save(tmp_path / "none.npy", np.zeros((48, 64), np.float32))
    assert np.isnan(read_depth(tmp_path / "none.npy", None, "registered", SIZE)).all()


K9 = [50.0, 0, 31.5, 0, 60.0, 23.5, 0, 0, 1]
P12 = [50.0, 0, 31.5, 0, 0, 60.0, 23.5, 0, 0, 0, 1, 0]
ROS_YAML = """\
image_width: 64
image_height: 48
camera_name: head
camera_matrix:
  rows: 3
  cols: 3
  data: [50., 0., 31.5, 0., 60., 23.5, 0., 0., 1.]
distortion_model: plumb_bob
projection_matrix:
  rows: 3
  cols: 4
  data: [50., 0., 31.5, 0., 0., 60., 23.5, 0., 0., 0., 1., 0.]
"""
ROS_ECHO = """\
header:
  frame_id: head
height: 48
width: 64
k: [50.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0]
---
"""
OPENCV_YAML = """\
%YAML:1.0
---
image_width: 64
image_height: 48
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 50., 0., 31.5, 0.,
       60., 23.5, 0., 0., 1. ]
"""
OPENCV_XML = """\
<?xml version="1.0"?>
<opencv_storage>
<image_width>64</image_width>
<image_height>48</image_height>
<camera_matrix type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
    50. 0. 31.5 0. 60. 23.5 0. 0. 1.</data></camera_matrix>
</opencv_storage>
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.json", json.dumps({"fx": 50, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 64, "height": 48})),
        ("matrix.json", json.dumps([K9[:3], K9[3:6], K9[6:]])),
        ("ros.json", json.dumps({"width": 64, "height": 48, "k": K9, "p": P12, "d": [0.0] * 5})),
        ("ros1.json", json.dumps({"K": K9, "P": P12})),
        ("projection.json", json.dumps({"p": P12})),
        ("nested.json", json.dumps({"P": [P12[:4], P12[4:8], P12[8:]]})),
        ("realsense.json", json.dumps({"width": 64, "height": 48, "fx": 50, "fy": 60, "ppx": 31.5, "ppy": 23.5,
                                       "model": "distortion.brown_conrady", "coeffs": [0, 0, 0, 0, 0]})),
        ("opencv.json", json.dumps({"camera_matrix": [K9[:3], K9[3:6], K9[6:]]})),
        ("storage.json", json.dumps({"camera_matrix": {"type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d",
                                                       "data": K9}})),
        ("ros.yaml", ROS_YAML),
        ("echo.yml", ROS_ECHO),
        ("opencv.yml", OPENCV_YAML),
        ("opencv.xml", OPENCV_XML),
    ],
)  # fmt: skip
def test_camera_files_of_ros_realsense_and_opencv(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read_intrinsics(path, SIZE) == CAMERA
    assert capsys.readouterr().err == ""
    if "64" in text:
        with pytest.raises(InputError, match=name):
            read_intrinsics(path, (128, 96))


BAD_CAMERAS = {
    "fractions": {"fx": 0.9, "fy": 1.2, "cx": 0.5, "cy": 0.5},
    "short": {"fx": 9, "fy": 9, "cx": 31.5, "cy": 23.5},
    "long": {"fx": 50, "fy": 1e5, "cx": 31.5, "cy": 23.5},
    "centre right of the image": {"fx": 50, "fy": 50, "cx": 64, "cy": 23.5},
    "centre above the image": {"fx": 50, "fy": 50, "cx": 31.5, "cy": -1},
    "not calibrated, as ROS writes it": {"k": [0] * 9},
    "projection without its last row": {"P": [50, 0, 31.5, 0, 0, 60, 23.5, 0, 0, 0, 0, 1]},
    "incomplete": {"fx": 1},
    "another width": {"fx": 50, "fy": 60, "cx": 1, "cy": 1, "width": 640},
    "zero": {"fx": 0, "fy": 60, "cx": 1, "cy": 1},
    "no number": {"fx": "f", "fy": 60, "cx": 1, "cy": 1},
    "skew": [[50, 1, 1], [0, 60, 1], [0, 0, 1]],
    "text": "x",
}


@pytest.mark.parametrize("case", BAD_CAMERAS)
def test_impossible_intrinsics_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"k\.json"):
        read_intrinsics(write(tmp_path / "k.json", BAD_CAMERAS[case]), SIZE)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({"fx": 100, "fy": 100, "cx": 62, "cy": 46}, "resolution"),  # intrinsics of the doubled resolution
        ({"k": K9, "d": [-0.1, 0.02, 0, 0, 0]}, "distortion"),
        ({"K": K9, "P": [45.0, *P12[1:]]}, "K is used"),  # a rectified camera beside the raw one
    ],
    ids=["resolution", "distortion", "rectified"],
)
def test_unusual_cameras_give_a_warning(
    value: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_intrinsics(write(tmp_path / "k.json", value), SIZE).cx in (62, 31.5)
    warning = capsys.readouterr().err
    assert "k.json" in warning and word in warning


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "camera_matrix: [1, 2"),
        ("a.yaml", "!!python/object:os.system {}"),
        ("a.yaml", ""),
        ("a.xml", "<a><b></a>"),
        ("a.json", "{"),
        ("a.txt", "50 60"),
    ],
)
def test_broken_camera_files_are_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_intrinsics(tmp_path / name, SIZE)


def test_a_pose_is_rigid(tmp_path: Path) -> None:
    path, scaled = tmp_path / "t.json", POSE * [[2], [1], [1], [1]]
    assert np.array_equal(read_extrinsics(write(path, {"base_from_camera": POSE.tolist()})), POSE)
    for value in (scaled.tolist(), [1, 2], {"pose": 1}):
        with pytest.raises(InputError, match=r"t\.json"):
            read_extrinsics(write(path, value))


def test_predict_says_where_the_points_are(
    pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pictures[2]
    Image.fromarray(np.full((40, 61), 800, np.uint16)).save(tmp_path / "d.png")
    files = ["--depth", str(tmp_path / "d.png"), "--intrinsics",
             str(write(tmp_path / "k.json", {"fx": 50, "fy": 50, "cx": 30, "cy": 20})), "--extrinsics",
             str(write(tmp_path / "t.json", POSE.tolist()))]  # fmt: skip
    asked = [str(image), "Point to the mug.", "--no-reasoning", "--max-new-tokens", "60"]
    assert main([*asked, *files, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["points"], record["text"]
    for point in record["points"]:
        assert point["camera"][2] == pytest.approx(0.8) and len(point["base"]) == 3 and 0 < point["confidence"] <= 1
        assert point["camera"][0] == pytest.approx((point["pixel"][0] - 0.5 - 30) / 50 * 0.8)
    assert main([*asked, *files]) == 0
    assert "camera (" in capsys.readouterr().out
    for missing, message in ((files[:2], "--intrinsics"), (files[2:], "--depth")):
        with pytest.raises(InputError, match=message):
            main([*asked, *missing])
