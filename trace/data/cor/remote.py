"""Reasoning from a remote model: the prompt, what is still to be asked, and which responses are kept.

The cache of responses is the only state. A sample's next request, or its accepted text, is read from the cache whenever
it is needed (`RemoteReasoner.state`), so a run that was killed continues where it stopped.
"""

from __future__ import annotations

import asyncio
import io
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...core.images import Images, image_size, open_image
from ...core.points import Box, Point
from ...core.reasoning import STEPS
from ...core.records import FINISHED_AT_LIMIT, Sample
from ...remote.client import Client, Completion, Failure, Limits, Picture, Request, cached_key, read_cached
from ...remote.cost import image_tokens, text_tokens
from ...remote.flags import estimate, model_price, report, server_address
from ...remote.providers import OpenAIChat, Options
from ...utils.command import InputError
from ...utils.files import escapes_folder, replacing
from ...utils.jsonl_index import JsonlIndex
from .checks import SUBTYPES, ReasoningTask, Rejected, answer_text, check, read_steps, reasoning_tasks

if TYPE_CHECKING:
    from PIL.Image import Image

# Tokens of an answer, for the estimate: four steps of one to three sentences as JSON. Hidden thoughts come on top.
EXPECTED_TOKENS = 220

# --- the prompt -------------------------------------------------------------------------------------------------------

# Stands for every word below and for how the points are drawn. It is part of the cache's key, so that a changed prompt
# is asked anew: change it with the wording (a test holds the two together).
VERSION = "cor-1"
SYSTEM = (
    "You write training data for a robot's vision-language model. The model gets an image and an instruction, reasons "
    "in four short steps, and then gives points on the image. You are given the image, the instruction and the correct "
    "points; you write the four steps that lead there, as the model itself would: from the image and the instruction "
    "alone."
)
_TASK = """\
Instruction: {instruction}

The correct points, as (x, y) fractions of the image's width and height from its top left corner: {points}
In the image they are drawn as magenta dots with a white rim. The robot will see neither the dots nor the points.

Write the four steps:
- "reference": which object (or surface) the instruction refers to. Call it by the instruction's own words, and say \
how it can be told apart in the image.
- "target": where, relative to it, the area lies that the instruction asks for, and what bounds it.
- "subtype": whether the goal is "object reference" (the points lie on an object) or "free space reference" (they lie \
where nothing stands){subtype}.
- "output": how the points are chosen within that area.

Every step is one to three plain sentences. State only what the image and the instruction show. Never mention the \
dots, their color, or that an answer was given to you. {coordinates}
Answer with one JSON object whose keys are "reference", "target", "subtype" and "output"."""
_TASK_NONE = """\
Instruction: {instruction}

What it asks for is not there: {none} There are no correct points, and the robot's answer will say so.{instead}

Write the four steps:
- "reference": which object (or surface) the instruction refers to, by its own words, and what in the image is like it.
- "target": that what the instruction asks for is not there, and what is there instead.
- "subtype": whether the goal is "object reference" or "free space reference"{subtype}.
- "output": that no points are given, and why.

Every step is one to three plain sentences. State only what the image and the instruction show. Never mention that an \
answer was given to you. {coordinates}
Answer with one JSON object whose keys are "reference", "target", "subtype" and "output"."""
_NO_COORDINATES = "Write no coordinates, percentages or pixel numbers in any step."
_COORDINATES = "After the name of each object, write its place in brackets: (x, y), fractions with three decimals."
_AGAIN = "\n\nThese earlier texts of yours were not accepted; write a better one:\n{reasons}"
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in STEPS},
    "required": list(STEPS),
    "additionalProperties": False,
}
DOT = "#ff00ff"


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """How remote models are asked."""

    image_folder: Path
    version: str  # VERSION and everything else that shapes the answers
    coordinates: bool = False
    decimals: int = 3
    max_side: int = 1024  # pixels of the longer side of the picture that is sent


def first_request(task: ReasoningTask, config: PromptConfig) -> Request:
    """The first request about a sample. The picture is drawn only when it is sent.

    Raises:
        ValueError: there is no image, or the answer has too many decimals, so that paying for a text would be in vain.
    """
    image = task.sample.image
    if image is None:
        raise ValueError("the sample has no image")
    if escapes_folder(image):
        raise ValueError(f"the name {image!r} leaves the image folder; no such picture is sent")
    seen = task.facts.absent.instead if task.facts and task.facts.absent else ()
    text = (_TASK if task.none is None else _TASK_NONE).format(
        instruction=task.instruction,
        none=task.none,
        instead=f" Seen instead: {', '.join(item.phrase for item, _ in seen)}." if seen else "",
        points=answer_text(task, config.decimals),
        subtype=f'; here it is "{SUBTYPES[task.facts.task]}"' if task.facts else "",
        coordinates=_COORDINATES if config.coordinates else _NO_COORDINATES,
    )
    picture = partial(_picture, Images(config.image_folder).path(image), task.points, config.max_side)
    return Request(task.sample.id, config.version, text, SYSTEM, picture, image, SCHEMA)


def retry_request(first: Request, reasons: Sequence[str]) -> Request:
    """The first request once more, with the reasons why the texts so far were rejected."""
    listed = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))
    return replace(first, text=first.text + _AGAIN.format(reasons=listed), attempt=len(reasons) + 1)


_LOCKS = tuple(Lock() for _ in range(16))


def _picture(path: Path, points: Sequence[Point | Box], max_side: int) -> Picture:
    with _LOCKS[hash(path) % len(_LOCKS)]:  # threads that want the same image wait for the first to read it
        image = _open_scaled(path, max_side)
    buffer = io.BytesIO()
    draw_answer(image.copy(), points).save(buffer, "JPEG", quality=90)
    return Picture(buffer.getvalue())


@lru_cache(maxsize=16)  # samples of one image stand together; at most 16 x 3 MB at the default size
def _open_scaled(path: Path, max_side: int) -> Image:
    image = open_image(path)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side))
    return image


def draw_answer(image: Image, points: Sequence[Point | Box]) -> Image:
    """Draw a dot for each point and an outline for each box, with PIL: matplotlib takes fifty times as long."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    radius = max(3.0, max(image.size) / 110)
    rim = max(1, round(radius / 3))
    for item in points:
        if isinstance(item, Box):
            draw.rectangle(item.to_pixels(*image.size), outline=DOT, width=max(2, rim))
            continue
        x, y = item.to_pixels(*image.size)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=DOT, outline="white", width=rim)
    return image


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RequestPlan:
    """What is still to be asked, and roughly how many tokens that takes (retries are not counted)."""

    samples: int = 0
    requests: int = 0
    tokens_in: int = 0
    first: Request | None = None


@dataclass(slots=True)
class RemoteReasoner:
    """Asks a remote model for the steps of samples.

    Args:
        lookup: the cached response to a request, None if there is none.
        retries: how often a sample is asked again after a text that was rejected.
    """

    config: PromptConfig
    lookup: Callable[[Request], Completion | None]
    retries: int
    failures: dict[str, str] = field(default_factory=dict)  # by sample id

    def state(self, task: ReasoningTask) -> dict[str, str] | Request:
        """The accepted steps, or the next request. ValueError gives the reason if there will be no steps."""
        first = request = first_request(task, self.config)
        reasons: list[str] = []
        while completion := self.lookup(request):
            try:
                return _accepted_steps(completion, task, self.config.coordinates)
            except Rejected as error:
                reasons.append(str(error))
            if len(reasons) > self.retries:
                raise Rejected(f"asked {len(reasons)} times; the last text was rejected: {reasons[-1]}")
            request = retry_request(first, reasons)
        return request

    def next_request(self, task: ReasoningTask) -> Request | None:
        try:
            state = self.state(task)
        except ValueError:
            return None
        return state if isinstance(state, Request) else None

    def steps(self, task: ReasoningTask) -> Mapping[str, str]:
        """The steps of a sample. ValueError gives the reason if there are none."""
        state = self.state(task)
        if isinstance(state, Request):
            raise ValueError(self.failures.get(task.sample.id, "it was not asked"))
        return state

    def plan(self, tasks: Iterable[ReasoningTask], provider: str) -> RequestPlan:
        """Count what is still to be asked. Images are opened for their size only; an unreadable one costs nothing."""
        plan, folder = RequestPlan(), Images(self.config.image_folder)
        for task in tqdm(tasks, desc="counting", unit=" samples", leave=False):
            plan.samples += 1
            if request := self.next_request(task):
                plan.first = plan.first or request
                plan.requests += 1
                plan.tokens_in += text_tokens(request.system) + text_tokens(request.text)
                plan.tokens_in += _image_tokens(folder.path(task.sample.image or ""), provider, self.config.max_side)
        return plan

    async def ask(self, tasks: Iterable[ReasoningTask], client: Client, total: int) -> None:
        """Ask until every sample is settled: accepted, rejected or failed."""
        waiting: dict[str, ReasoningTask] = {}

        def requests() -> Iterator[Request]:
            for task in tasks:
                if request := self.next_request(task):
                    waiting[task.sample.id] = task
                    yield request

        def retry(request: Request, _: Completion) -> Request | None:
            return self.next_request(waiting[request.item])  # the response is in the cache by now

        try:
            with tqdm(total=total, desc="asking", unit=" samples", smoothing=0.02) as bar:
                async for result in client.ask(requests(), retry):
                    del waiting[result.request.item]
                    if isinstance(result, Failure):
                        self.failures[result.request.item] = result.reason
                    errors = client.figures.http_errors.total()
                    bar.set_postfix(failed=len(self.failures), http_errors=errors, refresh=False)
                    bar.update()
        finally:
            await client.provider.close()


def _accepted_steps(completion: Completion, task: ReasoningTask, coordinates: bool) -> dict[str, str]:
    if not completion.text.strip():
        raise Rejected(f"no text came back ({completion.finish})")
    if completion.finish in FINISHED_AT_LIMIT:
        raise Rejected("the text was cut off at the limit of output tokens")
    steps = read_steps(completion.text)
    check(steps, task, coordinates)
    return steps


@lru_cache(maxsize=1024)  # samples of one image stand together
def _image_tokens(path: Path, provider: str, max_side: int) -> int:
    try:
        size = image_size(path)
    except InputError:
        return 0
    scale = min(1.0, max_side / max(size))
    return image_tokens(provider, round(size[0] * scale), round(size[1] * scale))


# --- the run ----------------------------------------------------------------------------------------------------------


def build_remote(
    args: Namespace, samples: Callable[[], Iterable[Sample]], write: Callable[..., dict[str, Any]]
) -> dict[str, Any] | None:
    """Estimate, ask for what is missing, and call `write(steps of a task, figures)`; return the counts.

    The samples are read three times, one at a time: to count what is still to be asked, to ask it, and to write the
    result in the order of the data from the cache of responses. A dry run ends after the first and returns None.
    """
    options = Options(
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        thinking_budget=args.thinking_budget,
        structured=not args.no_structured_output,
    )
    version = _version(args, options)
    config = PromptConfig(args.images, version, args.coordinates, args.decimals, args.max_side)
    price = model_price(args)
    cache = args.cache or args.out.with_name(args.out.name + ".cache.jsonl")

    def tasks() -> Iterator[ReasoningTask]:
        return reasoning_tasks(samples(), lambda *_: None)

    def planned(reasoner: RemoteReasoner) -> RequestPlan:
        plan = reasoner.plan(tasks(), args.reasoner)
        print(f"{plan.samples} samples, {plan.requests} requests to {args.reasoner} {args.model}, without retries")
        if plan.requests:
            print(estimate(args, plan.requests, plan.tokens_in, EXPECTED_TOKENS, price), flush=True)
        return plan

    if args.dry_run:
        with JsonlIndex(cache, cached_key) as index:
            lookup = partial(read_cached, index, model=args.model)
            first = planned(RemoteReasoner(config, lookup, args.ask_again)).first
        if first is not None and first.picture is not None:
            path = args.out.with_name(args.out.name + ".example.jpg")
            with replacing(path) as temporary:
                temporary.write_bytes(first.picture().data)
            print(
                f"\n--- the first request ({first.item}) ---\n{first.system}\n\n{first.text}\n---\nits picture: {path}"
            )
        return None
    provider = OpenAIChat(args.reasoner, args.model, args.base_url, options, args.timeout, args.tries)
    limits = Limits(args.concurrency, args.requests_per_minute, args.tokens_per_minute)
    with Client(provider, cache, limits) as client:
        reasoner = RemoteReasoner(config, client.cached, args.ask_again)
        if requests := planned(reasoner).requests:
            asyncio.run(reasoner.ask(tasks(), client, requests))
            print(report(client.figures, price))
        figures = {"prompt": version, "remote": client.figures.as_json(), "price": price and asdict(price)}
        return write(reasoner.steps, figures)


def _version(args: Namespace, options: Options) -> str:
    """The prompt's version with the options that shape an answer, and the server if it is not the provider's own."""
    parts = {
        "temperature": options.temperature,
        "thinking": options.thinking_budget,
        "side": args.max_side,
        "limit": options.max_new_tokens,
        "coordinates": args.coordinates or None,
        "free-form": not options.structured or None,
        "server": server_address(args.reasoner, args.base_url),
    }
    return " ".join([VERSION, *(f"{name}={value}" for name, value in parts.items() if value is not None)])
