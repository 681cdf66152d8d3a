"""Points in metres: a known pose back and forth, invalid depth, and files that do not fit."""

import json

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
K9 = [50.0, 0, 31.5, 0, 60.0, 23.5, 0, 0, 1]
P12 = [50.0, 0, 31.5, 0, 0, 60.0, 23.5, 0, 0, 0, 1, 0]
NESTED = [K9[:3], K9[3:6], K9[6:]]


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_point_comes_back_to_its_pixel():
    depth, point = np.linspace(1, 3, 64 * 48).reshape(48, 64), Point(10.25 / 64, 40.75 / 48)
    (lifted,), (moved,) = backproject([point], depth, CAMERA), backproject([point], depth, CAMERA, POSE)
    x, y, z = lifted.xyz
    assert (50 * x / z + 31.5, 60 * y / z + 23.5) == pytest.approx((9.75, 40.25))  # OpenCV counts from pixel centres
    assert lifted.frame == "camera" and lifted.note == "" and z == pytest.approx(np.median(depth[38:43, 8:13]))
    assert moved.frame == "base" and moved.xyz == pytest.approx((0.1 - y, 0.2 + x, 0.3 + z))


def test_pixels_without_depth_are_left_out():
    depth = np.full((48, 64), np.nan)
    depth[20, 20] = 2.0
    near, far, out = backproject([Point(22 / 64, 22 / 48), Point(0.9, 0.9), Point(1.1, 0.5)], depth, CAMERA)
    assert near.xyz[2] == 2.0 and (near.note, far.xyz, out.xyz) == ("", None, None)
    assert "no depth" in far.note and "outside" in out.note


def test_two_surfaces_in_the_window_are_told_apart():
    """A mug 0.6 m away before a wall at 1.4 m: columns up to 32 show the mug."""
    depth = np.where(np.arange(64) < 32, 0.6, 1.4) * np.ones((48, 1))
    mug, edge, behind = Point(20 / 64, 0.5), Point(31.5 / 64, 0.5), Point(32.5 / 64, 0.5)
    clear, on_mug, on_wall = (backproject([point], depth, CAMERA)[0] for point in (mug, edge, behind))
    assert clear.surfaces == () and clear.note == ""
    assert on_mug.surfaces == on_wall.surfaces == (0.6, 1.4) and "0.60 m and 1.40 m" in on_mug.note
    assert (on_mug.xyz[2], on_wall.xyz[2]) == (0.6, 1.4)  # each on what its own pixel shows
    assert backproject([mug, mug, behind], depth, CAMERA)[2].xyz[2] == 0.6  # on what the other points lie on
    *_, hovering = backproject([mug, mug, Point(50 / 64, 0.2)], depth, CAMERA)
    assert hovering.xyz[2] == 1.4 and "the other points about 0.60 m" in hovering.note
    noisy = 2.0 + np.random.default_rng(0).normal(0, 0.01, (48, 64))  # of one surface
    assert all(not one.surfaces for one in backproject([mug, edge, behind], noisy, CAMERA))


def test_depth_images_in_their_units(tmp_path):
    """Float values are metres, integers millimetres, as cameras and simulators write them; --depth-unit wins."""
    metres, millimetres = np.full((48, 64), 1.25, np.float32), np.full((48, 64), 1250, np.uint16)
    metres[0, 0], metres[1, 0], metres[2, 0], millimetres[0, 0] = 1e10, 0.001, 99.0, 0  # only 99 m can be measured
    Image.fromarray(metres).save(tmp_path / "f.tiff")
    Image.fromarray(millimetres).save(tmp_path / "i.png")
    Image.fromarray(millimetres.astype(np.int32)).save(tmp_path / "i.tiff")
    np.save(tmp_path / "f16.npy", metres[:, 1:2].repeat(64, 1).astype(np.float16))
    np.save(tmp_path / "i64.npy", millimetres.astype(np.int64))
    for path in sorted(tmp_path.iterdir()):
        assert read_depth(path, None, "registered", SIZE)[3, 3] == 1.25, path
    assert np.isnan(read_depth(tmp_path / "i.png", None, "registered", SIZE)[0, 0])
    read = read_depth(tmp_path / "f.tiff", None, "registered", SIZE)
    assert np.isnan(read[:2, 0]).all() and read[2, 0] == 99
    np.save(tmp_path / "mm.npy", metres * 1000)
    assert read_depth(tmp_path / "mm.npy", "mm", "registered", SIZE)[3, 3] == 1.25

    np.save(tmp_path / "d.npy", np.array([[1.0, np.inf], [-1.0, 2.0]], np.float32))
    scaled = read_depth(tmp_path / "d.npy", "m", "scaled", SIZE)
    assert scaled.shape == (48, 64) and scaled[0, 0] == 1 and scaled[47, 63] == 2
    assert np.isnan(scaled[0, 63]) and np.isnan(scaled[47, 0])


@pytest.mark.parametrize(("array", "unit", "message"), [
    (np.zeros((10, 10), np.uint16), None, r"d\.npy"), (np.zeros((48, 64), np.uint8), None, r"d\.npy"),  # size, bytes
    (np.zeros((48, 64, 3), np.float32), None, r"d\.npy"), (np.full((48, 64), 900, np.uint16), "m", r"d\.npy"),
    # distances that no camera measures: metres as mm, mm as metres, integer metres
    (np.full((48, 64), 1.25, np.float32), "mm", "depth unit m "),
    (np.full((48, 64), 900, np.float32), None, "depth unit mm "),
    (np.full((48, 64), 3, np.uint16), None, "depth unit m "),
])  # fmt: skip
def test_depth_that_does_not_fit_is_refused(tmp_path, array, unit, message):
    np.save(tmp_path / "d.npy", array)
    with pytest.raises(InputError, match=message):
        read_depth(tmp_path / "d.npy", unit, "registered", SIZE)


@pytest.mark.parametrize(("name", "content"), {
    "plain.json": {"fx": 50, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 64, "height": 48},
    "matrix.json": NESTED, "opencv.json": {"camera_matrix": NESTED}, "projection.json": {"p": P12},
    "ros.json": {"width": 64, "height": 48, "k": K9, "p": P12, "d": [0.0] * 5},
    "realsense.json": {"width": 64, "height": 48, "fx": 50, "fy": 60, "ppx": 31.5, "ppy": 23.5, "coeffs": [0] * 5},
    "ros.yaml": f"image_width: 64\nimage_height: 48\ncamera_name: head\ncamera_matrix: {{rows: 3, cols: 3, data: {K9}}}\n"
                f"distortion_model: plumb_bob\nprojection_matrix: {{rows: 3, cols: 4, data: {P12}}}\n",
    "echo.yml": f"header:\n  frame_id: head\nheight: 48\nwidth: 64\nk: {K9}\n---\n",
    "opencv.yml": "%YAML:1.0\n---\nimage_width: 64\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n"
                  "   data: [ 50., 0., 31.5, 0.,\n       60., 23.5, 0., 0., 1. ]\n",
    "opencv.xml": '<?xml version="1.0"?>\n<opencv_storage><image_width>64</image_width>\n<camera_matrix '
                  'type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt><data>\n    50. 0. 31.5 0. 60. 23.5 0.'
                  " 0. 1.</data></camera_matrix></opencv_storage>\n",
}.items())  # fmt: skip
def test_camera_files_of_ros_realsense_and_opencv(name, content, tmp_path, capsys):
    path = write(tmp_path / name, content)
    assert read_intrinsics(path, SIZE) == CAMERA and capsys.readouterr().err == ""
    if "64" in path.read_text():
        with pytest.raises(InputError, match=name):
            read_intrinsics(path, (128, 96))


@pytest.mark.parametrize(("name", "content"), {
    "fractions.json": {"fx": 0.9, "fy": 1.2, "cx": 0.5, "cy": 0.5},
    "short.json": {"fx": 9, "fy": 9, "cx": 31.5, "cy": 23.5}, "long.json": {"fx": 50, "fy": 1e5, "cx": 31.5, "cy": 23.5},
    "centre right of the image.json": {"fx": 50, "fy": 50, "cx": 64, "cy": 23.5},
    "not calibrated, as ROS writes it.json": {"k": [0] * 9},
    "projection without its last row.json": {"P": [50, 0, 31.5, 0, 0, 60, 23.5, 0, 0, 0, 0, 1]},
    "no number.json": {"fx": "f", "fy": 60, "cx": 1, "cy": 1},
    "skew.json": [[50, 1, 1], [0, 60, 1], [0, 0, 1]], "incomplete.json": {"fx": 1},
    "cut.yaml": "camera_matrix: [1, 2", "code.yaml": "!!python/object:os.system {}", "empty.yaml": "",
    "open.xml": "<a><b></a>", "cut.json": "{", "words.txt": "50 60",
}.items())  # fmt: skip
def test_impossible_and_broken_cameras_are_refused(name, content, tmp_path):
    with pytest.raises(InputError, match=name):
        read_intrinsics(write(tmp_path / name, content), SIZE)


@pytest.mark.parametrize(("word", "camera"), [
    ("resolution", {"fx": 100, "fy": 100, "cx": 62, "cy": 46}),  # intrinsics of the doubled resolution
    ("distortion", {"k": K9, "d": [-0.1, 0.02, 0, 0, 0]}),
    ("K is used", {"K": K9, "P": [45.0, *P12[1:]]}),  # a rectified camera beside the raw one
])  # fmt: skip
def test_unusual_cameras_give_a_warning(word, camera, tmp_path, capsys):
    assert read_intrinsics(write(tmp_path / "k.json", camera), SIZE).cx in (62, 31.5)
    assert "k.json" in (warning := capsys.readouterr().err) and word in warning


def test_a_pose_is_rigid(tmp_path):
    path, scaled = tmp_path / "t.json", POSE * [[2], [1], [1], [1]]
    assert np.array_equal(read_extrinsics(write(path, {"base_from_camera": POSE.tolist()})), POSE)
    for value in (scaled.tolist(), [1, 2], {"pose": 1}):
        with pytest.raises(InputError, match=r"t\.json"):
            read_extrinsics(write(path, value))


def test_predict_prints_where_the_points_are(pictures, tmp_path, capsys):
    Image.fromarray(np.full((40, 61), 800, np.uint16)).save(tmp_path / "d.png")
    write(tmp_path / "k.json", {"fx": 50, "fy": 50, "cx": 30, "cy": 20})
    write(tmp_path / "t.json", POSE.tolist())
    depth, camera = ["--depth", str(tmp_path / "d.png")], ["--intrinsics", str(tmp_path / "k.json")]
    asked = [str(pictures[2]), "Point to the mug.", "--no-reasoning", "--num-points", "2", "--max-new-tokens", "60"]
    complete = [*asked, *depth, *camera, "--extrinsics", str(tmp_path / "t.json")]
    main([*complete, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["points"], record["text"]
    for point in record["points"]:
        x, y, z = point["xyz"]
        assert point["frame"] == "base" and z == pytest.approx(0.3 + 0.8) and 0 < point["confidence"] <= 1
        assert y == pytest.approx(0.2 + (point["pixel"][0] - 0.5 - 30) / 50 * 0.8)
    main(complete)
    assert "base (" in capsys.readouterr().out
    for options, missing in ((depth, "--intrinsics"), (camera, "--depth")):
        with pytest.raises(InputError, match=missing):
            main([*asked, *options])
