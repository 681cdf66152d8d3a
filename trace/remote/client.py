"""One asynchronous client for remote models: rate limit, retries, an append-only cache, concurrency, figures.

    client = Client(provider, cache=OUT.cache.jsonl, limits=Limits(concurrency=32))
    async for reply in client.ask(requests): ...

The reasoners and the evaluation of remote models use it; what a provider's protocol looks like is in `api_providers`,
what it costs in `api_cost`. A response that was received whole is appended to the cache, on disk, before it counts,
and is never asked for again; killed at any moment, the same command repeats at most what was in flight. Requests are
drawn one at a time and responses are handed on as they come, so memory does not grow with their number.
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
from ..utils.files import JsonlIndex, JsonlWriter, hash_key, read_jsonl, write_jsonl


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is sent, inline."""

    data: bytes
    mime: str = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model. `item`, `version`, the model and `attempt` name it in the cache.

    `version` stands for the prompt's wording and whatever else shapes the answer, a server that is not the provider's
    included. The picture is made when it is needed, in a thread; `picture_name` stands for its content where cached
    responses are looked up.
    """

    item: str
    version: str
    text: str
    system: str = ""
    picture: Callable[[], Picture] | None = None
    picture_name: str = ""
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer, where structured output is wanted
    attempt: int = 1
    _keys: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)  # by model

    def key(self, model: str) -> bytes:
        """What the response is stored under. A changed text or picture is another request."""
        key = self._keys.get(model)
        if key is None:
            content = hash_key(self.system, self.text, self.picture_name, self.schema).hex()
            key = self._keys[model] = hash_key(self.version, model, self.item, self.attempt, content)
        return key


@dataclass(frozen=True, slots=True)
class Completion:
    """What a provider returned. `finish` is "stop", or the provider's word for why the text ended elsewhere."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response, from the provider or from the cache."""

    request: Request
    completion: Completion
    cached: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no response: refused, unanswerable, or given up after the last try. It is not cached."""

    request: Request
    reason: str


class Transient(Exception):
    """The request may succeed later; `wait` are the seconds that the provider asked to wait, if it did."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Refused(Exception):
    """The provider will never answer this request."""


class Provider(Protocol):
    """A remote model. Raises Transient, Refused, or InputError when no request at all can succeed (a wrong key).

    One that has `makes_pictures` set makes `request.picture` itself and is given none (`api_crew.Crew`).
    """

    model: str
    place: str  # where it is, for messages

    async def send(self, request: Request, picture: Picture | None) -> Completion: ...

    async def close(self) -> None: ...


def picture_of(request: Request) -> Picture | None:
    """The picture of a request, which takes milliseconds to make; Refused when it cannot be made."""
    try:
        return request.picture() if request.picture else None
    except InputError as error:
        raise Refused(str(error)) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard a provider is pressed. `timeout` is for one try, in seconds; waits double from `first_wait`."""

    concurrency: int = 32
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    tries: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0
    give_up: int = 20  # items in a row that fail after all their tries, before the command stops


@dataclass(slots=True)
class Figures:
    """What happened, for the report at the end. Tokens and requests are those of this run, not of the cache."""

    requests: int = 0  # handed to the provider, failed tries included
    responses: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    retries: Counter[str] = field(default_factory=Counter)  # by reason
    failures: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("requests", "responses", "cached", "tokens_in", "tokens_out")}
        return {
            **counts,
            "seconds": round(self.seconds, 1),
            "retries": dict(self.retries.most_common()),
            "failures": dict(self.failures.most_common()),
        }


class TokenBucket:
    """At most `per_minute` units a minute, after a burst of at most one second's worth (or one unit).

    Who comes first is served first: a unit that is not there yet is owed, and everyone waits for their own.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate)
        self._level, self._clock, self._last = self.capacity, clock, clock()

    def take(self, amount: float = 1.0) -> float:
        """Take `amount` units; returns the seconds to wait before they may be used."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._last) * self.rate)
        self._last = now
        self._level -= amount
        return max(0.0, -self._level / self.rate)


Again = Callable[[Request, Completion], Request | None]


class Client:
    """Asks a provider, many requests at a time. Use it in a `with` block: one process at a time has the cache."""

    def __init__(self, provider: Provider, cache: str | Path, limits: Limits | None = None) -> None:
        self.provider, self.limits, self.figures = provider, limits or Limits(), Figures()
        self._writer = JsonlWriter(cache)
        try:
            self._cache = JsonlIndex(cache, cached_key)
        except BaseException:
            self._writer.close()
            raise
        self._buckets = [
            (TokenBucket(rate), unit)
            for rate, unit in (
                (self.limits.requests_per_minute, lambda request: 1.0),
                (self.limits.tokens_per_minute, _rough_tokens),
            )
            if rate is not None
        ]
        self._failed_in_a_row = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()
        self._writer.close()

    def cached(self, request: Request) -> Completion | None:
        """The response to this very request, if it was received before."""
        return read_cached(self._cache, request, self.provider.model)

    async def ask(self, requests: Iterable[Request], again: Again | None = None) -> AsyncIterator[Reply | Failure]:
        """Ask; yields the last reply to every request, or its failure, in the order in which they come.

        Args:
            again: looks at a response and returns a further request to ask in its place, or None when it will do.
        Raises:
            InputError: no request can succeed (key, model, address), or `give_up` of them failed in a row.
        """
        waiting = iter(requests)
        results: asyncio.Queue[Reply | Failure | BaseException | None] = asyncio.Queue(self.limits.concurrency)

        async def work() -> None:
            try:
                for request in waiting:
                    await results.put(await self._settle(request, again))
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

    async def _settle(self, request: Request, again: Again | None) -> Reply | Failure:
        while True:
            result = await self._one(request)
            further = again(request, result.completion) if again and isinstance(result, Reply) else None
            if further is None:
                return result
            request = further

    async def _one(self, request: Request) -> Reply | Failure:
        """One request, from the cache or with all its tries."""
        known = self.cached(request)
        if known is not None:
            self.figures.cached += 1
            return Reply(request, known, cached=True)
        here = request.picture is not None and not getattr(self.provider, "makes_pictures", False)
        try:
            picture = await asyncio.to_thread(picture_of, request) if here else None
            completion = await self._with_retries(request, picture)
        except Refused as error:
            return self._failed(request, str(error), count=False)
        except Transient as error:
            return self._failed(request, f"{error}, {self.limits.tries} times", count=True)
        self._failed_in_a_row = 0
        self._keep(request, completion)
        return Reply(request, completion, cached=False)

    async def _with_retries(self, request: Request, picture: Picture | None) -> Completion:
        try:
            return await self._try(request, picture)
        except Transient as error:
            return await self._again(request, picture, error)

    async def _again(self, request: Request, picture: Picture | None, first: Transient) -> Completion:
        """All tries but the first, whose failure is `first`: tenacity's machinery costs more than most successes."""
        import tenacity

        failed: list[Transient] = [first]
        backoff = tenacity.wait_random_exponential(self.limits.first_wait, self.limits.longest_wait)

        async def tried() -> Completion:
            if failed:
                raise failed.pop()
            return await self._try(request, picture)

        def wait(state: Any) -> float:
            """Exponential with full jitter, and never sooner than the provider asks for."""
            return max(backoff(state), state.outcome.exception().wait or 0.0)

        def count(state: Any) -> None:
            self.figures.retries[str(state.outcome.exception())] += 1

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Transient),
            stop=tenacity.stop_after_attempt(self.limits.tries),
            wait=wait,
            before_sleep=count,  # not after the last try
            reraise=True,
        )
        completion: Completion = await retrying(tried)
        return completion

    async def _try(self, request: Request, picture: Picture | None) -> Completion:
        if self._buckets:
            tokens, rate = _rough_tokens(request), self.limits.tokens_per_minute
            if rate is not None and tokens > rate:
                raise InputError(
                    f"tokens_per_minute: {rate:g} is less than one request takes, about {tokens:g}, "
                    "which would wait for minutes each; allow more"
                )
            await asyncio.sleep(max(bucket.take(unit(request)) for bucket, unit in self._buckets))
        self.figures.requests += 1
        try:
            async with asyncio.timeout(self.limits.timeout):  # the whole response, however slowly it trickles
                return await self.provider.send(request, picture)
        except TimeoutError:
            raise Transient("no whole answer in time") from None

    def _keep(self, request: Request, completion: Completion) -> None:
        key = request.key(self.provider.model)
        place = self._writer.append(
            {
                "key": key.hex(),
                "item": request.item,
                "version": request.version,
                "model": self.provider.model,
                "attempt": request.attempt,
                "text": completion.text,
                "finish": completion.finish,
                "tokens_in": completion.tokens_in,
                "tokens_out": completion.tokens_out,
                "time": round(time.time(), 3),
            }
        )
        self._cache.add(key, place)
        self.figures.responses += 1
        self.figures.tokens_in += completion.tokens_in
        self.figures.tokens_out += completion.tokens_out

    def _failed(self, request: Request, reason: str, count: bool) -> Failure:
        self.figures.failures[reason] += 1
        self._failed_in_a_row += count
        if self._failed_in_a_row >= self.limits.give_up:
            raise InputError(
                f"{self.provider.place} did not answer {self._failed_in_a_row} requests in a row ({reason}); "
                "what it did answer is kept: check the address, the quota and the network, then run the command again"
            )
        return Failure(request, reason)


def _rough_tokens(request: Request) -> float:
    from .cost import text_tokens

    return float(text_tokens(request.system) + text_tokens(request.text) + 258 * (request.picture is not None))


def read_cached(cache: JsonlIndex, request: Request, model: str) -> Completion | None:
    """The response to a request in a cache, which `cached_key` has read."""
    record = cache.get(request.key(model))
    if record is None:
        return None
    return Completion(record["text"], record["finish"], record["tokens_in"], record["tokens_out"])


def remove_cached(cache: Path, keys: Collection[bytes]) -> None:
    """Take the responses under `keys` out of a cache, so that they are asked for anew; the others stay."""
    if not cache.is_file():
        return
    with JsonlWriter(cache):  # nobody else writes it, and its last line is whole
        lines = read_jsonl(cache)
        write_jsonl(
            cache, (record for line, record in lines if cached_key(record, f"{cache}, line {line}") not in keys)
        )


def cached_key(record: Mapping[str, Any], where: str) -> bytes:
    """Under what a line of a response cache is found; InputError for a line that is none."""
    try:
        wanted = [record[name] for name in ("text", "finish", "tokens_in", "tokens_out")]
        assert isinstance(wanted[0], str)
        return bytes.fromhex(record["key"])
    except (KeyError, TypeError, ValueError, AssertionError):
        raise InputError(f"{where} is no line of a response cache; give another name or remove the file") from None
