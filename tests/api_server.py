"""A local server with OpenAI's chat completions that misbehaves on purpose.

    python tests/api_server.py --log LOG.jsonl --faults 429=0.05,500=0.05,slow=0.01,cut=0.05,malformed=0.05,wrong=0.1

It prints its address, then serves until it is stopped. What becomes of every request is a line of the log: `digest` of
what was asked, `fault`, and `completed`, whether a whole answer was handed to the connection. In tests: `serving(...)`.

Faults, each with its share of the requests: 400, 429 (with Retry-After), 500, `slow` (no answer until the client leaves),
`cut` (half of the answer, then the connection is closed), `malformed` (200, but no JSON) and `wrong` (a whole answer
whose text is not in the wanted format; it counts as completed).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = ("400", "429", "500", "slow", "cut", "malformed", "wrong")
SORRY = "I am sorry, but I cannot help with that."
PHRASES = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
}


@dataclass(frozen=True)
class Asked:
    """One request."""

    model: str
    system: str
    text: str
    images: tuple[bytes, ...]
    body: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.model}\0{self.system}\0{self.text}".encode()).hexdigest()[:16]


def reasoning(asked: Asked) -> str:
    """Four steps that name everything the instruction names: what a careful model might answer."""
    line = next(line for line in asked.text.splitlines() if line.startswith("Instruction: "))
    instruction = line.removeprefix("Instruction: ").rstrip(".?! ")
    free = 'here it is "free space"' in asked.text
    steps = {
        "reference": f"The instruction says: {instruction}. The reference object is the one named there.",
        "target": "The target area is the region that the instruction describes.",
        "subtype": f"The goal is {'free space' if free else 'object'} reference.",
        "output": "Several spots that are spread over the target area are chosen.",
    }
    return json.dumps(steps)


def one_point(asked: Asked) -> str:
    """What a pointing model might answer: one point, which depends on the question."""
    x, y = (int(asked.digest[i : i + 4], 16) / 0x10000 for i in (0, 4))
    return f"[({x:.3f}, {y:.3f})]"


ANSWERS: Mapping[str, Callable[[Asked], str]] = {"reasoning": reasoning, "points": one_point}


@dataclass
class Server:
    """The behaviour, and what has been seen so far."""

    answer: Callable[[Asked], str] = reasoning
    faults: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    key: str | None = None  # any key will do when None
    delay: float = 0.0  # seconds before an answer
    log: Path | None = None
    keep: bool = False  # remember the requests themselves in `asked`
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(FAULTS)
        assert not unknown, f"unknown faults {unknown}"
        self._random = random.Random(self.seed)
        self._file = open(self.log, "a", buffering=1) if self.log else None

    def choose_fault(self) -> str:
        draw = self._random.random()
        for name, share in self.faults.items():
            draw -= share
            if draw < 0:
                return name
        return "none"

    def record(self, asked: Asked, fault: str, completed: bool) -> None:
        line = {"digest": asked.digest, "fault": fault, "completed": completed, "time": round(time.time(), 4)}
        self.records.append(line)
        if self._file:
            self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self._file:
            self._file.close()


class Connection(asyncio.Protocol):
    """HTTP/1.1 with kept connections, as far as the SDK uses it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = bytearray()
        self.task: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self.buffer[:head_end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(headers.get("content-length", 0))
        if len(self.buffer) < head_end + 4 + length:
            return
        body = bytes(self.buffer[head_end + 4 : head_end + 4 + length])
        del self.buffer[: head_end + 4 + length]
        self.task = asyncio.ensure_future(self.respond(head[0].split(" ")[1], headers, body))

    async def respond(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        server = self.server
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if server.key is not None and key != server.key:
            return self.send(401, _error(401, "API key not valid"))
        try:
            asked = _read(path, body)
        except (KeyError, ValueError, TypeError) as error:
            return self.send(400, _error(400, f"not understood: {error!r}"))
        if asked is None:
            return self.send(404, _error(404, f"there is nothing at {path}"))
        fault = server.choose_fault()
        if server.keep:
            server.asked.append(asked)
        if server.delay:
            await asyncio.sleep(server.delay)
        if fault == "slow":
            await self.gone.wait()
            return server.record(asked, fault, False)
        if fault in ("400", "429", "500"):
            server.record(asked, fault, False)
            return self.send(int(fault), _error(int(fault), "try again"), {"Retry-After": "0.01"})
        text = SORRY if fault == "wrong" else server.answer(asked)
        payload = json.dumps(_envelope(asked, text)).encode()
        if fault == "malformed":
            server.record(asked, fault, False)
            return self.send(200, payload[: len(payload) // 2] + b"}")
        if fault == "cut":
            server.record(asked, fault, False)
            self.send(200, payload, cut=True)
            return self.transport.close()
        completed = not self.transport.is_closing()
        server.record(asked, fault, completed)
        self.send(200, payload)

    def send(self, status: int, payload: bytes, headers: Mapping[str, str] | None = None, cut: bool = False) -> None:
        lines = [f"HTTP/1.1 {status} {PHRASES[status]}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(payload)}", "", ""]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join(lines).encode() + (payload[: len(payload) // 2] if cut else payload))


def _read(path: str, body: bytes) -> Asked | None:
    if not path.endswith("/chat/completions"):
        return None
    content = json.loads(body)
    system = [turn["content"] for turn in content["messages"] if turn["role"] == "system"]
    parts = [part for turn in content["messages"] if turn["role"] == "user" for part in turn["content"]]
    text = "\n".join(part["text"] for part in parts if "text" in part)
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    images = tuple(base64.b64decode(url.partition(",")[2]) for url in urls)
    return Asked(content["model"], "\n".join(system), text, images, content)


def _envelope(asked: Asked, text: str) -> dict[str, Any]:
    """The answer as servers wrap it; tokens are counted as four characters each, an image as 258."""
    tokens_in = (len(asked.system) + len(asked.text)) // 4 + 258 * len(asked.images)
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "model": asked.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens_in, "completion_tokens": len(text) // 4},
    }


def _error(code: int, message: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "status": PHRASES[code].upper()}}).encode()


async def _serve(server: Server, ready: Callable[[], None], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    ready()
    await stop.wait()
    listening.close()
    server.close()


@contextlib.contextmanager
def serving(**behaviour: Any) -> Iterator[Server]:
    """A server in a thread of its own; its address is `url`."""
    server, ready = Server(**behaviour), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(server, ready.set, stop),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--faults", default="", help="NAME=SHARE,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--answer", choices=ANSWERS, default="reasoning")
    args = parser.parse_args()
    shares = (pair.partition("=") for pair in args.faults.split(",") if pair)
    faults = {name: float(share) for name, _, share in shares}
    server = Server(answer=ANSWERS[args.answer], faults=faults, seed=args.seed, delay=args.delay, log=args.log)
    asyncio.run(_serve(server, lambda: print(server.url, flush=True), asyncio.Event()))


if __name__ == "__main__":
    main()
