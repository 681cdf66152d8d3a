"""A local server with OpenAI's chat completions that misbehaves on purpose: `with serving(...) as server`."""

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate


@dataclass(frozen=True)
class Asked:
    model: str
    system: str
    text: str
    images: tuple[bytes, ...]
    body: dict

    @property
    def digest(self):
        return hashlib.sha256(f"{self.model}\0{self.system}\0{self.text}".encode()).hexdigest()[:16]


def reasoning(asked):
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


def one_point(asked):
    """What a pointing model might answer: one point, which depends on the question."""
    x, y = (int(asked.digest[i : i + 4], 16) / 0x10000 for i in (0, 4))
    return f"[({x:.3f}, {y:.3f})]"


@dataclass
class Server:
    """The behaviour, the requests, and for each its digest, fault and whether a whole answer was sent.

    Faults, each with its share of the requests: 400, 429 (with Retry-After), 500, `slow` (no answer until the client
    leaves), `cut` (half of the answer, then the connection is closed), `malformed` (200, but no JSON) and `wrong` (a
    whole answer whose text is not in the wanted format; it counts as completed).
    """

    random: random.Random
    answer: Callable = reasoning
    faults: dict = field(default_factory=dict)
    key: str | None = None  # any key will do when None
    delay: float = 0.0  # seconds before an answer
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    records: list[dict] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """HTTP/1.1 with kept connections, as far as the SDK uses it."""

    def __init__(self, server):
        self.server, self.buffer, self.gone = server, bytearray(), asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        self.gone.set()

    def data_received(self, data):
        self.buffer += data
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if b"\r\n\r\n" in self.buffer and len(rest) >= length:
            del self.buffer[: len(head) + 4 + length]
            self.task = asyncio.ensure_future(self.respond(first.split(" ")[1], headers, rest[:length]))

    async def respond(self, path, headers, body):
        server = self.server
        if server.key is not None and headers.get("authorization") != f"Bearer {server.key}":
            return self.send_error(401, headers.get("authorization"))  # as some do
        if not path.startswith("/v1") or not path.endswith("/chat/completions"):
            return self.send_error(404)
        content = json.loads(body)
        system = "\n".join(turn["content"] for turn in content["messages"] if turn["role"] == "system")
        parts = [part for turn in content["messages"] if turn["role"] == "user" for part in turn["content"]]
        text = "\n".join(part["text"] for part in parts if "text" in part)
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        images = tuple(base64.b64decode(url.partition(",")[2]) for url in urls)
        asked, draw = Asked(content["model"], system, text, images, content), server.random.random()
        edges = zip(server.faults, accumulate(server.faults.values()), strict=True)
        fault = next((name for name, edge in edges if draw < edge), "none")
        server.asked.append(asked)
        await asyncio.sleep(server.delay)
        if fault == "slow":
            await self.gone.wait()
        completed = fault in ("none", "wrong") and not self.transport.is_closing()
        server.records.append({"digest": asked.digest, "fault": fault, "completed": completed})
        if fault in ("400", "429", "500"):
            return self.send_error(int(fault))
        answer = "I am sorry, but I cannot help with that." if fault == "wrong" else server.answer(asked)
        message = {"role": "assistant", "content": answer}
        tokens_in = (len(system) + len(text)) // 4 + 258 * len(images)  # four characters each, an image 258
        usage = {"prompt_tokens": tokens_in, "completion_tokens": len(answer) // 4}
        payload = json.dumps({"object": "chat.completion", "model": asked.model, "usage": usage,
                              "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()  # fmt: skip
        if fault == "malformed":
            payload = payload[: len(payload) // 2] + b"}"
        self.send(200, payload, cut=fault == "cut")

    def send_error(self, status, details=""):
        message = f"{HTTPStatus(status).phrase} {details}"
        self.send(status, json.dumps({"error": {"code": status, "message": message}}).encode())

    def send(self, status, payload, cut=False):
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        head += f"Retry-After: 0.01\r\nContent-Length: {len(payload)}\r\n\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode() + (payload[: len(payload) // 2] if cut else payload))
        if cut:
            self.transport.close()


@contextlib.contextmanager
def serving(seed=0, port=0, **behaviour):
    """A server in a thread of its own; its address is `url`."""
    server, ready = Server(random.Random(seed), **behaviour), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve():
        listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", port)
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
