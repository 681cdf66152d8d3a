"""The server's routes: `/v1/point`, OpenAI's `/v1/chat/completions` and `/v1/models`, `/healthz` and `/metrics`.

Errors are `{"error": {"message", "type"}}` as OpenAI writes them, with one sentence. Nothing of a request is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..inference.answer import PointAnswer, answer_record
from ..inference.backprojection import Camera, Floats, backproject
from ..inference.predictor import Prediction, Predictor
from ..utils.command import InputError
from .engine import Engine, Job
from .requests import (
    Asked,
    ChatRequest,
    Limits,
    PointRequest,
    chat_question,
    form_as_json,
    parse,
    point_question,
    space_of,
)

BODY_FACTOR = 3  # a request may be so many times as large as an image: base64, and a depth image beside it
POLL = 0.25  # seconds between looks whether the client is still there
SCHEMAS = "#/components/schemas/"
ERRORS = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error",
          405: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error",
          503: "server_error", 504: "timeout"}  # fmt: skip
FAILED = "the server failed on this request"
LOG = logging.getLogger(__name__)


class ErrorText(BaseModel):
    message: str
    type: str


class ErrorAnswer(BaseModel):
    """Every answer that is not 200."""

    error: ErrorText


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a model is served."""

    name: str
    window: float = 0.01  # seconds
    most_together: int = 64  # questions in a batch
    most_asking: int = 64  # questions at a time
    timeout: float = 60.0  # seconds
    limits: Limits = Limits(20_000_000, 50_000_000)
    key: str | None = None

    @property
    def too_late(self) -> str:
        return f"no answer within {self.timeout:g} seconds"


class Metrics:
    """Prometheus' numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        known, sizes = self.registry, (1, 2, 4, 8, 16, 32, 64, 128)
        self.requests = Counter("trace_requests", "Requests", ["route", "status"], registry=known)
        self.seconds = Histogram("trace_request_seconds", "Time to the answer", ["route"], registry=known)
        self.waiting = Gauge("trace_waiting", "Questions in the queue", registry=known)
        self.batch = Histogram("trace_batch_size", "Questions answered together", buckets=sizes, registry=known)


def build_app(predictor: Predictor, settings: ServerSettings) -> FastAPI:
    """Return the application; its engine ends with it."""
    metrics = Metrics()
    engine = Engine(predictor, settings.window, settings.most_together, metrics.batch.observe)
    metrics.waiting.set_function(lambda: engine.waiting)
    service = Service(predictor, engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    async def refused(request: Request, error: Any) -> JSONResponse:
        if isinstance(error, InputError):
            return error_response(400, str(error))
        return error_response(error.status_code, str(error.detail), error.headers)

    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in ERRORS}
    handlers: Any = {HTTPException: refused, InputError: refused}
    app = FastAPI(title="TRACE", version=__version__, lifespan=lifespan, responses=errors, exception_handlers=handlers)
    app.add_middleware(Guard, settings=settings, metrics=metrics)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Say whether the model's thread is alive."""
        if not engine.alive:
            raise HTTPException(503, "the model's thread has ended")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def numbers() -> Response:
        """Requests, latency, queue and batch sizes for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [{"id": settings.name, "object": "model", "created": 0, "owned_by": "trace"}]}

    @app.post("/v1/point", openapi_extra=_described("PointRequest", "application/json", "multipart/form-data"))
    async def point(request: Request) -> PointAnswer:
        """Point at something in an image. In a form, `image` and `depth` are files and objects are JSON."""
        return await service.point(request)

    @app.post(
        "/v1/chat/completions", openapi_extra=_described("ChatRequest", "application/json"), response_model=None,
        responses={200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}}},
    )  # fmt: skip
    async def chat(request: Request) -> dict[str, Any] | StreamingResponse:
        """Answer a question about an image in OpenAI's protocol."""
        return await service.chat(request)

    kinds = [(PointRequest, "validation"), (ChatRequest, "validation")]
    _, schemas = models_json_schema(kinds, ref_template=SCHEMAS + "{model}")  # type: ignore[arg-type]
    app.openapi()["components"]["schemas"] |= schemas["$defs"]
    return app


def _described(kind: str, *media: str) -> dict[str, Any]:
    """The description of a body that the route reads by itself."""
    content = {one: {"schema": {"$ref": SCHEMAS + kind}} for one in media}
    return {"requestBody": {"required": True, "content": content}}


class Service:
    """What the two routes that ask the model share."""

    def __init__(self, predictor: Predictor, engine: Engine, settings: ServerSettings) -> None:
        self.predictor, self.engine, self.settings = predictor, engine, settings

    async def point(self, request: Request) -> PointAnswer:
        started, limits = time.monotonic(), self.settings.limits
        body = await _body(request, multipart=True)

        def understood() -> tuple[Asked, tuple[Floats, Camera, Floats | None] | None]:
            record: PointRequest = parse(PointRequest, body)
            asked = point_question(record, limits)
            return asked, space_of(record, asked.image.size, limits)

        asked, space = await asyncio.to_thread(understood)
        prediction = await self._answer(request, self._job(asked))
        centers = [item.center for item in prediction.response.points]
        lifted = backproject(centers, *space) if space is not None else None
        answer = answer_record(prediction, asked.image.size, self.settings.name, lifted)
        return replace(answer, seconds=round(time.monotonic() - started, 3))  # the queue's time included

    async def chat(self, request: Request) -> dict[str, Any] | StreamingResponse:
        record: ChatRequest = parse(ChatRequest, await _body(request))
        if record.model not in ("", self.settings.name):
            known = f"this server has {self.settings.name!r}"
            raise HTTPException(404, f"model: there is no {record.model[:80]!r}; {known}")
        job = self._job(await asyncio.to_thread(chat_question, record, self.settings.limits))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.settings.name}
        if record.stream:
            chunks = self._stream(job, head, record)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        prediction = await self._answer(request, job)
        message = {"role": "assistant", "content": prediction.text}
        choice = {"index": 0, "message": message, "finish_reason": "length" if prediction.cut else "stop",
                  "logprobs": self._logprobs(prediction) if record.logprobs else None}  # fmt: skip
        return {**head, "object": "chat.completion", "choices": [choice], "usage": self._usage(prediction)}

    async def _stream(self, job: Job, head: dict[str, Any], record: ChatRequest) -> AsyncIterator[str]:
        """Yield server-sent events; when the client goes away, the iterator is closed and the job given up."""

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
            return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

        def failure(status: int, message: str) -> str:
            return f"data: {json.dumps(_error(status, message))}\n\n"

        texts: asyncio.Queue[str | None] = asyncio.Queue()  # the text so far; None at the end
        loop, sent = asyncio.get_running_loop(), 0
        job.on_text = lambda text: loop.call_soon_threadsafe(texts.put_nowait, text)
        job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(texts.put_nowait, None))
        self.engine.submit(job)
        try:
            yield event({"role": "assistant", "content": ""})
            while (text := await asyncio.wait_for(texts.get(), job.deadline - time.monotonic())) is not None:
                if len(text) > sent and not text.endswith("\ufffd"):  # half a character
                    yield event({"content": text[sent:]})
                    sent = len(text)
            if (error := job.future.exception()) is not None:
                wrong = isinstance(error, InputError)
                if not wrong:
                    LOG.error(FAILED, exc_info=error)
                yield failure(400, str(error)) if wrong else failure(500, FAILED)
                return
            prediction = job.future.result()
            more = {"logprobs": self._logprobs(prediction)} if record.logprobs else {}
            if len(prediction.text) > sent:
                yield event({"content": prediction.text[sent:]})
            yield event({}, "length" if prediction.cut else "stop", **more)
            if record.stream_options is not None and record.stream_options.include_usage:
                usage = {**head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(prediction)}
                yield f"data: {json.dumps(usage)}\n\n"
            yield "data: [DONE]\n\n"
        except TimeoutError:
            yield failure(504, self.settings.too_late)
        finally:
            job.given_up = True

    def _job(self, asked: Asked) -> Job:
        return Job(asked, time.monotonic() + self.settings.timeout)

    async def _answer(self, request: Request, job: Job) -> Prediction:
        """Wait for an answer; give it up when the client goes away or the time is over."""
        self.engine.submit(job)
        answer = asyncio.wrap_future(job.future)
        try:
            while not answer.done():
                left = job.deadline - time.monotonic()
                if left <= 0:
                    raise HTTPException(504, self.settings.too_late)
                await asyncio.wait({answer}, timeout=min(POLL, left))
                if not answer.done() and await request.is_disconnected():
                    raise ClientDisconnect
            return answer.result()
        finally:
            job.given_up = True
            answer.cancel()  # not an error that nobody saw

    def _logprobs(self, prediction: Prediction) -> dict[str, Any]:
        decode, content, known = self.predictor.checkpoint.tokenizer.decode, [], 0
        for end, value in enumerate(prediction.logprobs, start=1):  # a token's text depends on those before it
            text = decode(list(prediction.token_ids[:end]), skip_special_tokens=True).rstrip("\ufffd")
            content.append({"token": text[known:], "logprob": value, "bytes": None, "top_logprobs": []})
            known = max(known, len(text))
        return {"content": content}

    def _usage(self, prediction: Prediction) -> dict[str, int]:
        asked, answered = len(self.predictor.checkpoint.prompt_ids(prediction.prompt)), len(prediction.token_ids)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


async def _body(request: Request, multipart: bool = False) -> bytes:
    """Return a request's JSON, or its form as JSON."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if multipart and media == "multipart/form-data":
        async with request.form(max_files=2, max_fields=20) as form:
            return form_as_json([(name, value if isinstance(value, str) else await value.read())
                                 for name, value in form.multi_items()])  # fmt: skip
    if media != "application/json":
        allowed = "application/json or multipart/form-data" if multipart else "application/json"
        raise InputError(f"the request's content type must be {allowed}, not {media[:60]!r}")
    return await request.body()


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": ERRORS.get(status, "invalid_request_error")}}


def error_response(status: int, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(_error(status, message), status, headers)


class _TooLarge(Exception):
    pass


class Guard:
    """Checks the key, the size and the number of requests before every route, and counts them after it."""

    def __init__(self, app: Any, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics, self.asking = app, settings, metrics, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, size, asks = time.perf_counter(), 0, 0, scope["method"] == "POST"
        most, most_asking = BODY_FACTOR * self.settings.limits.image_bytes, self.settings.most_asking

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def limited() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise _TooLarge
            return message

        async def refuse(code: int, message: str, headers: Any = None) -> None:
            await error_response(code, message, headers)(scope, receive, counted)

        self.asking += asks
        try:
            if not self._allowed(scope):
                await refuse(401, "the API key is missing or wrong: send Authorization: Bearer KEY")
            elif asks and self.asking > most_asking:
                await refuse(429, f"{most_asking} questions are asked already; try again later", {"Retry-After": "1"})
            else:
                await self.app(scope, limited, counted)
        except _TooLarge:
            await refuse(413, f"the request is larger than {most:,} bytes")
        except ClientDisconnect:
            status = 499  # nobody is there to be told
        except Exception as error:  # noqa: BLE001 (a defect: told to the client without its contents, logged with them)
            if status:
                raise  # ends the connection
            LOG.error(FAILED, exc_info=error)
            await refuse(500, FAILED)
        finally:
            self.asking -= asks
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status or 499)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _allowed(self, scope: Any) -> bool:
        if self.settings.key is None or scope["path"] == "/healthz":
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, f"Bearer {self.settings.key}".encode())
