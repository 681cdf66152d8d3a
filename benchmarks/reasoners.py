"""What the reasoning builder costs besides the network: samples a second, CPU time by part, and memory.

    python benchmarks/reasoners.py [--samples 4000] [--memory-samples 200000]

Answers come at once, from a server in a process of its own, whose CPU time is shown and counted to nobody. First the
parts, one after the other, in milliseconds of CPU time a sample:

    HTTP       the same bodies posted by the SDK's HTTP library (httpx2) in a bare loop, the answers read
    SDK        what `OpenAIChat.send` takes over that
    picture    drawing the marks and JPEG
    ours       the builder with a provider that answers inside the process and pictures that are there: reading,
               prompt, cache, check, writing

Then the builder without SDK and network, pictures included, and the commands as one runs them, by the clock and by CPU
time, start and import of the SDKs included. With other work on the machine only
CPU time says anything. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trace_vlm.core.prompts import question_text
from trace_vlm.core.records import Sample, Turn, read_samples, write_samples
from trace_vlm.data.cor import build, remote
from trace_vlm.data.cor.checks import ReasoningTask
from trace_vlm.remote.client import Completion, Picture
from trace_vlm.remote.providers import OpenAIChat, Options

SIDE, A_PICTURE, CONCURRENCY = 336, 6, 32
COLORS = ("red", "green", "blue", "yellow")
STEPS = {
    "reference": "The reference object is the {name}, seen near the middle of the image.",
    "target": "The target area is the visible surface of that object, up to its outline.",
    "subtype": "The goal is object reference.",
    "output": "Several spots that are spread over the visible surface are chosen.",
}


def make_data(folder: Path, count: int, pictures: int, side: int = SIDE) -> Path:
    """Samples in the generator's format, `A_PICTURE` to a picture, over at most `pictures` pictures."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(pictures):
        coarse = rng.integers(0, 256, (21, 21, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{number}.png")

    def samples() -> Iterator[Sample]:
        for number in range(count):
            name = f"{COLORS[number % 4]} mug"
            target = {"name": name, "category": "mug", "center": [0.4, 0.6]}
            meta = {"task": "object_reference", "kind": "direct", "relation": None, "target": target}
            meta |= {"references": [], "surface": "table"}
            asked = question_text(f"Point to the {name}.", reasoning=False)
            turns = (Turn("human", f"<image>\n{asked}"), Turn("gpt", "[(0.411, 0.603), (0.395, 0.588)]"))
            yield Sample(f"s{number}", f"images/{number // A_PICTURE % pictures}.png", turns, meta)

    write_samples(folder / "data.json", samples())
    return folder / "data.json"


def answer_to(text: str) -> str:
    name = text.partition("Point to the ")[2].partition(".")[0]
    return json.dumps({key: step.format(name=name) for key, step in STEPS.items()})


# --- a server that answers at once ----------------------------------------------------------------


class AtOnce(asyncio.Protocol):
    """HTTP/1.1 as far as it takes; the body is not read but for the object's name, to leave the machine to the client."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        lower = bytes(self.buffer[:head]).lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self.buffer) < head + 4 + length:
            return
        at = self.buffer.find(b"Point to the ", head)
        text = answer_to(self.buffer[at : at + 60].decode("latin-1"))
        self.buffer.clear()
        payload = ENVELOPES[b":generatecontent" in lower[:200]](text)
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload
        )


def _openai(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 600, "completion_tokens": 80, "total_tokens": 680}
    record = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(record | {"usage": usage}).encode()


def _gemini(text: str) -> bytes:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
    usage = {"promptTokenCount": 600, "candidatesTokenCount": 80, "totalTokenCount": 680}
    return json.dumps({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}).encode()


ENVELOPES: dict[bool, Callable[[str], bytes]] = {False: _openai, True: _gemini}


def serve() -> None:
    async def run() -> None:
        listening = await asyncio.get_running_loop().create_server(AtOnce, "127.0.0.1", 0)
        print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
        await listening.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def server() -> Iterator[tuple[str, Callable[[], float]]]:
    """(its address, CPU seconds it has used so far)"""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)

    def used() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), used
    finally:
        process.terminate()
        process.wait()


# --- the parts ------------------------------------------------------------------------------------


class Inside:
    """A provider that answers inside the process, without a network."""

    model = address = "at-once"
    http_errors: Counter[str] = Counter()

    async def send(self, request: Any, picture: Any) -> Completion:
        return Completion(answer_to(request.text), "stop", 600, 80)

    async def close(self) -> None: ...


def cpu() -> float:
    """CPU seconds of this process and of those it has ended."""
    mine, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return mine.ru_utime + mine.ru_stime + ended.ru_utime + ended.ru_stime


def each_ms(work: Callable[[], object], count: int) -> float:
    """Milliseconds of CPU time for one of `count`."""
    before = cpu()
    work()
    return (cpu() - before) / count * 1000


def in_workers(one: Callable[[Any], Awaitable[object]], items: list[Any]) -> None:
    async def everything() -> None:
        waiting = iter(items)

        async def work() -> None:
            for item in waiting:
                await one(item)

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))

    asyncio.run(everything())


def bare_loop(url: str, bodies: list[bytes]) -> None:
    import httpx2

    limits = httpx2.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    client = httpx2.AsyncClient(limits=limits, timeout=60)

    async def one(body: bytes) -> None:
        answer = await client.post(f"{url}/v1/chat/completions", content=body)
        assert answer.json()["choices"][0]["message"]["content"]

    in_workers(one, bodies)


def sdk_loop(provider: Any, requests: list[tuple[Any, Picture]]) -> None:
    async def one(request: tuple[Any, Picture]) -> None:
        assert (await provider.send(*request)).text

    in_workers(one, requests)


def run_build(data: Path, out: Path, *flags: str) -> None:
    common = ["--data", str(data), "--images", str(data.parent), "--out", str(out), "--model", "gpt-4o"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert build.main([*common, "--concurrency", str(CONCURRENCY), *flags]) == 0


def build_inside(folder: Path, data: Path) -> dict[str, Any]:
    """The whole command but for SDK and network; its record."""
    out = folder / "inside.json"
    real, remote.OpenAIChat = remote.OpenAIChat, lambda *_: Inside()
    try:
        run_build(data, out, "--reasoner", "openai")
    finally:
        remote.OpenAIChat = real
    record: dict[str, Any] = json.loads(out.with_name(out.name + ".run.json").read_text())
    return record


def parts(folder: Path, data: Path, url: str, served: Callable[[], float], count: int) -> dict[str, float]:
    config = remote.PromptConfig(folder, "benchmark")
    requests = [remote.first_request(ReasoningTask.of(sample), config) for sample in read_samples(data)][:count]
    pictures = [request.picture() for request in requests[:60]]
    sent = [(request, pictures[number % 60]) for number, request in enumerate(requests)]
    openai = OpenAIChat("openai", "m", f"{url}/v1", Options())
    bodies = [json.dumps(openai._body(*one)).encode() for one in sent]
    print(f"{count} samples a part; pictures of {SIDE} x {SIDE}, requests of {len(bodies[0]) // 1000} kB")
    bare_loop(url, bodies[:100])
    before = served()
    found = {"HTTP": each_ms(lambda: bare_loop(url, bodies), count)}
    found["(the server)"] = (served() - before) / count * 1000
    found["SDK"] = each_ms(lambda: sdk_loop(openai, sent), count) - found["HTTP"]
    found["picture"] = each_ms(lambda: [request.picture() for request in requests], count)
    found["ours"] = each_ms(lambda: build_inside(folder, data), sum(1 for _ in read_samples(data)))
    return found


# --- the commands ---------------------------------------------------------------------------------


def command(folder: Path, data: Path, url: str) -> tuple[float, float, float]:
    """(samples a second while asking, of the whole command, CPU milliseconds a sample of the whole command)"""
    out = folder / "openai.json"
    words = ["-m", "trace_vlm.data.cor.build", "--data", data, "--images", data.parent, "--out", out]
    words += ["--reasoner", "openai", "--model", "m", "--base-url", f"{url}/v1", "--concurrency", CONCURRENCY]
    count = sum(1 for _ in read_samples(data))
    before, start = cpu(), time.perf_counter()
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    seconds, used = time.perf_counter() - start, cpu() - before
    record = json.loads(out.with_name(out.name + ".run.json").read_text())
    assert record["written"] == count and record["rejected"] == 0
    return record["remote"]["responses"] / record["remote"]["seconds"], count / seconds, used / count * 1000


def speed(folder: Path, count: int) -> None:
    data = make_data(folder, count, count // A_PICTURE)
    with server() as (url, served):
        costs = parts(folder, data, url, served, min(count, 1500))
        for name, milliseconds in costs.items():
            print(f"  {name:14}{milliseconds:8.2f} ms of CPU a sample")
        print(f"{'':24}{'asking, a s':>13}{'all, a second':>15}{'CPU ms a sample':>17}")
        asking, all_a_second, used = command(folder, data, url)
        print(f"{'':24}{asking:13.0f}{all_a_second:15.0f}{used:17.2f}", flush=True)
    print(f"a bare loop of the HTTP library alone: {1000 / costs['HTTP']:.0f} a CPU second; {os.cpu_count()} cores")


def memory(folder: Path, count: int) -> None:
    """Run by itself: the peak of a process that builds `count` samples with answers inside the process.

    What could grow is kept for each sample, not for each pixel: the pictures are small, to save time.
    """
    data = make_data(folder, count, 100, side=48)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    build_inside(folder, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = data.stat().st_size / 2**20
    print(f"{count} samples ({size:.0f} MB of JSON): peak {peak:.0f} MB, {before:.0f} MB before the build")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--memory-samples", type=int, default=200_000, help="0: leave memory out")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    os.environ.update(GEMINI_API_KEY="none", OPENAI_API_KEY="none")
    with tempfile.TemporaryDirectory() as folder:
        if args.only_memory:
            return memory(Path(folder), args.memory_samples)
        if args.samples:
            speed(Path(folder), args.samples)
    if args.memory_samples:
        words = [sys.executable, __file__, "--only-memory", "--memory-samples", str(args.memory_samples)]
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
