"""One asynchronous client for remote models: rate limit, append-only cache, concurrency, figures.

    client = Client(provider, cache=OUT.cache.jsonl, limits=Limits(concurrency=32))
    async for reply in client.ask(requests): ...

A complete response is appended to the cache, on disk, before it counts, and is never asked for again: a run that was
killed repeats at most the requests that were in flight. Requests are drawn one at a time, so memory stays constant.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..utils.command import InputError
from ..utils.files import JsonlWriter, read_jsonl, write_jsonl
from ..utils.jsonl_index import JsonlIndex, hash_key
from .cost import text_tokens


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is sent, inline."""

    data: bytes
    mime: str = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model."""

    item: str  # what is asked about; with `version`, the model and `attempt` it names the request in the cache
    version: str  # stands for the wording of the prompt and for the options and the server that shape the answer
    text: str
    system: str = ""
    picture: Callable[[], Picture] | None = None  # makes the picture when the request is sent, in a thread
    picture_name: str = ""  # stands for the picture's content in the cache
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer, for structured output
    attempt: int = 1

    def key(self, model: str) -> bytes:
        """Return the key of the response in a cache. A changed text or picture is another request."""
        content = hash_key(self.system, self.text, self.picture_name, self.schema).hex()
        return hash_key(self.version, model, self.item, self.attempt, content)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a provider returned. `finish` is "stop", or the provider's word for why the text ended elsewhere."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete response, from the provider or from the cache."""

    request: Request
    completion: Completion
    cached: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a response. It is not cached, so the same command asks it again."""

    request: Request
    reason: str


class RequestFailed(Exception):
    """A request got no response. `outage`: after all retries, and other requests may fail the same way."""

    def __init__(self, reason: str, outage: bool = False) -> None:
        super().__init__(reason)
        self.outage = outage


class Provider(Protocol):
    """A remote model. `send` raises RequestFailed, or InputError if no request can succeed (a wrong key)."""

    model: str
    address: str
    http_errors: Counter[str]  # responses that were errors, retried ones included, by status

    async def send(self, request: Request, picture: Picture | None) -> Completion: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How many requests are sent at a time and per minute."""

    concurrency: int = 32
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    give_up: int = 20  # the run stops when so many requests in a row fail by an outage


@dataclass(slots=True)
class Figures:
    """Counts of this run, for its report; responses from the cache take no tokens."""

    http_errors: Counter[str]
    requests: int = 0
    responses: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("requests", "responses", "cached", "tokens_in", "tokens_out")}
        errors = {name: dict(getattr(self, name).most_common()) for name in ("http_errors", "failures")}
        return counts | {"seconds": round(self.seconds, 1)} | errors


class TokenBucket:
    """At most `per_minute` units a minute, first come, first served, after a burst of one second's worth (or one unit)."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate)
        self._level, self._clock, self._last = self.capacity, clock, clock()

    def take(self, amount: float = 1.0) -> float:
        """Take `amount` units, which may be owed; return the seconds to wait before they may be used."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._last) * self.rate) - amount
        self._last = now
        return max(0.0, -self._level / self.rate)


FollowUp = Callable[[Request, Completion], Request | None]


class Client:
    """Asks a provider, many requests at a time. Use it in a `with` block: one process at a time holds the cache."""

    def __init__(self, provider: Provider, cache: str | Path, limits: Limits | None = None) -> None:
        self.provider, self.limits = provider, limits or Limits()
        self.figures = Figures(provider.http_errors)
        self._writer = JsonlWriter(cache)
        try:
            self._cache = JsonlIndex(cache, cached_key)
        except BaseException:
            self._writer.close()
            raise
        per_minute = self.limits.requests_per_minute, self.limits.tokens_per_minute
        self._request_bucket, self._token_bucket = (TokenBucket(rate or 1e12) for rate in per_minute)
        self._failed_in_a_row = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()
        self._writer.close()

    def cached(self, request: Request) -> Completion | None:
        """Return the response to this request if it was received before."""
        return read_cached(self._cache, request, self.provider.model)

    async def ask(
        self, requests: Iterable[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[Reply | Failure]:
        """Send requests; yields the last reply to each, or its failure, in the order in which they arrive.

        Args:
            follow_up: returns a further request to ask in place of a reply that is not accepted, None to accept it.
        Raises:
            InputError: no request can succeed (key, model, address), or `give_up` of them failed in a row.
        """
        waiting = iter(requests)
        results: asyncio.Queue[Reply | Failure | BaseException | None] = asyncio.Queue(self.limits.concurrency)

        async def work() -> None:
            try:
                for request in waiting:
                    result = await self._answer(request)
                    while follow_up and isinstance(result, Reply):
                        further = follow_up(result.request, result.completion)
                        if further is None:
                            break
                        result = await self._answer(further)
                    await results.put(result)
            except asyncio.CancelledError:  # nobody is there to take another result
                raise
            except BaseException as error:
                await results.put(error)
                raise
            await results.put(None)

        started = time.monotonic()
        workers = [asyncio.create_task(work()) for _ in range(self.limits.concurrency)]
        working = len(workers)
        try:
            while working:
                result = await results.get()
                if result is None:
                    working -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    yield result
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self.figures.seconds += time.monotonic() - started

    async def _answer(self, request: Request) -> Reply | Failure:
        known = self.cached(request)
        if known is not None:
            self.figures.cached += 1
            return Reply(request, known, cached=True)
        try:
            picture = await asyncio.to_thread(request.picture) if request.picture else None
        except InputError as error:
            return self._failed(request, RequestFailed(str(error)))
        image_tokens = 258 if request.picture else 0  # Gemini's smallest; OpenAI's is 255
        tokens = text_tokens(request.system) + text_tokens(request.text) + image_tokens
        rate = self.limits.tokens_per_minute
        if rate is not None and tokens > rate:
            raise InputError(f"tokens_per_minute: {rate:g} is less than the {tokens} tokens of one request. Allow more")
        await asyncio.sleep(max(self._request_bucket.take(), self._token_bucket.take(tokens)))
        self.figures.requests += 1
        try:
            completion = await self.provider.send(request, picture)
        except RequestFailed as error:
            return self._failed(request, error)
        self._failed_in_a_row = 0
        key = request.key(self.provider.model)
        record = {
            "key": key.hex(), "item": request.item, "version": request.version, "model": self.provider.model,
            "attempt": request.attempt, "text": completion.text, "finish": completion.finish,
            "tokens_in": completion.tokens_in, "tokens_out": completion.tokens_out, "time": round(time.time(), 3),
        }  # fmt: skip
        self._cache.add(key, self._writer.write(record))
        self.figures.responses += 1
        self.figures.tokens_in += completion.tokens_in
        self.figures.tokens_out += completion.tokens_out
        return Reply(request, completion, cached=False)

    def _failed(self, request: Request, error: RequestFailed) -> Failure:
        reason = str(error)
        self.figures.failures[reason] += 1
        self._failed_in_a_row += error.outage
        if self._failed_in_a_row >= self.limits.give_up:
            raise InputError(
                f"{self.provider.address} did not answer {self._failed_in_a_row} requests in a row ({reason}). Check "
                "the address, the quota and the network, then run the same command again: received answers are kept"
            )
        return Failure(request, reason)


def read_cached(cache: JsonlIndex, request: Request, model: str) -> Completion | None:
    """Return the response to a request from a cache that was opened with `cached_key`."""
    record = cache.get(request.key(model))
    if record is None:
        return None
    return Completion(record["text"], record["finish"], record["tokens_in"], record["tokens_out"])


def remove_cached(cache: Path, keys: Collection[bytes]) -> None:
    """Remove the responses under `keys` from a cache; the others stay."""
    if not cache.is_file():
        return
    with JsonlWriter(cache):  # nobody else writes it, and its last line is complete
        lines = ((f"{cache}, line {line}", record) for line, record in read_jsonl(cache))
        write_jsonl(cache, (record for where, record in lines if cached_key(record, where) not in keys))


def cached_key(record: Mapping[str, Any], where: str) -> bytes:
    """Return the key of a line of a response cache; InputError for a line of another kind of file."""
    fields = [record.get(name) for name in ("key", "text", "finish", "tokens_in", "tokens_out")]
    if isinstance(fields[0], str) and isinstance(fields[1], str) and None not in fields:
        try:
            return bytes.fromhex(fields[0])
        except ValueError:
            pass
    raise InputError(f"{where} is no line of a response cache. Give another name or remove the file")
