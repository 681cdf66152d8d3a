"""Points in metres: a known pose back and forth, invalid depth, and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.command import InputError
from trace_vlm.model.lifting import Camera, lift, read_depth, read_extrinsics, read_intrinsics
from trace_vlm.model.predict import main
from trace_vlm.points import Point

SIZE = (64, 48)
CAMERA = Camera(50.0, 60.0, 31.5, 23.5)
POSE = np.array([[0.0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.3], [0, 0, 0, 1]])


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a_point_comes_back_to_its_pixel() -> None:
    depth = np.linspace(1, 3, 64 * 48).reshape(48, 64)
    (found,) = lift([Point(10.25 / 64, 40.75 / 48)], depth, CAMERA, POSE)
    assert found.camera is not None and found.base is not None and found.reason == ""
    x, y, z = found.camera
    assert (50 * x / z + 31.5, 60 * y / z + 23.5) == pytest.approx((9.75, 40.25))  # OpenCV counts from pixel centres
    assert z == found.depth == pytest.approx(np.median(depth[38:43, 8:13]))
    assert found.base == pytest.approx((0.1 - y, 0.2 + x, 0.3 + z))


def test_pixels_without_depth_are_left_out() -> None:
    depth = np.full((48, 64), np.nan)
    depth[20, 20] = 2.0
    near, far, out = lift([Point(22 / 64, 22 / 48), Point(0.9, 0.9), Point(1.1, 0.5)], depth, CAMERA)
    assert near.depth == 2.0 and near.base is None
    assert far.camera is None and far.reason == "no depth within 2 pixels of (57, 43)"
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
    ("name", "array", "message"),
    [
        ("a.png", np.zeros((10, 10), np.uint16), "10 x 10 pixels, the colour image 64 x 48"),
        ("b.png", np.zeros((48, 64), np.uint8), "8-bit values"),
        ("c.npy", np.zeros((48, 64, 3), np.float32), "no depth image"),
    ],
)
def test_depth_that_does_not_fit_is_refused(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    path = tmp_path / name
    np.save(path, array) if name.endswith("npy") else Image.fromarray(array).save(path)
    with pytest.raises(InputError, match=message):
        read_depth(path, "mm", "registered", SIZE)


def test_intrinsics_in_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    for value in (
        {"fx": 50, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 64, "height": 48},
        {"K": [50, 0, 31.5, 0, 60, 23.5, 0, 0, 1]},
        [[50, 0, 31.5], [0, 60, 23.5], [0, 0, 1]],
    ):
        assert read_intrinsics(write(path, value), SIZE) == CAMERA
    for value, message in (
        ({"fx": 1}, "holds no intrinsics"),
        ({"fx": 50, "fy": 60, "cx": 1, "cy": 1, "width": 640}, "images of width 640, this one has 64"),
        ({"fx": 0, "fy": 60, "cx": 1, "cy": 1}, "have to be positive"),
        ({"fx": "f", "fy": 60, "cx": 1, "cy": 1}, "have to be numbers"),
        ([[50, 1, 1], [0, 60, 1], [0, 0, 1]], "skew is not supported"),
        ("x", "holds no intrinsics"),
    ):
        with pytest.raises(InputError, match=message):
            read_intrinsics(write(path, value), SIZE)


def test_a_pose_is_rigid(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    assert np.array_equal(read_extrinsics(write(path, {"base_from_camera": POSE.tolist()})), POSE)
    scaled = POSE.copy()
    scaled[0] *= 2
    for value, message in (
        (scaled.tolist(), "no rigid pose"),
        ([1, 2], "holds no pose"),
        ({"pose": 1}, "holds no pose"),
    ):
        with pytest.raises(InputError, match=message):
            read_extrinsics(write(path, value))


def test_predict_says_where_the_points_are(
    benchmark_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = benchmark_folder / "images" / "wide.png"
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
    for missing, message in ((files[:2], "give --intrinsics"), (files[2:], "need --depth too")):
        with pytest.raises(InputError, match=message):
            main([*asked, *missing])
