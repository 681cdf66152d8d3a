"""The client for remote models: what reaches the provider, what is tried again, what is never asked twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from api_server import SORRY, one_point, serving

from trace_vlm.remote import cost
from trace_vlm.remote.client import (
    Client,
    Completion,
    Failure,
    Limits,
    Picture,
    Refused,
    Reply,
    Request,
    TokenBucket,
    Transient,
)
from trace_vlm.remote.providers import Options, make_provider
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import JsonlIndex, hash_key

pytest.importorskip("google.genai", reason="pip install 'trace-vlm[reason]'")
pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

FAST = Limits(concurrency=16, timeout=1.0, tries=12, first_wait=0.005, longest_wait=0.02)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


class Scripted:
    """A provider inside the process: `script` gives a Completion or raises, for each request."""

    model, place = "scripted", "the script"

    def __init__(self, script):
        self.script, self.calls = script, []

    async def send(self, request, picture):
        self.calls.append((request.item, request.attempt))
        await asyncio.sleep(0)
        return self.script(request)

    async def close(self): ...


def done(text="fine"):
    return Completion(text, "stop", 10, 5)


def requests(count, version="v1"):
    return [Request(f"i{number}", version, f"question {number}") for number in range(count)]


def ask(provider, cache, asked, limits=FAST, again=None):
    async def everything():
        try:
            return [result async for result in client.ask(asked, again)]
        finally:
            await provider.close()

    with Client(provider, cache, limits) as client:
        return asyncio.run(everything()), client.figures


def remote(name, server, options=None, model="m"):
    url = server.url if name == "gemini" else f"{server.url}/v1"
    return make_provider(name, model, url, options or Options(), 16)


# --- protocols ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_the_provider_gets_the_whole_request_and_its_answer_comes_back(name, tmp_path):
    picture = Picture(b"\xff\xd8 not really a jpeg")
    request = Request("a", "v1", "Where?", "Be brief.", lambda: picture, "a.jpg", SCHEMA)
    options = Options(temperature=0.25, max_output_tokens=99, seed=7)
    with serving(answer=one_point, key="secret", keep=True) as server:
        (reply,), figures = ask(remote(name, server, options), tmp_path / "cache.jsonl", [request])
        (asked,) = server.asked
    assert isinstance(reply, Reply) and reply.completion.text == one_point(asked)
    assert (asked.provider, asked.model, asked.system, asked.text) == (name, "m", "Be brief.", "Where?")
    assert asked.images == (picture.data,)
    said = json.dumps(asked.body)
    for wanted in ('"temperature": 0.25', "99", '"seed": 7', '"required": ["a"]'):
        assert wanted in said
    assert figures.tokens_in == reply.completion.tokens_in == (len("Be brief.") + len("Where?")) // 4 + 258
    assert reply.completion.finish == "stop" and figures.tokens_out == reply.completion.tokens_out > 0


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_every_misbehaviour_is_survived(name, tmp_path):
    faults = {"429": 0.1, "500": 0.1, "slow": 0.02, "cut": 0.1, "malformed": 0.1}
    with serving(answer=one_point, faults=faults, seed=3) as server:
        results, figures = ask(remote(name, server), tmp_path / "cache.jsonl", requests(80))
        seen = Counter(record["fault"] for record in server.records)
    assert all(isinstance(result, Reply) for result in results)
    assert sorted(result.request.item for result in results) == sorted(f"i{number}" for number in range(80))
    assert set(seen) == {"none", *faults}, "the server did not misbehave in every way"
    assert figures.requests == seen.total() and figures.responses == 80
    assert figures.retries.total() == figures.requests - 80
    reasons = " ".join(figures.retries)
    for said in ("HTTP 429", "HTTP 500", "no whole answer in time", "connection", "no valid JSON"):
        assert said in reasons


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_a_wrong_key_and_an_unknown_address_stop_at_once(name, tmp_path, monkeypatch):
    with serving(key="another") as server:
        with pytest.raises(InputError, match=rf"does not accept the key in {name.upper()}_API_KEY"):
            ask(remote(name, server), tmp_path / "cache.jsonl", requests(50))
        server.key, server.url = None, f"{server.url}/elsewhere"
        wrong = make_provider("openai", "m", server.url + "/elsewhere/v0", Options(), 4)
        monkeypatch.setattr("api_server._read", lambda path, body: None)
        with pytest.raises(InputError, match="does not know the model 'm'"):
            ask(wrong, tmp_path / "cache.jsonl", requests(2))


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_a_provider_without_a_key_names_the_variable(name, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(InputError, match=f"{name.upper()}_API_KEY is not set"):
        make_provider(name, "m", None, Options(), 4)


def test_a_server_of_ones_own_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(answer=one_point) as server:
        (reply,), _ = ask(remote("openai", server), tmp_path / "cache.jsonl", requests(1))
    assert isinstance(reply, Reply)


@pytest.mark.parametrize("name,module", [("gemini", "google.genai"), ("openai", "openai"), ("gemini", "tenacity")])
def test_without_the_extra_one_sentence_names_it(name, module):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from trace_vlm.remote.providers import Options, make_provider\n"
        "from trace_vlm.utils.command import InputError\n"
        f"try: make_provider({name!r}, 'm', 'http://localhost', Options(), 1)\n"
        "except InputError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--extras reason in a clone, or pip install 'trace-vlm[reason]'" in told and told.count("\n") == 1


@pytest.mark.parametrize("tries", [1, 3])
def test_only_what_was_asked_again_counts_as_tried_again(tries, tmp_path):
    limits = Limits(concurrency=2, tries=tries, first_wait=0.001, longest_wait=0.002)
    with serving(answer=one_point, faults={"500": 1.0}, seed=0) as server:
        results, figures = ask(remote("openai", server), tmp_path / "cache.jsonl", requests(3), limits)
    assert not any(isinstance(result, Reply) for result in results)
    assert figures.requests == 3 * tries and figures.retries.total() == 3 * (tries - 1)


def test_a_server_that_is_not_there_is_reported_once_and_stops_the_run(tmp_path):
    provider = make_provider("openai", "m", "http://127.0.0.1:9/v1", Options(), 4)
    limits = Limits(concurrency=4, tries=2, first_wait=0.001, longest_wait=0.002, give_up=5)
    with pytest.raises(
        InputError, match=r"127\.0\.0\.1:9/v1 did not answer 5 requests in a row .*run the command again"
    ):
        ask(provider, tmp_path / "cache.jsonl", requests(100), limits)


# --- the cache ------------------------------------------------------------------------------------


def test_what_was_answered_is_never_asked_again(tmp_path):
    cache = tmp_path / "cache.jsonl"
    first, second = Scripted(lambda request: done(request.text)), Scripted(lambda request: done("other"))
    ask(first, cache, requests(30))
    results, figures = ask(second, cache, requests(40))
    assert sorted(second.calls) == sorted((f"i{number}", 1) for number in range(30, 40))
    assert figures.cached == 30 and figures.responses == 10
    by_item = {result.request.item: result for result in results}
    assert by_item["i7"].cached and by_item["i7"].completion == done("question 7")


@pytest.mark.parametrize(
    "changed",
    [
        Request("i0", "v2", "question 0"),
        Request("i0", "v1", "another question"),
        Request("i0", "v1", "question 0", picture_name="b.png"),
        Request("i0", "v1", "question 0", attempt=2),
        Request("i1", "v1", "question 0"),
    ],
    ids=["version", "text", "picture", "attempt", "item"],
)
def test_a_changed_request_is_asked(tmp_path, changed):
    provider = Scripted(lambda request: done())
    ask(provider, tmp_path / "cache.jsonl", requests(1))
    ask(provider, tmp_path / "cache.jsonl", [changed])
    assert len(provider.calls) == 2


def test_another_model_is_asked(tmp_path):
    first, second = Scripted(lambda request: done()), Scripted(lambda request: done())
    second.model = "another"
    ask(first, tmp_path / "cache.jsonl", requests(1))
    ask(second, tmp_path / "cache.jsonl", requests(1))
    assert len(second.calls) == 1


def test_half_a_line_at_the_end_is_cut_and_its_request_repeated(tmp_path):
    cache = tmp_path / "cache.jsonl"
    ask(Scripted(lambda request: done()), cache, requests(3))
    cache.write_bytes(cache.read_bytes()[:-20])
    provider = Scripted(lambda request: done("again"))
    results, _ = ask(provider, cache, requests(3))
    assert len(provider.calls) == 1 and len(results) == 3
    assert len(cache.read_text().splitlines()) == 3


def test_a_file_that_is_no_cache_is_refused_and_kept(tmp_path):
    cache = tmp_path / "answers.jsonl"
    cache.write_text('{"question_id": 1, "text": "x"}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl, line 1 is no line of a response cache"):
        Client(Scripted(done), cache)
    assert cache.read_text() == '{"question_id": 1, "text": "x"}\n'


def test_one_process_at_a_time_has_the_cache(tmp_path):
    with Client(Scripted(done), tmp_path / "cache.jsonl"), pytest.raises(InputError, match="another process"):
        Client(Scripted(done), tmp_path / "cache.jsonl")


# --- asking ------------------------------------------------------------------------------------


def test_asked_again_until_the_answer_will_do(tmp_path):
    def again(request, completion):
        if completion.text == "good":
            return None
        return Request(request.item, "v1", f"{request.text} (not {completion.text})", attempt=request.attempt + 1)

    def script(request):
        return done("good" if request.attempt == 3 else f"bad {request.attempt}")

    results, figures = ask(Scripted(script), tmp_path / "cache.jsonl", requests(5), again=again)
    assert [result.completion.text for result in results] == ["good"] * 5
    assert all(result.request.text.endswith("(not bad 1) (not bad 2)") for result in results)
    assert figures.responses == 15


def test_a_refusal_and_an_unreadable_image_fail_alone(tmp_path):
    def script(request):
        if request.item == "i1":
            raise Refused("refused with HTTP 400: too large")
        return done()

    def missing():
        raise InputError("the image x.png does not exist")

    asked = [*requests(3), Request("i9", "v1", "?", picture=missing)]
    results, _ = ask(Scripted(script), tmp_path / "cache.jsonl", asked)
    failed = {result.request.item: result.reason for result in results if isinstance(result, Failure)}
    assert failed == {"i1": "refused with HTTP 400: too large", "i9": "the image x.png does not exist"}
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 2, "failures are not cached"


def test_tries_end_and_waits_follow_the_provider(tmp_path, monkeypatch):
    waits = []

    async def slept(seconds):
        waits.append(seconds)

    def script(request):
        raise Transient("HTTP 429", wait=7.5 if len(waits) == 1 else None)

    provider = Scripted(script)
    provider.send = lambda request, picture: asyncio.to_thread(script, request)  # does not use asyncio.sleep itself
    monkeypatch.setattr("asyncio.sleep", slept)
    limits = Limits(concurrency=1, tries=5, first_wait=1.0, longest_wait=4.0)
    (failure,), figures = ask(provider, tmp_path / "cache.jsonl", requests(1), limits)
    assert failure.reason == "HTTP 429, 5 times" and figures.requests == 5
    assert len(waits) == 4 and waits[1] == 7.5, "the provider's Retry-After is the least"
    assert all(0 <= wait <= bound for wait, bound in zip(waits[:1] + waits[2:], (1, 4, 4), strict=True))
    assert len(set(waits)) == 4, "jitter"


def test_no_more_than_so_many_at_a_time_and_memory_of_a_few_requests(tmp_path):
    running, most, drawn = 0, 0, 0

    class Counting(Scripted):
        async def send(self, request, picture):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return done()

    def endless():
        nonlocal drawn
        for number in range(10_000):
            drawn += 1
            yield Request(f"i{number}", "v1", "?")

    async def a_few(client):
        count = 0
        async for _ in client.ask(endless()):
            count += 1
            if count == 50:
                return drawn

    with Client(Counting(done), tmp_path / "cache.jsonl", Limits(concurrency=7)) as client:
        ahead = asyncio.run(a_few(client)) - 50
    assert most == 7 and ahead <= 3 * 7, "requests are drawn as they are needed"


def test_the_token_bucket_keeps_the_rate_after_a_burst():
    now = 0.0
    bucket = TokenBucket(120, clock=lambda: now)  # two a second
    waits = [bucket.take() for _ in range(6)]
    assert waits == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])
    now = 10.0
    assert [bucket.take() for _ in range(3)] == pytest.approx([0, 0, 0.5]), "no more than a second's worth is saved up"
    assert bucket.take(10) == pytest.approx(5.5)


def test_the_rate_limit_holds_in_a_run(tmp_path):
    limits = Limits(concurrency=8, requests_per_minute=60 * 40)  # a burst of 40, then 40 a second
    _, figures = ask(Scripted(lambda request: done()), tmp_path / "cache.jsonl", requests(60), limits)
    assert figures.seconds > 0.45


def test_a_limit_below_one_request_stops_instead_of_waiting(tmp_path):
    with pytest.raises(InputError, match="tokens_per_minute: 1 is less than one request takes"):
        ask(Scripted(lambda request: done()), tmp_path / "cache.jsonl", requests(2), Limits(tokens_per_minute=1))


# --- tokens and money ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provider,size,tokens",
    [
        ("gemini", (336, 336), 258),
        ("gemini", (385, 384), 258),
        ("gemini", (1024, 768), 516),
        ("openai", (336, 336), 255),
        ("openai", (1024, 1024), 765),
        ("openai", (2048, 4096), 1105),
    ],
)
def test_tokens_of_an_image_are_the_published_ones(provider, size, tokens):
    assert cost.image_tokens(provider, *size) == tokens


def test_prices_come_from_flags_or_a_file_and_are_never_invented(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text('prices: [{model: m, input: 2.0, output: 10.0, as_of: "2026-01-01", source: here}]')
    price = cost.find_price("m", path, (None, None))
    assert cost.dollars(price, 1_000_000, 100_000) == pytest.approx(3.0)
    assert cost.find_price("another", path, (None, None)) is None
    assert cost.find_price("m", path, (1.0, 1.0)).source == "the command line"
    with pytest.raises(InputError, match="belong together"):
        cost.find_price("m", path, (1.0, None))


def test_the_shipped_prices_can_be_read():
    path = Path(__file__).parents[1] / cost.PRICES
    price = cost.find_price("gemini-2.5-flash", path, (None, None))
    assert price is not None and price.as_of and price.source


def test_time_is_the_slower_of_both_limits():
    assert cost.hours(3600, 10, 10.0, None) == pytest.approx(1.0)
    assert cost.hours(3600, 10, 10.0, 30) == pytest.approx(2.0)
    assert cost.hours(3, 32, 36.0, None) == pytest.approx(0.01), "no answer comes sooner than one takes"


# --- lookup ------------------------------------------------------------------------------------


def test_lookup_finds_records_by_key_over_blank_lines_and_a_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "n": 1}\n\n{"id": "b", "n": 2}\n{"id": "a", "n": 3}\n{"id": "c", "n')
    with JsonlIndex(path, lambda record, where: hash_key(record["id"])) as lookup:
        assert len(lookup) == 2
        assert lookup.get(hash_key("a")) == {"id": "a", "n": 3}
        assert lookup.get(hash_key("b")) == {"id": "b", "n": 2}
        assert lookup.get(hash_key("c")) is None


def test_the_server_s_wrong_answers_are_whole_ones(tmp_path):
    with serving(faults={"wrong": 1.0}) as server:
        (reply,), _ = ask(remote("gemini", server), tmp_path / "cache.jsonl", requests(1))
        assert server.records[0]["completed"]
    assert reply.completion.text == SORRY
