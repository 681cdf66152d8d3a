"""The client of the ROS package: messages of a camera in, what the server is asked and what comes back."""

import base64
import io
import math
import socket
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from ros_by_hand import ANSWER, FRAME, POINT, answering, camera_info, error, image
from shell import ROOT

from trace_vlm_ros.client import Base, Cancelled, PointClient, View, pose_of
from trace_vlm_ros.images import QuestionError, colour_png, depth_file

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
DEPTH = rng.integers(400, 1200, (48, 64), dtype=np.uint16)  # millimetres
VIEW = View(image(PIXELS, "rgb8"), image(DEPTH, "16UC1"), camera_info(64, 48))


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "encoding, order", [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 0]), ("bgra8", [2, 1, 0, 0])]
)
def test_every_order_of_channels_becomes_the_same_picture(encoding, order, padding):
    assert np.array_equal(opened(colour_png(image(PIXELS[:, :, order], encoding, padding=padding))), PIXELS)


def test_a_grey_picture_becomes_rgb():
    grey = PIXELS[:, :, 0]
    assert np.array_equal(opened(colour_png(image(grey, "mono8"))), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("padding", [0, 4])
def test_depth_keeps_its_values_and_the_unit_of_its_encoding(padding, big_endian):
    content, unit = depth_file(image(DEPTH, "16UC1", padding=padding, big_endian=big_endian))
    assert unit == "mm" and np.array_equal(opened(content), DEPTH)
    metres = np.where(DEPTH < 500, np.nan, DEPTH / 1000).astype(np.float32)
    content, unit = depth_file(image(metres, "32FC1", padding=padding, big_endian=big_endian))
    assert unit == "m" and np.array_equal(np.load(io.BytesIO(content)), metres, equal_nan=True)


def test_a_message_that_cannot_be_read_is_named():
    broken = image(PIXELS, "rgb8")
    broken.data = broken.data[:-1]
    for call, message, words in (
        (colour_png, image(PIXELS[:, :, 0], "bayer_rggb8"), "encoding is 'bayer_rggb8'; .*rgb8.*: convert it"),
        (depth_file, image(PIXELS, "rgb8"), "encoding is 'rgb8'; understood are 16UC1"),
        (colour_png, broken, "64 x 48 pixels is broken: 9215 bytes, 192 in a row"),
    ):
        with pytest.raises(QuestionError, match=words):
            call(message)


def test_the_question_holds_what_was_given_and_the_key():
    with answering() as server:
        answer = PointClient(server.url, "secret").ask(VIEW, "Point to the mug.", 3, False)
        PointClient(server.url + "/").ask(View(VIEW.image), "Point to the mug.")
    asked, bare = server.asked
    assert np.array_equal(opened(base64.b64decode(asked.pop("image"))), PIXELS)
    assert np.array_equal(opened(base64.b64decode(asked.pop("depth"))), DEPTH)
    k = VIEW.camera_info.k.tolist()
    assert asked == {"instruction": "Point to the mug.", "num_points": 3, "reasoning": False, "depth_unit": "mm",
                     "intrinsics": {"k": k, "width": 64, "height": 48}}  # fmt: skip
    assert bare.keys() == {"image", "instruction", "reasoning"} and server.keys == ["Bearer secret", None]
    (point,) = answer.points
    assert (point.x, point.y, point.u, point.v, point.confidence, point.xyz) == (0.25, 0.5, 16, 24, 0.75, None)
    assert answer.reasoning == [("milestone", "Milestone", "The mug is left.")] and not answer.none


def test_points_in_space_are_in_the_cameras_frame_or_the_bases():
    pose = np.eye(4)
    for frame, base in (("camera", None), ("base", Base("base_link", pose))):
        lifted = {**POINT, "xyz": [0.1, 0.2, 0.9], "frame": frame, "note": "two surfaces", "confidence": None}
        with answering((200, {**ANSWER, "points": [lifted]}, {})) as server:
            (point,) = PointClient(server.url).ask(VIEW, "Point to the mug.", base=base).points
        assert point.xyz == (0.1, 0.2, 0.9) and point.note == "two surfaces" and math.isnan(point.confidence)
        assert point.frame_id == (FRAME if base is None else "base_link")
        assert server.asked[0].get("extrinsics") == (None if base is None else pose.tolist())


def test_nothing_to_point_at_is_an_answer():
    with answering((200, {**ANSWER, "points": [], "none": True}, {})) as server:
        answer = PointClient(server.url).ask(VIEW, "Point to the unicorn.")
    assert answer.none and answer.points == []


def test_a_rectified_picture_takes_p_and_a_distorted_one_is_noted():
    view = replace(VIEW, camera_info=camera_info(64, 48, distortion=[0.1, 0.0, 0.0, 0.0, 0.0]))
    with answering() as server:
        (raw,) = PointClient(server.url).ask(view, "Point.").points
        (flat,) = PointClient(server.url, rectified=True).ask(view, "Point.").points
    assert server.asked[1]["intrinsics"] == {"p": view.camera_info.p.tolist(), "width": 64, "height": 48}
    assert raw.note == "the lens's distortion is not corrected" and flat.note == ""


@pytest.mark.parametrize(
    "view, words",
    [
        (replace(VIEW, depth=image(DEPTH, "16UC1", stamp=10.2)), r"0.200 s apart, more than max_skew 0.05 s"),
        (replace(VIEW, depth=image(DEPTH, "16UC1", stamp=9.8)), r"0.200 s apart"),
        (replace(VIEW, depth=image(DEPTH[::2], "16UC1")), "depth has 64 x 24 pixels, the picture 64 x 48"),
        (replace(VIEW, camera_info=camera_info(64, 48, focal=0.0)), "not calibrated"),
        (replace(VIEW, image=image(PIXELS, "rgb8", stamp=4.0)), "6.5 s old, more than max_age 2 s"),
    ],
)
def test_messages_that_do_not_belong_together_are_refused_before_the_server_is_asked(view, words):
    with answering() as server, pytest.raises(QuestionError, match=words):
        PointClient(server.url).ask(view, "Point to the mug.", now=10.5)
    assert server.asked == []


@pytest.mark.parametrize(
    "reply, words",
    [
        (error(400, "instruction: it is empty"), r"\(HTTP 400\): instruction: it is empty"),
        (error(504, "no answer within 60 seconds"), "no answer within 60 seconds"),
        ((404, b"<html>", {}), r"\(HTTP 404\): <html>"),
        ((200, b"[]", {}), "does not answer as trace-vlm serve does"),
        ((200, {"points": [{}]}, {}), "does not answer as trace-vlm serve does"),
    ],
)
def test_an_error_of_the_server_is_one_sentence(reply, words):
    with answering(reply) as server, pytest.raises(QuestionError, match=words) as raised:
        PointClient(server.url).ask(VIEW, "Point to the mug.")
    assert "\n" not in str(raised.value) and len(server.asked) == 1


def test_a_busy_server_is_asked_again_until_the_time_is_over():
    states = []
    with answering(
        error(429, "64 are waiting", Retry_After="0"), error(503, "x", Retry_After="0"), (200, ANSWER, {})
    ) as server:
        assert PointClient(server.url).ask(VIEW, "Point to the mug.", on_state=states.append).points
    assert len(server.asked) == 3 and states == [
        "encoding the picture", "waiting for the server", *["the server is busy; asking again in 0 s"] * 2
    ]  # fmt: skip
    with answering(error(429, "64 are waiting", Retry_After="9")) as server:
        with pytest.raises(QuestionError, match="busy for 5 s: 64 are waiting"):
            PointClient(server.url, timeout=5).ask(VIEW, "Point to the mug.")
    assert len(server.asked) == 1


def test_a_server_that_is_down_late_or_gone():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    with pytest.raises(QuestionError, match=f"no server at http://127.0.0.1:{free}: .*Start trace-vlm serve"):
        PointClient(f"http://127.0.0.1:{free}").ask(VIEW, "Point to the mug.")
    with answering((None, None, {})) as server, pytest.raises(QuestionError, match="no answer within 0.3 s"):
        PointClient(server.url, timeout=0.3).ask(VIEW, "Point to the mug.")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut():
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(QuestionError, match="ended the connection"):
            PointClient(f"http://127.0.0.1:{listener.getsockname()[1]}").ask(VIEW, "Point to the mug.")
        thread.join()
    with pytest.raises(QuestionError, match="no address"):
        PointClient("127.0.0.1:8000")


def test_a_cancelled_question_ends_its_connection():
    with answering((None, None, {})) as server:
        with pytest.raises(Cancelled):
            PointClient(server.url).ask(VIEW, "Point to the mug.", cancelled=lambda: bool(server.asked))
        assert len(server.asked) == 1


def test_a_transform_becomes_the_matrix_that_moves_points():
    half = math.sqrt(0.5)
    translation = SimpleNamespace(x=1.0, y=2.0, z=3.0)
    quarter = SimpleNamespace(x=0.0, y=0.0, z=half, w=half)  # of a turn about z
    pose = pose_of(SimpleNamespace(translation=translation, rotation=quarter))
    assert np.allclose(pose @ [1, 0, 0.5, 1], [1, 3, 3.5, 1])
    optical = SimpleNamespace(x=-half, y=0.0, z=0.0, w=half)  # z, forward, becomes y
    assert np.allclose(pose_of(SimpleNamespace(translation=translation, rotation=optical)) @ [0, 0, 1, 0], [0, 1, 0, 0])


@pytest.fixture(scope="module")
def served():
    """The server itself in a thread, with the small bundled model and a key."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    from trace_vlm.inference.predictor import Predictor
    from trace_vlm.serve.app import ServerSettings, build_app

    app = build_app(Predictor.load("nano"), ServerSettings("nano", key="secret"))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_server_answers_with_points_in_space(served):
    picture = opened((ROOT / "trace/assets/demo/table_1.png").read_bytes())[:, :, :3]
    height, width = picture.shape[:2]
    millimetres = np.full((height, width), 800, np.uint16)
    info = camera_info(width, height, focal=float(width))
    client, instruction = PointClient(served, "secret"), "Where is the can behind the purple cone?"
    padded = View(
        image(picture[:, :, ::-1], "bgr8", padding=7), image(millimetres, "16UC1", padding=3, big_endian=True), info
    )
    floats = View(image(picture, "rgb8"), image((millimetres / 1000).astype(np.float32), "32FC1"), info)
    pose = np.array([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])

    answer, same = client.ask(padded, instruction), client.ask(floats, instruction)
    base = client.ask(floats, instruction, base=Base("base_link", pose))
    flat = client.ask(View(floats.image), instruction, reasoning=False, num_points=1)
    assert answer.points and answer.reasoning and not answer.none and flat.points
    for one, other, moved in zip(answer.points, same.points, base.points, strict=True):
        assert one.xyz == pytest.approx(other.xyz) and one.xyz[2] == pytest.approx(0.8)
        assert one.xyz[0] == pytest.approx((one.u - width / 2) / width * 0.8) and one.u == pytest.approx(one.x * width)
        assert one.frame_id == FRAME and moved.frame_id == "base_link" and 0 < one.confidence <= 1
        assert moved.xyz == pytest.approx((pose @ [*one.xyz, 1])[:3])
    assert all(point.xyz is None and point.frame_id == FRAME for point in flat.points)


def test_what_the_server_refuses_is_told_in_its_words(served):
    large = View(image(np.zeros((900, 1200, 3), np.uint8) + rng.integers(0, 255, (900, 1200, 3), np.uint8), "rgb8"))
    with pytest.raises(QuestionError, match=r"\(HTTP 401\): the API key is missing or wrong"):
        PointClient(served, "wrong").ask(large, "Point to the mug.")
    client = PointClient(served, "secret")
    with pytest.raises(QuestionError, match=r"\(HTTP 400\): instruction"):
        client.ask(VIEW, "")
    with pytest.raises(QuestionError, match=r"\(HTTP 400\): num_points"):
        client.ask(VIEW, "Point to the mug.", num_points=200)
    empty = replace(VIEW, depth=image(np.zeros_like(DEPTH), "16UC1"))
    for point in client.ask(empty, "Point to the mug.").points:
        assert point.xyz is None and "no depth within" in point.note
