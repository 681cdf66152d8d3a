"""What the server accepts: OpenAI's chat completions with one image and one question, and the plain question of /v1/point.

Everything wrong in a request is an InputError of one sentence, which becomes a 4xx answer.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import math
import secrets
import urllib.parse
import urllib.request
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import Image as PillowImage
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from ..core.images import BROKEN_IMAGE, FORMATS, is_turned, open_image
from ..core.prompts import FORMAT_SENTENCE, POINTS_SUFFIX, REASONING_SUFFIX, asks_yes_no, bare_instruction
from ..inference.backprojection import Camera, Floats, camera_of, pose_of, read_depth
from ..inference.generation import Decoding
from ..inference.predictor import PLACEHOLDER
from ..utils.command import InputError

LONGEST_INSTRUCTION = 8000  # characters
MOST_NEW_TOKENS = 2048
FETCH_SECONDS = 10
NPY = b"\x93NUMPY"  # begins an array's file


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Tokens = Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class PointRequest(Strict):
    """A question about one image.

    `image` and `depth` are files in base64, alone or as a data URI; `depth` is a 16-bit (millimetres) or floating-point
    (metres) image or .npy, registered to the image. `intrinsics` and `extrinsics` are as `trace-vlm predict` reads them.
    """

    image: str
    instruction: str
    num_points: Annotated[int, Field(ge=1, le=50)] | None = None
    reasoning: bool | None = None
    max_new_tokens: Tokens = 512
    temperature: Temperature = 0.0
    seed: Seed = 0
    depth: str | None = None
    depth_unit: Literal["m", "mm"] | None = None
    intrinsics: dict[str, JsonValue] | list[JsonValue] | None = None
    extrinsics: dict[str, JsonValue] | list[JsonValue] | None = None


class ImageURL(Strict):
    url: str
    detail: str | None = None


class Part(Strict):
    """A part of a message: text, or an image as a data URI."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageURL | str | None = None


class Message(Strict):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(Strict):
    """OpenAI's chat completions. Fields that change nothing here (`user`, `store`, `metadata`) are accepted."""

    model: str = ""
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the pictures in a request."""

    image_bytes: int
    pixels: int
    hosts: Collection[str] = ()  # from which pictures may be fetched


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the engine takes it."""

    image: Image
    key: str  # the same for the same image
    instruction: str
    reasoning: bool | None
    template: str | None
    decoding: Decoding
    draw: int = 0  # with the decoding's seed, decides what is sampled

    @property
    def settings(self) -> tuple[Any, ...]:
        """What questions must have in common to be answered together."""
        return self.decoding, self.reasoning, self.template


def parse(kind: type[BaseModel], body: bytes) -> Any:
    """Return a request's JSON as a `kind`. InputError names the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))[:80]
        raise InputError(f"{field or 'the request'}: {first['msg']}") from None


def form_as_json(parts: Sequence[tuple[str, str | bytes]]) -> bytes:
    """Return a multipart form as the JSON of a PointRequest: files in base64, fields that are no texts are JSON."""
    record: dict[str, Any] = {}
    for name, value in parts:
        if name in record:
            raise InputError(f"{name[:80]}: it is given twice")
        if isinstance(value, bytes):
            record[name] = base64.b64encode(value).decode()
        elif name in ("image", "instruction", "depth", "depth_unit"):
            record[name] = value
        else:
            try:
                record[name] = from_json(value, allow_inf_nan=False)
            except ValueError:
                raise InputError(f"{name[:80]}: {value[:40]!r} is not JSON") from None
    return json.dumps(record).encode()


def point_question(request: PointRequest, limits: Limits) -> Asked:
    """Return the question of /v1/point."""
    instruction = _instruction(request.instruction)
    decoding = Decoding(
        max_new_tokens=request.max_new_tokens, temperature=request.temperature, seed=request.seed,
        num_points=request.num_points,
    )  # fmt: skip
    content = _content(request.image, "image", limits)
    if request.depth is not None and is_turned(content):
        raise InputError("image: it is stored turned (EXIF orientation), depth and camera are not; send it without")
    return Asked(*_decoded(content, limits), instruction, request.reasoning, None, decoding)


def space_of(
    request: PointRequest, size: tuple[int, int], limits: Limits
) -> tuple[Floats, Camera, Floats | None] | None:
    """Return depth, camera and pose of a request about an image of `size`; None without depth."""
    if request.depth is None:
        if request.intrinsics is not None or request.extrinsics is not None:
            raise InputError("intrinsics and extrinsics need depth too")
        return None
    if request.intrinsics is None:
        raise InputError("depth needs intrinsics too: fx, fy, cx and cy in pixels")
    content = _content(request.depth, "depth", limits)
    if not content.startswith(NPY):
        _check_picture(content, "depth", limits)
    depth = read_depth(content, request.depth_unit, "registered", size)
    camera = camera_of(request.intrinsics, size, "intrinsics")
    return depth, camera, None if request.extrinsics is None else pose_of(request.extrinsics, "extrinsics")


def chat_question(request: ChatRequest, limits: Limits) -> Asked:
    """Return the one question of a conversation.

    A bare instruction is asked as the model was trained; a text that says how to answer is left alone.
    """
    if len(request.messages) != 1 or request.messages[0].role != "user":
        raise InputError("messages: one message of the user is expected, this model answers single questions")
    content = request.messages[0].content
    parts = [Part(type="text", text=content)] if isinstance(content, str) else content
    texts = [part.text or "" for part in parts if part.type == "text"]
    urls = [part.image_url for part in parts if part.type == "image_url"]
    if len(urls) != 1 or urls[0] is None:
        raise InputError(f"messages: {len(urls)} images; the question needs exactly one, as an image_url part")
    url = urls[0] if isinstance(urls[0], str) else urls[0].url
    text = _instruction("\n".join(texts))
    trained = POINTS_SUFFIX in text
    as_it_is = FORMAT_SENTENCE.search(text) is not None and not trained
    decoding = Decoding(
        max_new_tokens=request.max_completion_tokens or request.max_tokens or 512,
        temperature=request.temperature or 0.0, top_p=request.top_p or 1.0, seed=request.seed or 0,
    )  # fmt: skip
    reasoning = REASONING_SUFFIX in text if trained else False if asks_yes_no(text) else None
    image = _decoded(_content(url, "image_url", limits), limits)
    draw = secrets.randbits(64) if request.seed is None else 0  # as OpenAI's: two without a seed are two samples
    return Asked(*image, text, reasoning, PLACEHOLDER if as_it_is else None, decoding, draw)


def _decoded(content: bytes, limits: Limits) -> tuple[Image, str]:
    """Return an upright RGB image and its key. InputError: it is too large, or no image."""
    _check_picture(content, "image", limits)
    try:
        return open_image(content, "of the request"), hashlib.sha256(content).hexdigest()
    except InputError:
        raise InputError("image: it is damaged, or its pixels are of no kind that can be shown") from None


def _check_picture(content: bytes, name: str, limits: Limits) -> None:
    """Look at the header alone, before anything is decoded."""
    try:
        with PillowImage.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = math.prod(image.size)
    except BROKEN_IMAGE:
        raise InputError(f"{name}: it is no picture that can be read; send one of {', '.join(FORMATS)}") from None
    if pixels > limits.pixels:
        raise InputError(f"{name}: {pixels:,} pixels are more than the limit of {limits.pixels:,}")


def _instruction(text: str) -> str:
    if not bare_instruction(text).strip():
        raise InputError("instruction: it is empty; say what to point at")
    if len(text) > LONGEST_INSTRUCTION:
        raise InputError(f"instruction: {len(text):,} characters are more than the limit of {LONGEST_INSTRUCTION:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("instruction: it holds half a character") from None
    return text


def _content(source: str, name: str, limits: Limits) -> bytes:
    """Return the bytes of a file in base64, of a data URI, or at an address of an allowed host."""
    if source.startswith(("http://", "https://")):
        return _fetch(source, name, limits)
    head, comma, data = source.partition(",")
    if source.startswith("data:") and not (comma and head.endswith(";base64")):
        raise InputError(f"{name}: a data URI must be data:image/...;base64,...")
    try:
        content = base64.b64decode(data if source.startswith("data:") else source, validate=True)
    except ValueError:
        raise InputError(f"{name}: it is neither base64 nor a data URI of it") from None
    if not content or len(content) > limits.image_bytes:
        raise InputError(f"{name}: {len(content):,} bytes; from 1 to {limits.image_bytes:,} are allowed")
    return content


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # an allowed host must not lead to another one


def _fetch(url: str, name: str, limits: Limits) -> bytes:
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    if host not in limits.hosts:
        raise InputError(
            f"{name}: pictures are not fetched from {host[:80]!r}; send it as a data URI or allow the host by --allow-urls"
        )
    try:
        with urllib.request.build_opener(_NoRedirects).open(url, timeout=FETCH_SECONDS) as answer:
            content: bytes = answer.read(limits.image_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"{name}: {url[:200]} cannot be fetched: {error}") from None
    if len(content) > limits.image_bytes:
        raise InputError(f"{name}: more than {limits.image_bytes:,} bytes")
    return content
