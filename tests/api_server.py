"""A local server with OpenAI's chat completions that misbehaves on purpose: `with serving(...) as server`.

Faults, each with its share of the requests: 400, 429 (with Retry-After), 500, `slow` (no answer until the client leaves),
`cut` (half of the answer, then the connection is closed), `malformed` (200, but no JSON) and `wrong` (a whole answer
whose text is not in the wanted format; it counts as completed).
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

SORRY = "I am sorry, but I cannot help with that."


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
    subtype = "free space" if 'here it is "free space"' in asked.text else "object"
    return json.dumps({
        "reference": f"The instruction says: {instruction}. The reference object is the one named there.",
        "target": "The target area is the region that the instruction describes.",
        "subtype": f"The goal is {subtype} reference.",
        "output": "Several spots that are spread over the target area are chosen.",
    })  # fmt: skip


def one_point(asked: Asked) -> str:
    """What a pointing model might answer: one point, which depends on the question."""
    x, y = (int(asked.digest[i : i + 4], 16) / 0x10000 for i in (0, 4))
    return f"[({x:.3f}, {y:.3f})]"


@dataclass
class Server:
    """The behaviour, the requests, and for each its digest, fault and whether a whole answer was sent."""

    answer: Callable[[Asked], str] = reasoning
    faults: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    key: str | None = None  # any key will do when None
    delay: float = 0.0  # seconds before an answer
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def choose_fault(self) -> str:
        draw = self._random.random()
        for name, share in self.faults.items():
            draw -= share
            if draw < 0:
                return name
        return "none"


class Connection(asyncio.Protocol):
    """HTTP/1.1 with kept connections, as far as the SDK uses it."""

    def __init__(self, server: Server) -> None:
        self.server, self.buffer, self.gone = server, bytearray(), asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if b"\r\n\r\n" in self.buffer and len(rest) >= length:
            del self.buffer[: len(head) + 4 + length]
            self.task = asyncio.ensure_future(self.respond(first.split(" ")[1], headers, rest[:length]))

    async def respond(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        server = self.server
        if server.key is not None and headers.get("authorization") != f"Bearer {server.key}":
            return self.send_error(401)
        if not path.startswith("/v1") or not path.endswith("/chat/completions"):
            return self.send_error(404)
        asked, fault = _read(body), server.choose_fault()
        server.asked.append(asked)
        await asyncio.sleep(server.delay)
        if fault == "slow":
            await self.gone.wait()
        completed = fault in ("none", "wrong") and not self.transport.is_closing()
        server.records.append({"digest": asked.digest, "fault": fault, "completed": completed})
        if fault in ("400", "429", "500"):
            return self.send_error(int(fault))
        payload = _envelope(asked, SORRY if fault == "wrong" else server.answer(asked))
        if fault == "malformed":
            self.send(200, payload[: len(payload) // 2] + b"}")
        else:
            self.send(200, payload, cut=fault == "cut")

    def send_error(self, status: int) -> None:
        self.send(status, json.dumps({"error": {"code": status, "message": HTTPStatus(status).phrase}}).encode())

    def send(self, status: int, payload: bytes, cut: bool = False) -> None:
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        head += f"Retry-After: 0.01\r\nContent-Length: {len(payload)}\r\n\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode() + (payload[: len(payload) // 2] if cut else payload))
        if cut:
            self.transport.close()


def _read(body: bytes) -> Asked:
    content = json.loads(body)
    system = [turn["content"] for turn in content["messages"] if turn["role"] == "system"]
    parts = [part for turn in content["messages"] if turn["role"] == "user" for part in turn["content"]]
    text = "\n".join(part["text"] for part in parts if "text" in part)
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    images = tuple(base64.b64decode(url.partition(",")[2]) for url in urls)
    return Asked(content["model"], "\n".join(system), text, images, content)


def _envelope(asked: Asked, text: str) -> bytes:
    """The answer as servers wrap it; tokens are counted as four characters each, an image as 258."""
    tokens_in = (len(asked.system) + len(asked.text)) // 4 + 258 * len(asked.images)
    message = {"role": "assistant", "content": text}
    return json.dumps({
        "object": "chat.completion",
        "model": asked.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens_in, "completion_tokens": len(text) // 4},
    }).encode()  # fmt: skip


@contextlib.contextmanager
def serving(**behaviour: Any) -> Iterator[Server]:
    """A server in a thread of its own; its address is `url`."""
    server, ready = Server(**behaviour), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        listening.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
