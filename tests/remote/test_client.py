"""The client for remote models: what reaches the provider, what is retried, what is never asked twice."""

import asyncio
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from api_server import one_point, serving

from trace_vlm.remote import client as remote_client
from trace_vlm.remote import cost, providers
from trace_vlm.remote.client import Client, Completion, Failure, Limits, Picture, Reply, Request, RequestFailed
from trace_vlm.remote.flags import server_address
from trace_vlm.remote.providers import OpenAIChat, Options
from trace_vlm.utils.command import InputError

pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    return tmp_path / "cache.jsonl"


class Scripted:
    """A provider inside the process: `script` returns the text or raises, for each request."""

    model, address = "scripted", "the script"

    def __init__(self, script=lambda request: "fine"):
        self.script, self.calls, self.http_errors = script, [], Counter()

    async def send(self, request, picture):
        self.calls.append((request.item, request.attempt))
        await asyncio.sleep(0)
        return Completion(self.script(request), "stop", 10, 5)

    async def close(self): ...


def requests(count):
    return [Request(f"i{number}", "v1", f"question {number}") for number in range(count)]


def chat(server, protocol="openai", options=None, path="v1", **limits):
    return OpenAIChat(protocol, "m", f"{server.url}/{path}", options or Options(), **limits)


def ask(provider, cache, asked, limits=None, follow_up=None):
    """Return the replies and failures, and the client's figures."""

    async def everything():
        try:
            return [result async for result in client.ask(asked, follow_up)]
        finally:
            await provider.close()

    with Client(provider, cache, limits or Limits(concurrency=16)) as client:
        return asyncio.run(everything()), client.figures


@pytest.mark.parametrize("protocol", ["gemini", "openai"])
def test_the_whole_request_is_sent_and_its_answer_comes_back(protocol, cache):
    picture = Picture(b"\xff\xd8 not really a jpeg")
    request = Request("a", "v1", "Where?", "Be brief.", lambda: picture, "a.jpg", SCHEMA)
    options = Options(temperature=0.25, max_new_tokens=99, seed=7, thinking_budget=0)
    with serving(answer=one_point, key="secret") as server:
        (reply,), figures = ask(chat(server, protocol, options), cache, [request])
    (asked,) = server.asked
    assert (asked.model, asked.system, asked.text, asked.images) == ("m", "Be brief.", "Where?", (picture.data,))
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    gemini = {"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}
    own = gemini if protocol == "gemini" else {"seed": 7}  # Gemini rejects a seed, others know no thinking budget
    rest = {name: value for name, value in asked.body.items() if name not in ("model", "messages")}
    assert rest == {"temperature": 0.25, "max_tokens": 99, "response_format": schema} | own
    assert reply.completion == Completion(one_point(asked), "stop", 261, len(one_point(asked)) // 4)
    assert (figures.tokens_in, figures.tokens_out) == (261, reply.completion.tokens_out)


def test_errors_that_may_pass_are_retried_and_the_others_fail_alone(cache):
    faults = {"429": 0.1, "500": 0.1, "cut": 0.05, "malformed": 0.05}
    with serving(answer=one_point, faults=faults, seed=3) as server:
        results, figures = ask(chat(server), cache, requests(80))
    seen = Counter(record["fault"] for record in server.records)
    assert set(seen) == {"none", *faults}, "the server did not misbehave in every way"
    failed = [result for result in results if isinstance(result, Failure)]
    assert len(results) == 80 and len(failed) == seen["malformed"]
    assert figures.responses == seen["none"] == 80 - len(failed)
    assert figures.http_errors == {"HTTP 429": seen["429"], "HTTP 500": seen["500"]}


def test_broken_slow_and_absent_servers_are_given_up(cache):
    with serving(answer=one_point, faults={"500": 1.0}) as server:
        results, figures = ask(chat(server, tries=3), cache, requests(2))
        assert [result.reason for result in results] == ["HTTP 500"] * 2 and len(server.records) == 6
    with serving(answer=one_point, faults={"slow": 1.0}) as server:
        (failure,), _ = ask(chat(server, timeout=0.2, tries=1), cache, requests(1))
    assert failure.reason.startswith("connection")
    absent = OpenAIChat("openai", "m", "http://127.0.0.1:9/v1", Options(), tries=1)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/v1"):
        ask(absent, cache, requests(100), Limits(concurrency=4, give_up=5))


@pytest.mark.parametrize("protocol", ["gemini", "openai"])
def test_a_wrong_or_missing_key_and_an_unknown_model_stop_at_once(protocol, cache, monkeypatch):
    with serving(key="another") as server:
        with pytest.raises(InputError, match=rf"{protocol.upper()}_API_KEY.*Bearer \*\*\*") as caught:
            ask(chat(server, protocol), cache, requests(50))
        assert "secret" not in str(caught.value)
        server.key = None
        with pytest.raises(InputError, match="'m'"):
            ask(chat(server, protocol, path="elsewhere"), cache, requests(2))
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"{protocol.upper()}_API_KEY"):
        OpenAIChat(protocol, "m", None, Options())


@pytest.mark.parametrize("address", ["http://me:secret@localhost/v1", "https://localhost/v1?key=secret"])
def test_an_address_with_a_key_is_refused_and_not_repeated(address):
    with pytest.raises(InputError, match="environment") as caught:
        server_address("openai", address)
    assert "secret" not in str(caught.value)


def test_a_local_server_needs_the_sdk_but_no_key_and_gemini_has_its_own_endpoint(cache, monkeypatch):
    with serving(answer=one_point) as server:
        monkeypatch.setattr(providers, "GEMINI_ADDRESS", f"{server.url}/v1beta/openai/")
        (gemini,), _ = ask(OpenAIChat("gemini", "m", None, Options()), cache, requests(1))
        monkeypatch.delenv("OPENAI_API_KEY")
        (local,), _ = ask(chat(server), cache.with_name("local.jsonl"), requests(1))
    assert isinstance(gemini, Reply) and isinstance(local, Reply) and not local.cached
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"trace-vlm\[reason\]"):
        chat(server)


def test_what_was_answered_is_never_asked_again(cache):
    ask(Scripted(lambda request: request.text), cache, requests(30))
    results, figures = ask(second := Scripted(lambda request: "other"), cache, requests(40))
    assert sorted(second.calls) == sorted((f"i{number}", 1) for number in range(30, 40))
    assert (figures.cached, figures.responses) == (30, 10)
    (seventh,) = (result for result in results if result.request.item == "i7")
    assert seventh.cached and seventh.completion.text == "question 7"


def test_a_changed_request_is_asked(cache):
    provider, (request,) = Scripted(), requests(1)
    for change in ({}, {"version": "v2"}, {"text": "?"}, {"picture_name": "b.png"}, {"attempt": 2}, {"item": "i1"}):
        ask(provider, cache, [replace(request, **change)])
    provider.model = "another"
    ask(provider, cache, [request])
    assert len(provider.calls) == 7


def test_half_a_line_and_removed_responses_are_asked_again(cache):
    ask(Scripted(), cache, requests(3))
    cache.write_bytes(cache.read_bytes()[:-20])
    ask(provider := Scripted(), cache, requests(3))
    assert len(provider.calls) == 1 and len(cache.read_text().splitlines()) == 3
    remote_client.remove_cached(cache, {requests(3)[1].key("scripted")})
    ask(provider, cache, requests(3))
    assert provider.calls[1:] == [("i1", 1)]


def test_a_file_that_is_no_cache_is_refused_and_kept(cache):
    with Client(Scripted(), cache), pytest.raises(InputError):  # one process at a time has it
        Client(Scripted(), cache)
    record = '{"key": "zz", "text": "", "finish": "", "tokens_in": 0, "tokens_out": 0}\n'  # no key of a request
    for line in ('{"question_id": 1, "text": "x"}\n', record):
        cache.write_text(line)
        with pytest.raises(InputError, match=r"cache\.jsonl, line 1"):
            Client(Scripted(), cache)
        assert cache.read_text() == line


def test_a_follow_up_is_asked_until_the_answer_is_accepted(cache):
    def follow_up(request, completion):
        if completion.text != "good":
            return Request(request.item, "v1", f"{request.text} (not {completion.text})", attempt=request.attempt + 1)

    provider = Scripted(lambda request: "good" if request.attempt == 3 else f"bad {request.attempt}")
    results, figures = ask(provider, cache, requests(5), follow_up=follow_up)
    assert [result.completion.text for result in results] == ["good"] * 5
    assert all(result.request.text.endswith("(not bad 1) (not bad 2)") for result in results)
    assert figures.responses == 15


def test_a_refusal_and_an_unreadable_image_fail_alone(cache):
    def script(request):
        if request.item == "i1":
            raise RequestFailed("too large")
        return "fine"

    def missing():
        raise InputError("x.png does not exist")

    asked = [*requests(3), Request("i9", "v1", "?", picture=missing)]
    results, _ = ask(Scripted(script), cache, asked, Limits(give_up=1))
    failed = {result.request.item: result.reason for result in results if isinstance(result, Failure)}
    assert failed == {"i1": "too large", "i9": "x.png does not exist"}
    assert len(cache.read_text().splitlines()) == 2, "failures are not cached"


def test_concurrency_is_limited_and_requests_are_drawn_as_they_are_needed(cache):
    running, most, drawn = 0, 0, []

    class Counting(Scripted):
        async def send(self, request, picture):
            nonlocal running, most
            running += 1
            most = max(most, running)
            completion = await super().send(request, picture)
            running -= 1
            return completion

    async def ask_fifty(client):
        results = client.ask(drawn.append(request) or request for request in requests(10_000))
        for _ in range(50):
            await anext(results)
        await results.aclose()

    with Client(Counting(), cache, Limits(concurrency=7)) as client:
        asyncio.run(ask_fifty(client))
    assert most == 7 and len(drawn) <= 50 + 3 * 7


def test_requests_wait_for_the_rate_limit_after_a_burst(cache):
    now = 0.0
    bucket = remote_client.TokenBucket(120, clock=lambda: now)  # two a second
    assert [bucket.take() for _ in range(6)] == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])
    now = 10.0
    assert [bucket.take() for _ in range(3)] == pytest.approx([0, 0, 0.5]), "no more than a second's worth is saved up"
    assert bucket.take(10) == pytest.approx(5.5)
    # a burst of 40, then 40 a second
    _, figures = ask(Scripted(), cache, requests(60), Limits(concurrency=8, requests_per_minute=60 * 40))
    assert figures.seconds > 0.45
    with pytest.raises(InputError, match="tokens_per_minute"):
        ask(Scripted(), cache.with_name("other"), requests(2), Limits(tokens_per_minute=1))


def test_tokens_of_an_image_are_the_published_ones():
    gemini, openai = {(336, 336): 258, (385, 384): 258}, {(336, 336): 255, (1024, 1024): 765, (2048, 4096): 1105}
    for provider, expected in (("gemini", gemini | {(1024, 768): 516}), ("openai", openai)):
        assert {size: cost.image_tokens(provider, *size) for size in expected} == expected


def test_prices_are_never_invented_and_time_is_the_slower_of_both_limits(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text('prices: [{model: m, input: 2.0, output: 10.0, as_of: "2026-01-01", source: here}]')
    assert cost.dollars(cost.find_price("m", path, (None, None)), 1_000_000, 100_000) == pytest.approx(3.0)
    assert cost.find_price("another", path, (None, None)) is None
    assert cost.dollars(cost.find_price("m", path, (1.0, 1.5)), 10**6, 10**6) == pytest.approx(2.5)
    with pytest.raises(InputError, match="--price-out"):
        cost.find_price("m", path, (1.0, None))
    shipped = cost.find_price("gemini-2.5-flash", Path(__file__).parents[2] / cost.PRICES, (None, None))
    assert shipped.as_of and shipped.source
    amounts = (3600, 10, 10.0, None), (3600, 10, 10.0, 30), (3, 32, 36.0, None)  # no answer comes sooner than one takes
    assert [cost.hours(*amount) for amount in amounts] == pytest.approx([1.0, 2.0, 0.01])
