"""The remote models that `api.Client` can ask: Gemini, and any server that speaks OpenAI's protocol.

Each adapter turns a Request into one call of the provider's official SDK, without the SDK's own retries, and every way
in which that can fail into one of three: try again (`Transient`), this request never (`Refused`), no request at all
(`InputError`). Keys come from the environment only.

OpenAI's body is posted by the SDK's `post`: its typed `create` walks through every field of every message against its
type annotations, which takes twice the CPU (benchmarks/reasoners.py measures both).
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.command import InputError, install_hint
from .client import Completion, Picture, Refused, Request, Transient

KEYS = {"gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "openai": ("OPENAI_API_KEY",)}


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of every answer; None leaves the provider's own default."""

    temperature: float | None = None
    max_output_tokens: int | None = None
    seed: int | None = None
    thinking_budget: int | None = None  # tokens of hidden thought; Gemini only
    structured: bool = True  # ask for the request's schema (a few servers do not know how)


def key_from_environment(provider: str, needed: bool = True) -> str:
    """The provider's key; InputError names the variable to set."""
    for name in KEYS[provider]:
        if key := os.environ.get(name):
            return key
    if needed:
        raise InputError(
            f"the environment variable {KEYS[provider][0]} is not set; put an API key for {provider} there"
        )
    return "none"  # a server of one's own asks for no key, but the SDK wants a value


def make_provider(name: str, model: str, base_url: str | None, options: Options, connections: int) -> Any:
    """The adapter `name` ("gemini" or "openai"); InputError without its SDK or without a key."""
    try:
        if name == "gemini":
            return Gemini(model, base_url, options, connections)
        return OpenAI(model, base_url, options, connections)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("google", "openai", "tenacity", "httpx2"):
            raise
        raise InputError(f"asking {name} needs {error.name}; install it with: {install_hint('reason')}") from None


class Gemini:
    """Gemini through google-genai. `base_url` replaces Google's address (a proxy, a test)."""

    def __init__(self, model: str, base_url: str | None, options: Options, connections: int) -> None:
        import httpx2
        import tenacity  # noqa: F401 (asked for here, before any request)
        from google import genai
        from google.genai import types

        self.model, self.options = model, options
        self.place = base_url or "the Gemini API"
        self._types = types
        # The SDK's own client keeps 20 connections alive: with more requests at a time, the others would connect anew.
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx2.AsyncClient(limits=limits, timeout=None)
        self._client = genai.Client(
            api_key=key_from_environment("gemini"),
            http_options=types.HttpOptions(base_url=base_url, httpx_async_client=self._http),
        )
        self._configs: dict[tuple[str, str], Any] = {}

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        from google.genai import errors
        from httpx2 import RequestError
        from pydantic import ValidationError

        types = self._types
        parts = [types.Part(text=request.text)]
        if picture is not None:
            parts.insert(0, types.Part(inline_data=types.Blob(data=picture.data, mime_type=picture.mime)))
        try:
            answer = await self._client.aio.models.generate_content(
                model=self.model, contents=[types.Content(role="user", parts=parts)], config=self._config(request)
            )
        except errors.APIError as error:
            details = str(error.message or error.status or "")
            raise _by_status(error.code, details, self, KEYS["gemini"][0], _gemini_wait(error)) from None
        except RequestError as error:
            raise Transient(f"connection: {type(error).__name__}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, errors.UnknownApiResponseError):
            raise Transient("the answer is no valid JSON") from None
        return _gemini_completion(answer)

    def _config(self, request: Request) -> Any:
        """One object for all requests that are alike: building it costs more than sending the request."""
        schema = request.schema if self.options.structured else None
        key = (request.system, json.dumps(schema))
        if key not in self._configs:
            options = self.options
            budget = options.thinking_budget
            self._configs[key] = self._types.GenerateContentConfig(
                system_instruction=request.system or None,
                temperature=options.temperature,
                max_output_tokens=options.max_output_tokens,
                seed=options.seed,
                thinking_config=None if budget is None else self._types.ThinkingConfig(thinking_budget=budget),
                response_mime_type="application/json" if schema else None,
                response_json_schema=schema,
            )
        return self._configs[key]

    async def close(self) -> None:
        await self._http.aclose()


def _gemini_completion(answer: Any) -> Completion:
    usage = answer.usage_metadata
    tokens_in = (usage and usage.prompt_token_count) or 0
    tokens_out = ((usage and usage.candidates_token_count) or 0) + ((usage and usage.thoughts_token_count) or 0)
    if not answer.candidates:
        blocked = answer.prompt_feedback and answer.prompt_feedback.block_reason
        if not blocked:
            raise Transient("an answer without a candidate")
        return Completion("", str(getattr(blocked, "value", blocked)).lower(), tokens_in, tokens_out)
    candidate = answer.candidates[0]
    parts = (candidate.content and candidate.content.parts) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    finish = str(getattr(candidate.finish_reason, "value", candidate.finish_reason or "stop")).lower()
    return Completion(text, finish, tokens_in, tokens_out)


def _gemini_wait(error: Any) -> float | None:
    """Seconds that a 429 asks for, from its header or from RetryInfo in its details."""
    found = re.search(r"'retryDelay': '(\d+(?:\.\d+)?)s'", str(error.details))
    return float(found[1]) if found else _retry_after(getattr(error.response, "headers", {}))


class OpenAI:
    """OpenAI's chat completions, through the openai SDK; `base_url` names any server that speaks them."""

    def __init__(self, model: str, base_url: str | None, options: Options, connections: int) -> None:
        import httpx2
        import openai
        import tenacity  # noqa: F401 (asked for here, before any request)

        self.model, self.options = model, options
        self.place = base_url or "the OpenAI API"
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = openai.AsyncOpenAI(
            api_key=key_from_environment("openai", needed=base_url is None),
            base_url=base_url,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        )

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        import openai

        try:
            answer = await self._client.post("/chat/completions", cast_to=object, body=self._body(request, picture))
        except openai.APIStatusError as error:
            if error.code == "insufficient_quota":
                raise InputError(f"{self.place} says that the quota of this key is used up") from None
            wait = _retry_after(error.response.headers)
            raise _by_status(error.status_code, error.message, self, KEYS["openai"][0], wait) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Transient(f"connection: {type(cause).__name__}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise Transient("the answer is no valid JSON") from None
        return _openai_completion(answer)

    def _body(self, request: Request, picture: Picture | None) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        if picture is not None:
            data = base64.b64encode(picture.data).decode("ascii")
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:{picture.mime};base64,{data}"}})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        options = self.options
        wanted = {"temperature": options.temperature, "max_tokens": options.max_output_tokens, "seed": options.seed}
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        body |= {name: value for name, value in wanted.items() if value is not None}
        if request.schema is not None and options.structured:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def close(self) -> None:
        await self._client.close()


def _openai_completion(answer: object) -> Completion:
    try:
        assert isinstance(answer, dict)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = choice["message"].get("content") or ""
        finish = str(choice.get("finish_reason") or "stop")
        if not text and choice["message"].get("refusal"):
            finish = "refusal"
        tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        assert isinstance(text, str)
    except (AssertionError, KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Transient("the answer is no chat completion") from None
    return Completion(text, finish, *tokens)


def _by_status(status: int, details: str, provider: Any, variable: str, wait: float | None) -> Exception:
    """What an HTTP status means for the request."""
    short = " ".join(details.split())[:200]
    if status in (408, 409, 425, 429) or status >= 500:
        return Transient(f"HTTP {status}", wait)
    if status in (401, 403) or (status == 400 and "api key" in details.lower()):
        return InputError(f"{provider.place} does not accept the key in {variable}: {short}")
    if status == 404:
        return InputError(f"{provider.place} does not know the model {provider.model!r} (or the address): {short}")
    return Refused(f"refused with HTTP {status}: {short}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date
        return None
