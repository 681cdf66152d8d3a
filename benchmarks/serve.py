"""Requests a second and latency of `trace-vlm serve`, with and without batches, against `transformers serve`.

    OMP_NUM_THREADS=1 python benchmarks/serve.py [--model FOLDER] [--requests 48] [--rate 3]
    OMP_NUM_THREADS=1 python benchmarks/serve.py --endurance 1000

The three servers run on this machine and take turns, each with the same questions about pictures that are all different.
Closed loops of 1, 4 and 16 clients ask as soon as they have an answer. The open loop asks at a fixed rate, whatever
comes back, and counts latency from the planned moment. Beside the clock, CPU seconds of the server a request are given,
which other work on the machine changes less.

The endurance run sends 5 % malformed requests, cuts 5 % of the connections, ends the server by SIGTERM in the middle of
the requests and starts another one. Lost are answers with status 200 that do not arrive whole.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from PIL import Image, ImageChops

from trace_vlm.core.prompts import question_text

ASSETS = Path(__file__).resolve().parents[1] / "trace" / "assets"
CLIENTS = 1, 4, 16
TOKENS = 64
OURS = [sys.executable, "-P", "-m", "trace_vlm.serve.serve", "--model"]


class Server:
    """A server in a process of its own, ready when this returns."""

    def __init__(self, command: list[str], log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log.open("a")
        self.process = subprocess.Popen([*command, "--port", str(port)], stdout=self.log, stderr=self.log)
        while self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/v1/models", timeout=60)
                return
            except httpx.ConnectError:
                time.sleep(0.2)
        raise SystemExit(f"{' '.join(command)} ended: {log}")

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def question(number: int, model: str) -> dict[str, Any]:
    """A request about a picture of its own, in the wording of the training, so that every server asks the same."""
    samples = json.loads((ASSETS / "demo" / "samples.json").read_text())
    sample = samples[number % len(samples)]
    with Image.open(ASSETS / "demo" / sample["image"]) as opened:
        picture = ImageChops.offset(opened.convert("RGB"), number // len(samples), 0)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}},
               {"type": "text", "text": question_text(sample["instruction"], True)}]  # fmt: skip
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS}


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    answer = await client.post("/v1/chat/completions", json=body)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"]).strip()


async def closed(url: str, bodies: list[dict[str, Any]], clients: int) -> tuple[list[float], list[str]]:
    """Latencies and answers of clients that each ask as soon as they have an answer."""
    waiting, latencies, answers = list(enumerate(bodies))[::-1], [0.0] * len(bodies), [""] * len(bodies)

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            number, body = waiting.pop()
            started = time.perf_counter()
            answers[number] = await ask(client, body)
            latencies[number] = time.perf_counter() - started

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return latencies, answers


async def open_loop(url: str, bodies: list[dict[str, Any]], rate: float) -> list[float]:
    """Latencies, from the planned moments, of requests that are sent at a fixed rate."""
    begin = time.perf_counter()

    async def one(client: httpx.AsyncClient, number: int, body: dict[str, Any]) -> float:
        planned = begin + number / rate
        await asyncio.sleep(planned - time.perf_counter())
        await ask(client, body)
        return time.perf_counter() - planned

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        return list(await asyncio.gather(*(one(client, *numbered) for numbered in enumerate(bodies))))


def described(latencies: list[float], seconds: float, cpu: float) -> dict[str, float]:
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).round(3).tolist()
    count = len(latencies)
    return {"requests a second": round(count / seconds, 2), "CPU seconds a request": round(cpu / count, 3),
            "p50": p50, "p95": p95, "p99": p99}  # fmt: skip


def measure(model: str, requests: int, rate: float | None, folder: Path) -> dict[str, Any]:
    flags = ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    program = str(Path(sys.executable).with_name("transformers"))
    commands = {
        "batched": [*OURS, model, *flags, "--timeout", "600"],
        "one at a time": [*OURS, model, *flags, "--timeout", "600", "--batch-window", "0ms", "--max-batch", "1"],
        "transformers serve": [program, "serve", model, *flags],
    }
    servers = {name: Server(command, folder / "log") for name, command in commands.items()}
    names = {name: model if name == "transformers serve" else "" for name in servers}
    result: dict[str, Any] = {"model": model, "requests": requests, "new tokens, at most": TOKENS}
    texts: dict[str, list[str]] = {}
    for name, server in servers.items():  # kernels are chosen, threads started
        asyncio.run(closed(server.url, [question(-1, names[name])] * 2, 2))
    for clients in CLIENTS:
        for name, server in servers.items():
            count = max(8, requests * min(clients, 4) // 4)
            bodies = [question(number, names[name]) for number in range(count)]
            started, cpu = time.perf_counter(), server.cpu_seconds
            latencies, texts[name] = asyncio.run(closed(server.url, bodies, clients))
            row = described(latencies, time.perf_counter() - started, server.cpu_seconds - cpu)
            result[f"{name}, {clients} clients"] = row
            print(f"{name}, {clients} clients: {row}", file=sys.stderr, flush=True)
    theirs, ours = (result[f"{name}, {CLIENTS[-1]} clients"] for name in ("transformers serve", "batched"))
    rate = rate or theirs["requests a second"]
    for name, server in servers.items():
        bodies = [question(number, names[name]) for number in range(requests)]
        started, cpu = time.perf_counter(), server.cpu_seconds
        latencies = asyncio.run(open_loop(server.url, bodies, rate))
        row = described(latencies, time.perf_counter() - started, server.cpu_seconds - cpu)
        result[f"{name}, {rate:g} requests a second"] = row
        print(f"{name}, {rate:g} requests a second: {row}", file=sys.stderr, flush=True)
    same = [a == b for a, b in zip(texts["batched"], texts["transformers serve"], strict=True)]
    result["answers equal to those of transformers serve"] = round(sum(same) / len(same), 3)
    for number in ("requests a second", "CPU seconds a request"):
        pair = (ours[number], theirs[number]) if number == "requests a second" else (theirs[number], ours[number])
        result[f"ratio at {CLIENTS[-1]} clients, {number}"] = round(pair[0] / pair[1], 2)
    for name, server in servers.items():
        result[f"{name}, exit code at SIGTERM"] = server.end()
    return result


async def endure(model: str, requests: int, folder: Path) -> dict[str, Any]:
    command, rng = [*OURS, model, "--timeout", "600"], random.Random(0)
    server, codes, counts, resident = Server(command, folder / "log"), [], Counter[str](), []
    bodies = [{**question(number, ""), "max_tokens": 16} for number in range(50)]
    malformed = [b"", b"{", b"null", b'{"messages": []}', json.dumps({**bodies[0], "n": 2}).encode(), bytes(1000)]
    waiting = list(range(requests))[::-1]
    ready = asyncio.Event()
    ready.set()

    async def one() -> None:
        nonlocal server
        while waiting:
            number, kind = waiting.pop(), rng.random()
            await ready.wait()
            body = rng.choice(malformed) if kind < 0.05 else json.dumps(bodies[number % len(bodies)]).encode()
            headers, url = {"Content-Type": "application/json"}, f"{server.url}/v1/chat/completions"
            async with httpx.AsyncClient(timeout=0.05 if kind > 0.95 else 600) as client:
                try:
                    async with client.stream("POST", url, content=body, headers=headers) as answer:
                        try:
                            whole = json.loads(await answer.aread())
                        except (httpx.HTTPError, ValueError):
                            whole = None
                            counts["lost"] += answer.status_code == 200 and kind <= 0.95
                        if answer.status_code == 200 and whole and whole["choices"][0]["message"]["content"]:
                            counts["answered 200"] += 1
                        elif kind < 0.05 and answer.status_code == 400:
                            counts["malformed, 400"] += 1
                        else:
                            counts[f"other, {answer.status_code}"] += 1
                except httpx.TimeoutException:
                    counts["cut"] += 1
                except httpx.TransportError:  # refused while the server ends; asked again of the next one
                    counts["asked again"] += 1
                    waiting.append(number)
                    await asyncio.sleep(0.5)
            if number % (requests // 10) == 0:
                resident.append(round(server.resident_mb))
                print(f"{number}: {resident[-1]} MB, {dict(counts)}", file=sys.stderr, flush=True)
            if number == requests // 2:
                ready.clear()
                codes.append(await asyncio.to_thread(server.end))
                server = await asyncio.to_thread(Server, command, folder / "log")
                ready.set()

    await asyncio.gather(*(one() for _ in range(16)))
    health = httpx.get(f"{server.url}/healthz", timeout=60).json()["status"]
    codes.append(await asyncio.to_thread(server.end))
    return {**counts, "lost": counts["lost"], "health": health, "exit codes": codes, "resident MB": resident}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ASSETS / "nano"), help="a folder that transformers loads")
    parser.add_argument("--requests", type=int, default=48, help="of a loop; a quarter with one client")
    parser.add_argument("--rate", type=float, help="of the open loop (default: what transformers serve reached)")
    parser.add_argument("--endurance", type=int, metavar="REQUESTS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.endurance:
            result = asyncio.run(endure(arguments.model, arguments.endurance, folder))
        else:
            result = measure(arguments.model, arguments.requests, arguments.rate, folder)
        print(
            (folder / "log").read_text()[-2000:] if "Traceback" in (folder / "log").read_text() else "", file=sys.stderr
        )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
