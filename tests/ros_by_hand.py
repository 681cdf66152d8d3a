"""Messages in the shape that ROS has them, and a server that answers as it is told and keeps what it was asked."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np

FRAME = "camera_color_optical_frame"
POINT = {"x": 0.25, "y": 0.5, "pixel": [16.0, 24.0], "inside": True, "confidence": 0.75, "box": None, "xyz": None,
         "frame": None, "note": "", "surfaces": []}  # fmt: skip
ANSWER = {"points": [POINT], "none": False, "text": "Final Answer: [(0.25, 0.5)]", "seconds": 0.5,
          "reasoning": [{"step": "milestone", "title": "Milestone", "text": "The mug is left."}]}  # fmt: skip


def image(pixels, encoding, stamp=10.0, padding=0, big_endian=False):
    """A sensor_msgs/Image of `pixels` [height, width(, channels)]; every row ends with `padding` bytes of 255."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    seconds = SimpleNamespace(sec=int(stamp), nanosec=round(stamp % 1 * 1e9))
    return SimpleNamespace(
        header=SimpleNamespace(stamp=seconds, frame_id=FRAME), height=pixels.shape[0], width=pixels.shape[1],
        encoding=encoding, is_bigendian=big_endian, step=padded.shape[1], data=padded.tobytes(),
    )  # fmt: skip


def camera_info(width, height, focal=60.0, distortion=()):
    """A sensor_msgs/CameraInfo whose rectified picture has another focal length."""
    k = [focal, 0.0, width / 2 - 0.5, 0.0, focal, height / 2 - 0.5, 0.0, 0.0, 1.0]
    p = [2 * focal, 0.0, k[2], 0.0, 0.0, 2 * focal, k[5], 0.0, 0.0, 0.0, 1.0, 0.0]
    return SimpleNamespace(width=width, height=height, k=np.array(k), p=np.array(p), d=list(distortion))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        server.keys.append(self.headers.get("Authorization"))
        server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, content, headers = server.replies[min(len(server.asked), len(server.replies)) - 1]
        if status is None:  # no answer until the test is over, or the end of the connection
            server.over.wait()
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def error(status, message, **headers):
    """A reply that is an error."""
    return (
        status,
        {"error": {"message": message, "type": "error"}},
        {k.replace("_", "-"): v for k, v in headers.items()},
    )


@contextmanager
def answering(*replies):
    """A server that gives these replies (status, content, headers) in turn, the last one for ever."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.replies, server.asked, server.keys, server.over = replies or ((200, ANSWER, {}),), [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
