"""What the reasoning builder costs besides the network: samples a second, with answers that come at once, and memory.

    python benchmarks/reasoners.py [--samples 1500] [--memory-samples 200000]

Yardstick: a bare loop that posts the same bodies with the HTTP library of both SDKs (httpx2) and reads the answers.
Then the builder with the openai SDK, with google-genai, and with a provider inside the process (the builder alone:
reading, drawing marks, checking, cache, writing). The openai SDK's typed `create` is measured against its `post`, which
the adapter uses. Rates are given a second of wall time and of the client's own CPU time: with other work on the machine
only the second one says anything. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trace_vlm.api import Completion
from trace_vlm.api_providers import Options, make_provider
from trace_vlm.data.reasoners import build, remote_build
from trace_vlm.data.reasoners.check import Rules
from trace_vlm.data.reasoners.prompt import Writing, request_for
from trace_vlm.data.reasoners.samples import task_of
from trace_vlm.prompts import question_text
from trace_vlm.records import Sample, Turn, read_samples, write_samples

ROOT = Path(__file__).resolve().parents[1]
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


class AtOnce:
    """A provider inside the process."""

    model = place = "at-once"

    async def send(self, request: Any, picture: Any) -> Completion:
        name = request.text.partition("Point to the ")[2].partition(".")[0]
        text = json.dumps({key: text.format(name=name) for key, text in STEPS.items()})
        return Completion(text, "stop", 600, 80)

    async def close(self) -> None: ...


@contextlib.contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests/api_server.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def measured(work: Callable[[], object], count: int) -> tuple[float, float]:
    """`count` over wall seconds, and over CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def run_build(data: Path, out: Path, *flags: str) -> None:
    common = ["--data", str(data), "--image-folder", str(data.parent), "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert build.main([*common, "--concurrency", str(CONCURRENCY), *flags]) == 0


def builder(folder: Path, data: Path, reasoner: str, url: str | None) -> None:
    flags = ["--reasoner", reasoner, "--model", "gpt-4o"]
    if url is not None:
        return run_build(data, folder / f"{reasoner}.json", *flags, "--base-url", url)
    real, remote_build.make_provider = remote_build.make_provider, lambda *_: AtOnce()
    try:
        run_build(data, folder / "at_once.json", *flags)
    finally:
        remote_build.make_provider = real


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


def typed_create(url: str, bodies: list[bytes]) -> None:
    import openai

    client = openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)

    async def one(body: bytes) -> None:
        answer = await client.chat.completions.create(**json.loads(body))
        assert answer.choices[0].message.content

    in_workers(one, bodies)


def post(url: str, requests: list[Any]) -> None:
    provider = make_provider("openai", "gpt-4o", f"{url}/v1", Options(), CONCURRENCY)

    async def one(request: tuple[Any, Any]) -> None:
        assert (await provider.send(*request)).text

    in_workers(one, requests)


def speed(folder: Path, count: int) -> None:
    data = make_data(folder, count, count // A_PICTURE)
    writing = Writing(folder, "benchmark", Rules())
    requests = [request_for(task_of(sample), writing) for sample in read_samples(data)]
    pictures = [request.picture() for request in requests[:64] if request.picture]
    sent = [(request, pictures[number % 64]) for number, request in enumerate(requests)]
    maker = make_provider("openai", "gpt-4o", "http://localhost", Options(), 1)
    bodies = [json.dumps(maker._body(*one)).encode() for one in sent]
    size = len(base64.b64encode(pictures[0].data)) // 1000
    print(f"{count} samples, pictures of {SIDE} x {SIDE} ({size} kB as sent), {CONCURRENCY} at a time")
    with server() as url:
        bare_loop(url, bodies[:100])
        yardstick = measured(lambda: bare_loop(url, bodies), count)
        rows = {
            "httpx2, bare loop (yardstick)": yardstick,
            "openai SDK, post": measured(lambda: post(url, sent), count),
            "openai SDK, typed create": measured(lambda: typed_create(url, bodies), count),
            "builder, openai": measured(lambda: builder(folder, data, "openai", f"{url}/v1"), count),
            "builder, gemini": measured(lambda: builder(folder, data, "gemini", url), count),
            "builder, answers in the process": measured(lambda: builder(folder, data, "openai", None), count),
        }
    print(f"{'':34}{'a second':>10}{'a CPU second':>14}{'CPU against yardstick':>23}")
    for name, (wall, cpu) in rows.items():
        print(f"{name:34}{wall:10.0f}{cpu:14.0f}{yardstick[1] / cpu:22.2f}x")


def memory(folder: Path, count: int) -> None:
    """Run by itself: the peak of a process that builds `count` samples with answers inside the process.

    What could grow is kept for each sample, not for each pixel: the pictures are small, to save time.
    """
    data = make_data(folder, count, 100, side=48)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    builder(folder, data, "openai", None)
    remote = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = data.stat().st_size / 2**20
    print(f"{count} samples ({size:.0f} MB of JSON): peak {remote:.0f} MB, {before:.0f} MB before the build")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--memory-samples", type=int, default=200_000, help="0: leave memory out")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(GEMINI_API_KEY="none", OPENAI_API_KEY="none")
    with tempfile.TemporaryDirectory() as folder:
        if args.only_memory:
            return memory(Path(folder), args.memory_samples)
        speed(Path(folder), args.samples)
    if args.memory_samples:
        command = [sys.executable, __file__, "--only-memory", "--memory-samples", str(args.memory_samples)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
