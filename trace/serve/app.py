"""The server's routes: `/v1/point`, OpenAI's `/v1/chat/completions` and `/v1/models`, `/healthz` and `/metrics`.

Errors are `{"error": {"message", "type"}}` as OpenAI writes them, with one sentence. Nothing of a request is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from .. import __version__
from ..inference.answer import PointAnswer, answer_record
from ..inference.backprojection import backproject
from ..inference.predictor import Prediction, Predictor
from ..utils.command import InputError
from .engine import Engine, Job, QueueFull
from .requests import (
    Asked,
    ChatRequest,
    Limits,
    PointRequest,
    chat_question,
    decode_image,
    form_as_json,
    parse,
    point_question,
    space_of,
)

BODY_FACTOR = 3  # a request may be so many times as large as an image: base64, and a depth image beside it
POLL = 0.25  # seconds between looks whether the client is still there
RETRY_AFTER = 1  # seconds


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
    most_waiting: int = 64
    timeout: float = 60.0  # seconds
    limits: Limits = field(default_factory=lambda: Limits(20_000_000, 50_000_000))
    key: str | None = None


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
    engine = Engine(predictor, settings.window, settings.most_waiting, metrics.batch.observe)
    metrics.waiting.set_function(lambda: engine.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    statuses = 400, 401, 404, 405, 413, 429, 500, 503, 504
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in statuses}
    app = FastAPI(title="TRACE", version=__version__, lifespan=lifespan, responses=errors)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    app.add_exception_handler(HTTPException, _http_error)
    service = Service(predictor, engine, settings)
    app.add_exception_handler(404, _http_error)
    app.add_exception_handler(405, _http_error)

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

    @app.post("/v1/point", openapi_extra=_body(PointRequest, files=("image", "depth")))
    async def point(request: Request) -> PointAnswer:
        """Point at something in an image."""
        return await service.point(request)

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatRequest), response_model=None)
    async def chat(request: Request) -> dict[str, Any] | StreamingResponse:
        """Answer a question about an image in OpenAI's protocol."""
        return await service.chat(request)

    return app


def _body(kind: type[BaseModel], files: tuple[str, ...] = ()) -> dict[str, Any]:
    """The description of a body that the route reads by itself."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})
    text = json.dumps(schema)
    for name, definition in definitions.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"})[1:-1], json.dumps(definition)[1:-1])
    while "#/$defs/" in text:
        for name, definition in definitions.items():
            text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"})[1:-1], json.dumps(definition)[1:-1])
    schema = json.loads(text)
    content = {"application/json": {"schema": schema}}
    if files:
        form = json.loads(text)
        for name in files:
            form["properties"][name] = {"type": "string", "format": "binary"}
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


class Service:
    """What the two routes that ask the model share."""

    def __init__(self, predictor: Predictor, engine: Engine, settings: ServerSettings) -> None:
        self.predictor, self.engine, self.settings = predictor, engine, settings

    async def point(self, request: Request) -> PointAnswer:
        record = await _read(request, PointRequest, multipart=True)
        limits = self.settings.limits
        try:
            asked = await asyncio.to_thread(point_question, record, limits)
            image = await asyncio.to_thread(decode_image, asked.picture, limits)
            space = await asyncio.to_thread(space_of, record, image.size, limits)
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        started = time.monotonic()
        prediction = await self._answer(request, self._job(asked, image))
        centers = [item.center for item in prediction.response.points]
        lifted = backproject(centers, *space) if space is not None else None
        answer = answer_record(prediction, image.size, self.settings.name, lifted)
        object.__setattr__(answer, "seconds", round(time.monotonic() - started, 3))  # the queue's time included
        return answer

    async def chat(self, request: Request) -> dict[str, Any] | StreamingResponse:
        record: ChatRequest = await _read(request, ChatRequest)
        if record.model not in ("", self.settings.name):
            raise HTTPException(
                404, f"model: there is no {record.model[:80]!r}; this server has {self.settings.name!r}"
            )
        try:
            asked = await asyncio.to_thread(chat_question, record, self.settings.limits)
            image = await asyncio.to_thread(decode_image, asked.picture, self.settings.limits)
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.settings.name}
        job = self._job(asked, image)
        if record.stream:
            texts: asyncio.Queue[str] = asyncio.Queue()
            loop = asyncio.get_running_loop()
            job.on_text = lambda text: loop.call_soon_threadsafe(texts.put_nowait, text)
            self._submit(job)
            chunks = self._stream(job, texts, head, record)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        prediction = await self._answer(request, job)
        message = {"role": "assistant", "content": prediction.text}
        choice = {"index": 0, "message": message, "finish_reason": "length" if prediction.cut else "stop",
                  "logprobs": self._logprobs(prediction) if record.logprobs else None}  # fmt: skip
        return {**head, "object": "chat.completion", "choices": [choice], "usage": self._usage(prediction)}

    async def _stream(
        self, job: Job, texts: asyncio.Queue[str], head: dict[str, Any], record: ChatRequest
    ) -> AsyncIterator[str]:
        """Yield server-sent events; when the client goes away, the iterator is closed and the job cancelled."""

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
            return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

        answer, sent = asyncio.wrap_future(job.future), 0
        try:
            yield event({"role": "assistant", "content": ""})
            while not answer.done() and time.monotonic() < job.deadline:
                getting = asyncio.ensure_future(texts.get())
                pending: set[asyncio.Future[Any]] = {getting, answer}
                await asyncio.wait(pending, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    continue
                text = getting.result()
                if len(text) > sent and not text.endswith("\ufffd"):  # half a character
                    yield event({"content": text[sent:]})
                    sent = len(text)
            if not answer.done():
                yield f"data: {json.dumps({'error': {'message': _too_late(self.settings), 'type': 'timeout'}})}\n\n"
                return
            prediction = answer.result()
            more = {"logprobs": self._logprobs(prediction)} if record.logprobs else {}
            if len(prediction.text) > sent:
                yield event({"content": prediction.text[sent:]})
            yield event({}, "length" if prediction.cut else "stop", **more)
            if record.stream_options is not None and record.stream_options.include_usage:
                usage = {**head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(prediction)}
                yield f"data: {json.dumps(usage)}\n\n"
            yield "data: [DONE]\n\n"
        except InputError as error:
            yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'invalid_request_error'}})}\n\n"
        finally:
            job.future.cancel()

    def _job(self, asked: Asked, image: Any) -> Job:
        key = hashlib.sha256(asked.picture).hexdigest()
        deadline = time.monotonic() + self.settings.timeout
        return Job(image, key, asked.instruction, asked.decoding, asked.reasoning, asked.template, deadline)

    def _submit(self, job: Job) -> None:
        try:
            self.engine.submit(job)
        except QueueFull:
            message = f"{self.settings.most_waiting} questions are waiting already; try again later"
            raise HTTPException(429, message, {"Retry-After": str(RETRY_AFTER)}) from None

    async def _answer(self, request: Request, job: Job) -> Prediction:
        """Wait for an answer; give it up when the client goes away or the time is over."""
        self._submit(job)
        answer = asyncio.wrap_future(job.future)
        while not answer.done():
            await asyncio.wait({answer}, timeout=min(POLL, max(0.0, job.deadline - time.monotonic())))
            if not answer.done() and (time.monotonic() >= job.deadline or await request.is_disconnected()):
                job.future.cancel()
                raise HTTPException(504, _too_late(self.settings))
        try:
            return answer.result()
        except InputError as error:
            raise HTTPException(400, str(error)) from None

    def _logprobs(self, prediction: Prediction) -> dict[str, Any]:
        tokenizer = self.predictor.checkpoint.tokenizer
        pieces = zip(tokenizer.convert_ids_to_tokens(list(prediction.token_ids)), prediction.logprobs, strict=False)
        return {"content": [{"token": piece.replace("▁", " "), "logprob": value, "bytes": None, "top_logprobs": []}
                            for piece, value in pieces]}  # fmt: skip

    def _usage(self, prediction: Prediction) -> dict[str, int]:
        asked, answered = len(self.predictor.checkpoint.prompt_ids(prediction.prompt)), len(prediction.token_ids)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


async def _read(request: Request, kind: type[BaseModel], multipart: bool = False) -> Any:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if multipart and media == "multipart/form-data":
            async with request.form(max_files=2, max_fields=20) as form:
                files = {name: await value.read() for name, value in form.items() if isinstance(value, UploadFile)}
                fields = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
            return parse(kind, form_as_json(fields, files))
        if media != "application/json":
            allowed = "application/json or multipart/form-data" if multipart else "application/json"
            raise HTTPException(400, f"the request's content type must be {allowed}, not {media[:60]!r}")
        return parse(kind, await request.body())
    except InputError as error:
        raise HTTPException(400, str(error)) from None


def _too_late(settings: ServerSettings) -> str:
    return f"no answer within {settings.timeout:g} seconds"


async def _http_error(request: Request, error: Any) -> JSONResponse:
    return error_response(error.status_code, str(error.detail), error.headers)


def error_response(status: int, message: str, headers: Any = None) -> JSONResponse:
    kinds = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)


class _TooLarge(Exception):
    pass


class Guard:
    """Before every route: the key, the size of the request; after it: the numbers, and no traceback to the client."""

    def __init__(self, app: Any, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, size = time.perf_counter(), [0], [0]
        most = BODY_FACTOR * self.settings.limits.image_bytes

        async def count(message: Any) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        async def limited() -> Any:
            message = await receive()
            size[0] += len(message.get("body", b""))
            if size[0] > most:
                raise _TooLarge
            return message

        refused = partial(self._refuse, scope, receive, count)
        try:
            if not self._allowed(scope):
                await refused(401, "the API key is missing or wrong: send Authorization: Bearer KEY")
            else:
                await self.app(scope, limited, count)
        except _TooLarge:
            if not status[0]:
                await refused(413, f"the request is larger than {most:,} bytes")
        except Exception:  # noqa: BLE001 (a defect: told to the client without its contents, and to the log with them)
            if not status[0]:
                await refused(500, "the server failed on this request")
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status[0] or 499)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _refuse(self, scope: Any, receive: Any, send: Callable[..., Any], status: int, message: str) -> None:
        await error_response(status, message)(scope, receive, send)

    def _allowed(self, scope: Any) -> bool:
        if self.settings.key is None or scope["path"] == "/healthz":
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, f"Bearer {self.settings.key}".encode())
