"""Serve a model over HTTP: OpenAI's protocol and a plain question with points, batched.

    trace-vlm serve --model M --port 8000
    curl -F image=@table.png -F instruction="Point to the mug." http://127.0.0.1:8000/v1/point

The key that clients have to send comes from the environment variable TRACE_API_KEY. Needs the extra `serve`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence

from ..utils.command import InputError, Parser, install_hint, run

KEY = "TRACE_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    from ..model.presets import default_model

    parser = Parser(description="Serve a model over HTTP.", examples=__doc__)
    add = parser.add_argument
    add(
        "--model",
        default=default_model(),
        help="folder, name on the hub, or a bundled one: nano, nano-direct (default: nano)",
    )
    add("--model-base", help="the model that an adapter belongs to")
    add("--name", help="of the model in requests (default: the folder's name)")
    add("--host", default="127.0.0.1", help="address to listen on; others than loopback need a key or --insecure")
    add("--port", type=int, default=8000)
    add("--device", help="as torch names it (default: a GPU if there is one)")
    add("--dtype", help="of the weights (default: float32 on a CPU, as stored on a GPU)")
    add("--batch-window", default="10ms", help="time to wait for more questions after the first of a batch: 10ms, 0.1s")
    add("--max-batch", type=int, default=64, help="questions answered together, fewer where memory is short")
    add("--max-queue", type=int, default=64, help="questions at a time; more are answered 429")
    add("--timeout", type=float, default=60.0, help="seconds from which on 504 is answered")
    add("--max-image-mb", type=float, default=20.0, help="size of an image's file, in 10**6 bytes")
    add("--max-pixels", type=float, default=50e6, help="width x height of an image")
    add("--allow-urls", nargs="+", default=[], metavar="HOST", help="hosts from which images may be fetched")
    add("--insecure", action="store_true", help=f"listen on any address without a key in {KEY}")
    arguments = parser.parse_args(argv)
    window = seconds(arguments.batch_window)
    for name, valid in (("port", 0 < arguments.port < 65536), ("max-queue", arguments.max_queue > 0),
                        ("max-batch", arguments.max_batch > 0),
                        ("timeout", 0 < arguments.timeout < 1e6), ("max-image-mb", 0 < arguments.max_image_mb < 1e4),
                        ("max-pixels", 1 <= arguments.max_pixels < 1e10)):  # fmt: skip
        if not valid:
            raise InputError(f"--{name} {getattr(arguments, name.replace('-', '_'))} is out of range")
    key = os.environ.get(KEY) or None
    if not re.fullmatch(r"[!-~]*", key or ""):
        raise InputError(f"the key in {KEY} must be of ASCII characters without blanks: no other fits into a header")
    if key is None and not arguments.insecure and not _is_loopback(arguments.host):
        raise InputError(f"without a key only this machine may ask: set {KEY}, or give --insecure, or --host 127.0.0.1")
    try:
        import uvicorn

        from .app import ServerSettings, build_app
        from .requests import Limits
    except ModuleNotFoundError as error:
        raise InputError(f"the server needs {error.name}: {install_hint('serve')}") from None
    from ..inference.predictor import Predictor

    host, port = arguments.host, arguments.port
    try:  # before the model: a mistake shows at once
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened to: {error.strerror}. Give another --port") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises the signal again when all is answered
    predictor = Predictor.load(arguments.model, arguments.model_base, arguments.device, arguments.dtype)
    name = arguments.name or predictor.checkpoint.name
    limits = Limits(int(arguments.max_image_mb * 1e6), int(arguments.max_pixels), tuple(arguments.allow_urls))
    settings = ServerSettings(name, window, arguments.max_batch, arguments.max_queue, arguments.timeout, limits, key)
    print(f"{name} on http://{host}:{port} (API: /docs; Ctrl-C or SIGTERM ends it)", flush=True)
    config = uvicorn.Config(
        build_app(predictor, settings), log_level="warning", access_log=False,
        timeout_graceful_shutdown=int(arguments.timeout) + 1,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def seconds(text: str) -> float:
    """ "10ms" or "0.1s" in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if match is None:
        raise InputError(f"--batch-window {text!r} must be a time such as 10ms or 0.1s")
    return float(match[1]) * (0.001 if match[2] == "ms" else 1.0)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    raise SystemExit(run(main))
