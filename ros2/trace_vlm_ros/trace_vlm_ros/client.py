"""Asks `trace-vlm serve` where an instruction points in a camera's picture: ROS messages in, plain records out, no rclpy.

    client = PointClient("http://127.0.0.1:8000")
    answer = client.ask(View(image, depth, camera_info), "Point to the mug.")

Standard library and numpy only, for Python 3.10 and later.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import select
import socket
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .images import QuestionError, colour_png, depth_file

CONNECT_SECONDS = 5.0
POLL = 0.1  # seconds between looks whether the question is cancelled
BUSY = (429, 503)  # asked again after the answer's Retry-After


class Cancelled(Exception):
    """The question was cancelled; the server has been told by the end of the connection."""


@dataclass(frozen=True)
class View:
    """Messages of one moment: sensor_msgs/Image, and for points in space a depth Image and a CameraInfo."""

    image: Any
    depth: Any = None
    camera_info: Any = None


@dataclass(frozen=True)
class Base:
    """The robot's base: the name of its frame, and the camera's pose in it, 4 x 4."""

    frame_id: str
    pose: Any


@dataclass(frozen=True)
class AnswerPoint:
    """A point: fractions of the picture's sides, pixels, confidence (NaN: unknown), metres in `frame_id` or None."""

    x: float
    y: float
    u: float
    v: float
    confidence: float
    xyz: tuple[float, ...] | None
    frame_id: str
    note: str


@dataclass(frozen=True)
class Answer:
    """A model's answer; `reasoning` holds a key, a heading and words for each step."""

    points: list[AnswerPoint]
    none: bool
    reasoning: list[tuple[str, str, str]]
    text: str
    seconds: float


class PointClient:
    """One server, and which pictures are good enough to ask about."""

    def __init__(
        self,
        server: str,
        key: str | None = None,
        timeout: float = 60.0,
        max_age: float = 2.0,
        max_skew: float = 0.05,
        rectified: bool = False,
    ) -> None:
        """Args:
        server: address, such as "http://127.0.0.1:8000".
        key: sent as the bearer of the authorization.
        timeout: seconds for a question, repetitions included.
        max_age: seconds; older pictures are refused.
        max_skew: seconds between picture and depth; more is refused.
        rectified: whether the picture is rectified, so that camera info's P holds and not K.
        """
        address = urllib.parse.urlsplit(server)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise QuestionError(f"the server {server!r} is no address such as http://127.0.0.1:8000")
        self.server, self.address, self.timeout = server, address, timeout
        self.max_age, self.max_skew, self.rectified = max_age, max_skew, rectified
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def ask(
        self,
        view: View,
        instruction: str,
        num_points: int = 0,
        reasoning: bool = True,
        base: Base | None = None,
        now: float | None = None,
        on_state: Callable[[str], object] = lambda state: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Ask one question.

        Args:
            num_points: 0: as many as the model gives.
            base: gives points in space in this frame and not in the camera's optical frame.
            now: seconds of the clock that stamps the messages; None: the picture's age is not checked.
            on_state: called with what is being done.
            cancelled: asked often whether to give up.

        Raises:
            QuestionError: one sentence: the messages do not fit, the server is down, busy, late, or refuses the question.
            Cancelled: `cancelled` said so.
        """
        deadline = time.monotonic() + self.timeout
        on_state("encoding the picture")
        age = 0.0 if now is None else now - seconds_of(view.image)
        if age > self.max_age:
            raise QuestionError(
                f"the newest picture is {age:.1f} s old, more than max_age {self.max_age:g} s: is the camera running?"
            )
        record = {"image": _text(colour_png(view.image)), "instruction": instruction, "reasoning": bool(reasoning)}
        if num_points:
            record["num_points"] = int(num_points)
        if view.depth is not None:
            record |= self._space(view, base)
        body = json.dumps(record).encode()
        on_state("waiting for the server")
        while True:
            status, wait, content = self._post(body, deadline, cancelled)
            if status not in BUSY:
                break
            again = time.monotonic() + wait
            if again >= deadline:
                raise QuestionError(f"the server {self.server} was busy for {self.timeout:g} s: {_message(content)}")
            on_state(f"the server is busy; asking again in {wait:g} s")
            _wait([], again, cancelled)
        if status != 200:
            raise QuestionError(f"the server {self.server} did not answer (HTTP {status}): {_message(content)}")
        return self._answer(content, view, base)

    def _space(self, view: View, base: Base | None) -> dict[str, Any]:
        """The fields for points in space. QuestionError: depth or camera info do not belong to the picture."""
        image, depth, info = view.image, view.depth, view.camera_info
        skew = abs(seconds_of(image) - seconds_of(depth))
        if skew > self.max_skew:
            raise QuestionError(
                f"picture and depth are {skew:.3f} s apart, more than max_skew {self.max_skew:g} s: "
                "the depth may show another scene"
            )
        if (depth.width, depth.height) != (image.width, image.height):
            raise QuestionError(
                f"the depth has {depth.width} x {depth.height} pixels, the picture {image.width} x {image.height}: "
                "subscribe to depth that is registered to the picture"
            )
        if info is None or not info.k[0]:
            raise QuestionError("the camera is not calibrated: camera info has no focal length")
        content, unit = depth_file(depth)
        name = "p" if self.rectified else "k"
        matrix = [float(value) for value in getattr(info, name)]
        fields = {
            "depth": _text(content),
            "depth_unit": unit,
            "intrinsics": {name: matrix, "width": int(info.width), "height": int(info.height)},
        }
        if base is not None:
            fields["extrinsics"] = np.asarray(base.pose, float).tolist()
        return fields

    def _post(self, body: bytes, deadline: float, cancelled: Callable[[], bool]) -> tuple[int, float, bytes]:
        """Send a question once; return the status, the seconds until it may be repeated, and the answer."""
        secure = self.address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self.address.hostname or "", self.address.port, timeout=CONNECT_SECONDS)
        late = QuestionError(f"the server {self.server} gave no answer within {self.timeout:g} s")
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise QuestionError(f"no server at {self.server}: {error}. Start trace-vlm serve there") from None
        try:
            connection.sock.settimeout(max(deadline - time.monotonic(), POLL))
            try:
                connection.request("POST", self.address.path.rstrip("/") + "/v1/point", body, self.headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before everything was sent: the answer says why
            if not _wait([connection.sock], deadline, cancelled):
                raise late
            answer = connection.getresponse()
            wait = answer.headers.get("Retry-After", "")
            return answer.status, float(wait) if wait.isdecimal() else 1.0, answer.read()
        except TimeoutError:
            raise late from None
        except (OSError, http.client.HTTPException) as error:
            raise QuestionError(f"the server {self.server} ended the connection: {error}") from None
        finally:
            connection.close()

    def _answer(self, content: bytes, view: View, base: Base | None) -> Answer:
        frame = view.image.header.frame_id
        frames = {"camera": frame, "base": base.frame_id if base is not None else frame, None: frame}
        distorted = view.depth is not None and not self.rectified and any(view.camera_info.d)
        warning = "the lens's distortion is not corrected" if distorted else ""
        try:
            answer = json.loads(content)
            points = [
                AnswerPoint(
                    x=float(point["x"]),
                    y=float(point["y"]),
                    u=float(point["pixel"][0]),
                    v=float(point["pixel"][1]),
                    confidence=math.nan if point["confidence"] is None else float(point["confidence"]),
                    xyz=None if point["xyz"] is None else tuple(map(float, point["xyz"])),
                    frame_id=frames[point["frame"]],
                    note="; ".join(filter(None, (point["note"], warning))),
                )
                for point in answer["points"]
            ]
            steps = [(step["step"], step["title"], step["text"]) for step in answer["reasoning"]]
            return Answer(points, answer["none"], steps, answer["text"], float(answer["seconds"]))
        except (ValueError, KeyError, TypeError):
            raise QuestionError(f"{self.server} does not answer as trace-vlm serve does: check the address") from None


def seconds_of(message: Any) -> float:
    """Return the time of a message's stamp."""
    return float(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)


def pose_of(transform: Any) -> np.ndarray:
    """Return a geometry_msgs/Transform as a 4 x 4 matrix."""
    rotation, translation = transform.rotation, transform.translation
    quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), translation.x],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), translation.y],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), translation.z],
            [0, 0, 0, 1],
        ]
    )


def _wait(sockets: Sequence[socket.socket], until: float, cancelled: Callable[[], bool]) -> bool:
    """Wait until a socket has something to read (True) or the time is over (False)."""
    while (left := until - time.monotonic()) > 0:
        if cancelled():
            raise Cancelled("the question was cancelled")
        if select.select(sockets, [], [], min(POLL, left))[0]:
            return True
    return False


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _message(content: bytes) -> str:
    """The sentence of an error's answer."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace") or "no reason is given"
