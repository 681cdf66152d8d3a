"""Image messages -> the files that the server reads. Standard library and numpy only.

Messages are taken as ROS has them (sensor_msgs/Image): height, width, encoding, is_bigendian, step and data.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np

# Channels of an encoding, and those of red, green and blue.
COLOURS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
DEPTHS = {"16UC1": ("u2", "mm"), "32FC1": ("f4", "m")}  # type of a pixel, unit (REP 118)


class QuestionError(RuntimeError):
    """A question that cannot be asked or was not answered; one sentence for the user."""


def colour_png(message: Any) -> bytes:
    """Return a picture as an RGB PNG. QuestionError: the encoding is unknown, or the message broken."""
    if message.encoding not in COLOURS:
        raise QuestionError(
            f"the picture's encoding is {message.encoding!r}; understood are {', '.join(COLOURS)}: "
            "convert it with image_proc"
        )
    channels, order = COLOURS[message.encoding]
    return _png(_pixels(message, "u1", channels)[:, :, order])


def depth_file(message: Any) -> tuple[bytes, str]:
    """Return a depth image's file and its unit: a 16-bit PNG in "mm" or a float .npy in "m"."""
    if message.encoding not in DEPTHS:
        raise QuestionError(
            f"the depth's encoding is {message.encoding!r}; understood are 16UC1 (millimetres) and 32FC1 (metres)"
        )
    kind, unit = DEPTHS[message.encoding]
    pixels = _pixels(message, kind, 1)
    if kind == "u2":
        return _png(pixels), unit
    file = io.BytesIO()
    np.save(file, pixels[:, :, 0])
    return file.getvalue(), unit


def _pixels(message: Any, kind: str, channels: int) -> np.ndarray:
    """Return `[height, width, channels]`; bytes that pad a row are left out."""
    row = message.width * channels * np.dtype(kind).itemsize
    content = np.frombuffer(message.data, np.uint8)
    if not row or not message.height or message.step < row or content.size < message.step * message.height:
        raise QuestionError(
            f"the {message.encoding} message of {message.width} x {message.height} pixels is broken: "
            f"{content.size} bytes, {message.step} in a row"
        )
    rows = content[: message.step * message.height].reshape(message.height, message.step)[:, :row]
    order = ">" if message.is_bigendian else "<"
    return np.ascontiguousarray(rows).view(order + kind).reshape(message.height, message.width, channels)


def _png(pixels: np.ndarray) -> bytes:
    """Encode `[height, width, 1 or 3]`, 8 or 16 bits."""
    height, width, channels = pixels.shape
    ordered = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">"))  # PNG is big-endian
    rows = ordered.reshape(height, -1).view(np.uint8)
    filtered = np.zeros((height, 1 + rows.shape[1]), np.uint8)  # the first byte of a row names its filter: none
    filtered[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
