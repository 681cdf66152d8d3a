"""Several processes that send for one client: nothing is lost, errors arrive as they are, none outlives its client."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from api_server import one_point, serving
from crew_provider import Here, make_wrong
from parallel_workers import HOW

from trace_vlm.core.points import Point
from trace_vlm.data.cor import remote
from trace_vlm.remote.client import Client, Failure, Limits, Reply, Request, Transient
from trace_vlm.remote.crew import Crew
from trace_vlm.remote.providers import Options, make_provider
from trace_vlm.utils.command import InputError

pytest.importorskip("tenacity", reason="pip install 'trace-vlm[reason]'")

FAST = Limits(concurrency=16, timeout=2.0, tries=12, first_wait=0.005, longest_wait=0.02)


def drawing(path: Path):
    return partial(remote._picture, path, (Point(0.5, 0.5),), 64)


def ask(crew, cache, asked, limits=FAST):
    async def everything():
        try:
            return [result async for result in client.ask(asked)]
        finally:
            await crew.close()

    with Client(crew, cache, limits) as client:
        return asyncio.run(everything()), client.figures


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pids_of(crew):
    return [worker.process.pid for worker in crew._pool._workers]


@pytest.fixture
def crew():
    return Crew(Here, "m", "here", 2)


def test_all_processes_work_each_image_goes_to_one_and_pictures_are_made_there(tmp_path, crew):
    from PIL import Image

    for name in range(40):
        Image.new("RGB", (48, 32), "gray").save(tmp_path / f"{name}.png")
    asked = [
        Request(f"i{number}", "v", "?", picture=drawing(tmp_path / f"{number // 5}.png"), picture_name=str(number // 5))
        for number in range(200)
    ]
    results, figures = ask(crew, tmp_path / "cache.jsonl", asked, Limits(concurrency=4))
    assert figures.responses == len(results) == 200
    said = {result.request.item: result.completion.text.split() for result in results}
    assert len({pid for pid, _ in said.values()}) == 2 and os.getpid() not in {int(pid) for pid, _ in said.values()}
    assert all(int(size) > 300 for _, size in said.values()), "a JPEG each"
    homes = Counter(len({said[f"i{5 * image + n}"][0] for n in range(5)}) for image in range(40))
    assert homes[1] >= 36, "samples of one image are sent from where it was decoded"


def test_errors_arrive_as_they_were_raised(tmp_path, crew):
    asked = [Request("a", "v", "refused"), Request("b", "v", "?", picture=drawing(tmp_path / "gone.png"))]
    results, _ = ask(crew, tmp_path / "cache.jsonl", asked)
    reasons = {result.request.item: result.reason for result in results if isinstance(result, Failure)}
    assert reasons["a"] == "refused with HTTP 400: too large" and "gone.png does not exist" in reasons["b"]


def test_a_wait_that_was_asked_for_arrives_too(crew):
    async def one():
        with pytest.raises(Transient) as caught:
            await crew.send(Request("a", "v", "transient"), None)
        await crew.close()
        return caught.value

    error = asyncio.run(one())
    assert (str(error), error.wait) == ("HTTP 429", 0.5)


@pytest.mark.parametrize(
    "text,error,words",
    [
        ("input", InputError, "the key is wrong"),
        ("defect", ZeroDivisionError, "a defect"),
    ],
)
def test_what_no_request_can_survive_ends_the_run(tmp_path, crew, text, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        ask(crew, tmp_path / "cache.jsonl", [Request(f"i{n}", "v", text) for n in range(20)])


def test_a_request_that_is_given_up_is_given_up_in_its_process(tmp_path, crew):
    (pid,) = pids_of(crew)[:1]
    limits = Limits(concurrency=1, timeout=0.2, tries=2, first_wait=0.001, longest_wait=0.002)
    (failure,), figures = ask(crew, tmp_path / "cache.jsonl", [Request("a", "v", "slow")], limits)
    assert failure.reason == "no whole answer in time, 2 times" and figures.requests == 2
    assert gone(pid), "it ends, whatever it was waiting for"


def test_a_process_that_cannot_begin_says_why():
    with pytest.raises(InputError, match="no key here"):
        Crew(make_wrong, "m", "here", 2)


@pytest.mark.parametrize("how", HOW)
def test_a_request_that_ends_its_process_costs_no_other(how, tmp_path, crew):
    asked = [Request(f"i{number}", "v", how if number == 7 else "?") for number in range(40)]
    results, figures = ask(crew, tmp_path / "cache.jsonl", asked, Limits(concurrency=4, tries=1))
    (failure,) = [result for result in results if isinstance(result, Failure)]
    assert failure.request.item == "i7" and len(results) == 40 and figures.responses == 39
    assert failure.reason == f"its worker process ended 3 times, the last time by {HOW[how]}"
    assert crew.given_up == {"i7": failure.reason}


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_a_crew_survives_every_misbehaviour_of_a_server(name, tmp_path, monkeypatch):
    pytest.importorskip("google.genai", reason="pip install 'trace-vlm[reason]'")
    pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "secret")
    faults = {"429": 0.1, "500": 0.1, "slow": 0.02, "cut": 0.1, "malformed": 0.1}
    asked = [Request(f"i{number}", "v1", f"question {number}") for number in range(80)]
    with serving(answer=one_point, faults=faults, seed=3) as server:
        url = server.url if name == "gemini" else f"{server.url}/v1"
        crew = Crew(partial(make_provider, name, "m", url, Options(), 16), "m", url, 2)
        pids = pids_of(crew)
        results, figures = ask(crew, tmp_path / "cache.jsonl", asked)
        seen = Counter(record["fault"] for record in server.records)
    assert all(isinstance(result, Reply) for result in results) and len(results) == 80
    assert set(seen) == {"none", *faults} and figures.requests == seen.total() and figures.responses == 80
    assert "HTTP 429" in figures.retries and "no whole answer in time" in figures.retries
    assert all(map(gone, pids))
