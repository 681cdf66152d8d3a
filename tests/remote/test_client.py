"""The client for remote models: what reaches the provider, what is retried, what is never asked twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from api_server import one_point, serving

from trace_vlm.remote import cost, providers
from trace_vlm.remote.client import (
    Client,
    Completion,
    Failure,
    FollowUp,
    Limits,
    Picture,
    Reply,
    Request,
    RequestFailed,
    TokenBucket,
    remove_cached,
)  # fmt: skip
from trace_vlm.remote.providers import OpenAIChat, Options
from trace_vlm.utils.command import InputError

pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

ROOT = Path(__file__).parents[2]
PROTOCOLS = pytest.mark.parametrize("protocol", ["gemini", "openai"])
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


class Scripted:
    """A provider inside the process: `script` returns a Completion or raises, for each request."""

    model, address = "scripted", "the script"

    def __init__(self, script: Callable[[Request], Completion]) -> None:
        self.script, self.calls, self.http_errors = script, [], Counter()

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        self.calls.append((request.item, request.attempt))
        await asyncio.sleep(0)
        return self.script(request)

    async def close(self) -> None: ...


def done(text: str = "fine") -> Completion:
    return Completion(text, "stop", 10, 5)


def accepting() -> Scripted:
    return Scripted(lambda request: done())


def requests(count: int) -> list[Request]:
    return [Request(f"i{number}", "v1", f"question {number}") for number in range(count)]


def ask(
    provider: Any,
    cache: Path,
    asked: Iterable[Request],
    limits: Limits | None = None,
    follow_up: FollowUp | None = None,
) -> tuple[list[Reply | Failure], Any]:
    async def everything() -> list[Reply | Failure]:
        try:
            return [result async for result in client.ask(asked, follow_up)]
        finally:
            await provider.close()

    with Client(provider, cache, limits or Limits(concurrency=16)) as client:
        return asyncio.run(everything()), client.figures


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache.jsonl"


# --- the protocol -----------------------------------------------------------------------------------------------------


@PROTOCOLS
def test_the_whole_request_is_sent_and_its_answer_comes_back(protocol, cache):
    picture = Picture(b"\xff\xd8 not really a jpeg")
    request = Request("a", "v1", "Where?", "Be brief.", lambda: picture, "a.jpg", SCHEMA)
    options = Options(temperature=0.25, max_output_tokens=99, seed=7, thinking_budget=0)
    with serving(answer=one_point, key="secret", keep=True) as server:
        (reply,), figures = ask(OpenAIChat(protocol, "m", f"{server.url}/v1", options), cache, [request])
        (asked,) = server.asked
    assert (asked.model, asked.system, asked.text, asked.images) == ("m", "Be brief.", "Where?", (picture.data,))
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    own = {  # Gemini's endpoint rejects a seed, others know no thinking budget
        "gemini": {"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}},
        "openai": {"seed": 7},
    }
    rest = {name: value for name, value in asked.body.items() if name not in ("model", "messages")}
    assert rest == {"temperature": 0.25, "max_tokens": 99, "response_format": schema} | own[protocol]
    assert reply.completion == Completion(one_point(asked), "stop", 261, len(one_point(asked)) // 4)
    assert (figures.tokens_in, figures.tokens_out) == (261, reply.completion.tokens_out)


def test_errors_that_may_pass_are_retried_and_the_others_fail_alone(cache):
    faults = {"429": 0.1, "500": 0.1, "cut": 0.05, "malformed": 0.05}
    with serving(answer=one_point, faults=faults, seed=3) as server:
        results, figures = ask(OpenAIChat("openai", "m", f"{server.url}/v1", Options()), cache, requests(80))
        seen = Counter(record["fault"] for record in server.records)
    assert set(seen) == {"none", *faults}, "the server did not misbehave in every way"
    failed = [result for result in results if isinstance(result, Failure)]
    assert len(results) == 80 and len(failed) == seen["malformed"]
    assert figures.responses == seen["none"] == 80 - len(failed)
    assert figures.http_errors == {"HTTP 429": seen["429"], "HTTP 500": seen["500"]}


def test_a_request_is_tried_as_often_as_asked_and_a_slow_server_is_given_up(cache):
    with serving(answer=one_point, faults={"500": 1.0}) as server:
        provider = OpenAIChat("openai", "m", f"{server.url}/v1", Options(), tries=3)
        results, figures = ask(provider, cache, requests(2))
        assert [result.reason for result in results] == ["HTTP 500"] * 2 and len(server.records) == 6
    with serving(answer=one_point, faults={"slow": 1.0}) as server:
        provider = OpenAIChat("openai", "m", f"{server.url}/v1", Options(), timeout=0.2, tries=1)
        (failure,), _ = ask(provider, cache, requests(1))
    assert failure.reason.startswith("connection")


@PROTOCOLS
def test_a_wrong_key_and_an_unknown_model_stop_at_once(protocol, cache, monkeypatch):
    with serving(key="another") as server:
        provider = OpenAIChat(protocol, "m", f"{server.url}/v1", Options())
        with pytest.raises(InputError, match=f"{protocol.upper()}_API_KEY"):
            ask(provider, cache, requests(50))
        server.key = None
        monkeypatch.setattr("api_server._read", lambda path, body: None)
        with pytest.raises(InputError, match="'m'"):
            ask(OpenAIChat(protocol, "m", f"{server.url}/elsewhere", Options()), cache, requests(2))


@PROTOCOLS
def test_a_missing_key_is_named_and_a_local_server_needs_none(protocol, cache, monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"{protocol.upper()}_API_KEY"):
        OpenAIChat(protocol, "m", None, Options())
    with serving(answer=one_point) as server:
        (reply,), _ = ask(OpenAIChat("openai", "m", f"{server.url}/v1", Options()), cache, requests(1))
    assert isinstance(reply, Reply)


def test_gemini_is_asked_at_its_compatible_endpoint(cache, monkeypatch):
    with serving(answer=one_point) as server:
        monkeypatch.setattr(providers, "GEMINI_ADDRESS", f"{server.url}/v1beta/openai/")
        (reply,), _ = ask(OpenAIChat("gemini", "m", None, Options()), cache, requests(1))
    assert isinstance(reply, Reply)


def test_without_the_sdk_the_error_says_how_to_install_it():
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from trace_vlm.remote.providers import OpenAIChat, Options\n"
        "from trace_vlm.utils.command import InputError\n"
        "try: OpenAIChat('gemini', 'm', None, Options())\n"
        "except InputError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "trace-vlm[reason]" in printed and printed.count("\n") == 1


def test_a_server_that_is_not_there_stops_the_run(cache):
    provider = OpenAIChat("openai", "m", "http://127.0.0.1:9/v1", Options(), tries=1)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/v1"):
        ask(provider, cache, requests(100), Limits(concurrency=4, give_up=5))


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_never_asked_again(cache):
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
def test_a_changed_request_is_asked(cache, changed):
    provider = accepting()
    ask(provider, cache, requests(1))
    ask(provider, cache, [changed])
    provider.model = "another"
    ask(provider, cache, [changed])
    assert len(provider.calls) == 3


def test_half_a_line_at_the_end_is_cut_and_its_request_repeated(cache):
    ask(accepting(), cache, requests(3))
    cache.write_bytes(cache.read_bytes()[:-20])
    provider = accepting()
    results, _ = ask(provider, cache, requests(3))
    assert len(provider.calls) == 1 and len(results) == 3
    assert len(cache.read_text().splitlines()) == 3


def test_removed_responses_are_asked_again(cache):
    ask(accepting(), cache, requests(3))
    remove_cached(cache, {requests(3)[1].key("scripted")})
    provider = accepting()
    ask(provider, cache, requests(3))
    assert provider.calls == [("i1", 1)]


@pytest.mark.parametrize(
    "line", [{"question_id": 1, "text": "x"}, {"key": "zz", "text": "", "finish": "", "tokens_in": 0, "tokens_out": 0}]
)
def test_a_file_that_is_no_cache_is_refused_and_kept(cache, line):
    cache.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"cache\.jsonl, line 1"):
        Client(accepting(), cache)
    assert json.loads(cache.read_text()) == line


def test_one_process_at_a_time_has_the_cache(cache):
    with Client(accepting(), cache), pytest.raises(InputError, match="another process"):
        Client(accepting(), cache)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_follow_up_is_asked_until_the_answer_is_accepted(cache):
    def follow_up(request, completion):
        if completion.text == "good":
            return None
        return Request(request.item, "v1", f"{request.text} (not {completion.text})", attempt=request.attempt + 1)

    provider = Scripted(lambda request: done("good" if request.attempt == 3 else f"bad {request.attempt}"))
    results, figures = ask(provider, cache, requests(5), follow_up=follow_up)
    assert [result.completion.text for result in results] == ["good"] * 5
    assert all(result.request.text.endswith("(not bad 1) (not bad 2)") for result in results)
    assert figures.responses == 15


def test_a_refusal_and_an_unreadable_image_fail_alone(cache):
    def script(request):
        if request.item == "i1":
            raise RequestFailed("too large")
        return done()

    def missing():
        raise InputError("x.png does not exist")

    asked = [*requests(3), Request("i9", "v1", "?", picture=missing)]
    results, _ = ask(Scripted(script), cache, asked, Limits(give_up=1))
    failed = {result.request.item: result.reason for result in results if isinstance(result, Failure)}
    assert failed == {"i1": "too large", "i9": "x.png does not exist"}
    assert len(cache.read_text().splitlines()) == 2, "failures are not cached"


def test_concurrency_is_limited_and_requests_are_drawn_as_they_are_needed(cache):
    running, most, drawn = 0, 0, 0

    class Counting(Scripted):
        async def send(self, request, picture):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
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

    with Client(Counting(done), cache, Limits(concurrency=7)) as client:
        ahead = asyncio.run(a_few(client)) - 50
    assert most == 7 and ahead <= 3 * 7


def test_the_token_bucket_keeps_the_rate_after_a_burst():
    now = 0.0
    bucket = TokenBucket(120, clock=lambda: now)  # two a second
    assert [bucket.take() for _ in range(6)] == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])
    now = 10.0
    assert [bucket.take() for _ in range(3)] == pytest.approx([0, 0, 0.5]), "no more than a second's worth is saved up"
    assert bucket.take(10) == pytest.approx(5.5)


def test_requests_wait_for_the_rate_limit(cache):
    limits = Limits(concurrency=8, requests_per_minute=60 * 40)  # a burst of 40, then 40 a second
    _, figures = ask(accepting(), cache, requests(60), limits)
    assert figures.seconds > 0.45
    with pytest.raises(InputError, match="tokens_per_minute"):
        ask(accepting(), cache.with_name("other"), requests(2), Limits(tokens_per_minute=1))


# --- tokens and money -------------------------------------------------------------------------------------------------


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
    assert price is not None and cost.dollars(price, 1_000_000, 100_000) == pytest.approx(3.0)
    assert cost.find_price("another", path, (None, None)) is None
    given = cost.find_price("m", path, (1.0, 1.5))
    assert given is not None and (given.input, given.output) == (1.0, 1.5)
    with pytest.raises(InputError, match="--price-out"):
        cost.find_price("m", path, (1.0, None))
    shipped = cost.find_price("gemini-2.5-flash", ROOT / cost.PRICES, (None, None))
    assert shipped is not None and shipped.as_of and shipped.source


def test_time_is_the_slower_of_both_limits():
    assert cost.hours(3600, 10, 10.0, None) == pytest.approx(1.0)
    assert cost.hours(3600, 10, 10.0, 30) == pytest.approx(2.0)
    assert cost.hours(3, 32, 36.0, None) == pytest.approx(0.01), "no answer comes sooner than one takes"
