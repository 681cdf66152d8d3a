"""Remote models by OpenAI's chat completions: OpenAI, Gemini's compatible endpoint, vLLM, SGLang.

The openai SDK retries what may pass (408, 409, 429, 5xx, timeouts, connections), waits as Retry-After asks and for at
most 8 seconds otherwise. What remains is `RequestFailed`, or InputError if no request can succeed. Keys come from the
environment only.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..utils.command import InputError, install_hint
from .client import Completion, Picture, Request, RequestFailed

GEMINI_ADDRESS = "https://generativelanguage.googleapis.com/v1beta/openai/"
KEYS = {"gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "openai": ("OPENAI_API_KEY",)}


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of every answer; None leaves the provider's own default."""

    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None  # not sent to Gemini, whose endpoint rejects requests with a seed
    thinking_budget: int | None = None  # tokens of hidden thought; Gemini only
    structured: bool = True  # send the request's schema (some servers do not support schemas)


class OpenAIChat:
    """A model behind OpenAI's chat completions. InputError if the SDK is not installed or the key is not set.

    Args:
        protocol: "gemini", or "openai" for any other server.
        base_url: the server's address; None is the provider's own.
        timeout: seconds that one of the `tries` of a request may wait for data.
    """

    def __init__(
        self, protocol: str, model: str, base_url: str | None, options: Options, timeout: float = 120.0, tries: int = 12
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            hint = install_hint("reason")
            raise InputError(f"remote models need the package openai. Install it with: {hint}") from None
        self.model, self.options, self._gemini = model, options, protocol == "gemini"
        self._variable = KEYS[protocol][0]
        key = next(filter(None, map(os.environ.get, KEYS[protocol])), None)
        if key is None and (base_url is None or self._gemini):
            raise InputError(f"the environment variable {self._variable} is not set. Put the API key for {model} there")
        self._key = key
        self.address = base_url or f"the {'Gemini' if self._gemini else 'OpenAI'} API"
        self.http_errors: Counter[str] = Counter()

        async def count_errors(response: Any) -> None:
            if response.status_code >= 400:
                self.http_errors[f"HTTP {response.status_code}"] += 1

        self._client = openai.AsyncOpenAI(
            api_key=key or "none",  # a local server asks for no key, but the SDK does
            base_url=base_url or (GEMINI_ADDRESS if self._gemini else None),
            max_retries=tries - 1,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [count_errors]}),
        )

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        import openai

        try:
            # Not `chat.completions.create`: it checks every field of the body against its type, twice the CPU time.
            answer = await self._client.post("/chat/completions", cast_to=object, body=self._body(request, picture))
        except openai.APIStatusError as error:
            message = error.message.replace(self._key, "***") if self._key else error.message  # a server may repeat it
            raise self._by_status(error.status_code, error.code, " ".join(message.split())[:200]) from None
        except openai.APIConnectionError as error:
            raise RequestFailed(f"connection: {type(error.__cause__ or error).__name__}", outage=True) from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise RequestFailed("the response is no valid JSON", outage=True) from None
        return _completion(answer)

    async def close(self) -> None:
        await self._client.close()

    def _body(self, request: Request, picture: Picture | None) -> dict[str, Any]:
        options = self.options
        content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        if picture is not None:
            data = base64.b64encode(picture.data).decode("ascii")
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:{picture.mime};base64,{data}"}})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        wanted: dict[str, Any] = {"temperature": options.temperature, "max_tokens": options.max_new_tokens}
        if request.schema is not None and options.structured:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            wanted["response_format"] = {"type": "json_schema", "json_schema": schema}
        if not self._gemini:
            wanted["seed"] = options.seed
        elif options.thinking_budget is not None:
            wanted["extra_body"] = {"google": {"thinking_config": {"thinking_budget": options.thinking_budget}}}
        body = {"model": self.model, "messages": messages}
        return body | {name: value for name, value in wanted.items() if value is not None}

    def _by_status(self, status: int, code: str | None, details: str) -> Exception:
        if code == "insufficient_quota":
            return InputError(f"the quota of this key is used up at {self.address}: {details}")
        if status in (408, 409, 429) or status >= 500:
            return RequestFailed(f"HTTP {status}", outage=True)
        if status in (401, 403) or (status == 400 and "api key" in details.lower()):
            return InputError(f"{self.address} does not accept the key in {self._variable}: {details}")
        if status == 404:
            return InputError(f"{self.address} does not know the model {self.model!r} (or the address): {details}")
        return RequestFailed(f"refused with HTTP {status}: {details}")


def _completion(answer: Any) -> Completion:
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = choice["message"].get("content") or ""
        finish = str(choice.get("finish_reason") or "stop")
        if not text and choice["message"].get("refusal"):
            finish = "refusal"
        tokens_in, tokens_out = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
        total = int(usage.get("total_tokens") or 0)
        # Gemini counts hidden thoughts in the total only; they are paid as output.
        return Completion("" + text, finish, tokens_in, max(tokens_out, total - tokens_in))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise RequestFailed("the response is no chat completion", outage=True) from None
