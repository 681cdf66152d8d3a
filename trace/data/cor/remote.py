"""Reasoning from a remote model: who is still to be asked, what was answered, what of it may be kept.

The cache of responses is the only state. What a sample's next request is, or which of its texts was accepted, is read
off it again whenever it is needed (`Conversations.state`), so a run that was killed continues where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...core.image_folder import Images
from ...core.images import image_size
from ...core.records import FINISHED_AT_LIMIT
from ...remote.client import Client, Completion, Failure, Request
from ...remote.cost import image_tokens, text_tokens
from ...utils.command import InputError
from .checks import Rejected, check, read_steps
from .prompt import Writing, asked_again, request_for
from .tasks import Task

# Tokens of an answer, for the estimate: four steps of one to three sentences as JSON. Hidden thoughts come on top.
EXPECTED_TOKENS = 220


@dataclass(frozen=True, slots=True)
class Conversations:
    """What has been said about each sample, by the cache of responses that `known` reads."""

    known: Callable[[Request], Completion | None]
    writing: Writing
    ask_again: int  # how often a sample is asked again after a text that was rejected
    _accepted: dict[str, int] = field(default_factory=dict)  # sample -> the attempt that passed: none is checked twice

    def accepts(self, request: Request, completion: Completion, task: Task) -> bool:
        """Whether a response may be kept; one that may is not judged again by `state`."""
        try:
            judged(completion, task, self.writing)
        except Rejected:
            return False
        self._accepted[request.item] = request.attempt
        return True

    def state(self, task: Task) -> dict[str, str] | Rejected | Request:
        """The accepted steps; or why there are none and will be none; or what to ask next."""
        try:
            first = request = request_for(task, self.writing)
        except ValueError as error:
            return Rejected(str(error))
        reasons: list[str] = []
        while True:
            completion = self.known(request)
            if completion is None:
                return request
            try:
                if self._accepted.get(request.item) == request.attempt:
                    return read_steps(completion.text)
                steps = judged(completion, task, self.writing)
                self._accepted[request.item] = request.attempt
                return steps
            except Rejected as error:
                reasons.append(str(error))
            if len(reasons) > self.ask_again:
                return Rejected(f"asked {len(reasons)} times; the last text was rejected: {reasons[-1]}")
            request = asked_again(first, reasons)


def judged(completion: Completion, task: Task, writing: Writing) -> dict[str, str]:
    """The steps of a response; Rejected when they may not be kept."""
    if not completion.text.strip():
        raise Rejected(f"no text came back ({completion.finish})")
    if completion.finish in FINISHED_AT_LIMIT:
        raise Rejected("the text was cut off at the limit of output tokens")
    steps = read_steps(completion.text)
    check(steps, task.instruction, task.facts, writing.rules)
    return steps


@dataclass(slots=True)
class Plan:
    """What is still to be asked, and roughly how many tokens that takes (texts asked again not counted)."""

    samples: int = 0
    requests: int = 0
    tokens_in: int = 0
    first: Request | None = None


def planned(tasks: Iterable[Task], conversations: Conversations, provider: str) -> Plan:
    """Count what is still to be asked. Images are opened for their size only; one that cannot be read costs nothing."""
    plan, folder = Plan(), Images(conversations.writing.image_folder)
    sizes: dict[str, int] = {}
    for task in tasks:
        plan.samples += 1
        state = conversations.state(task)
        if not isinstance(state, Request):
            continue
        plan.first = plan.first or state
        plan.requests += 1
        name = task.sample.image or ""
        if name not in sizes:
            if len(sizes) > 100_000:  # samples of one image stand together
                sizes.clear()
            sizes[name] = _tokens(folder.path(name), provider, conversations.writing.max_side)
        plan.tokens_in += text_tokens(state.system) + text_tokens(state.text) + sizes[name]
    return plan


def _tokens(path: Path, provider: str, max_side: int) -> int:
    try:
        size = image_size(path)
    except InputError:
        return 0
    scale = min(1.0, max_side / max(size))
    return image_tokens(provider, round(size[0] * scale), round(size[1] * scale))


@dataclass(slots=True)
class Asking:
    """One pass over the samples in which all that is still to be asked is asked; failures by sample id."""

    conversations: Conversations
    failures: dict[str, str] = field(default_factory=dict)
    _open: dict[str, Task] = field(default_factory=dict)

    async def run(self, tasks: Iterable[Task], client: Client, settled: Callable[[], object]) -> None:
        """Ask until every sample is settled; `settled` is called for each."""
        async for result in client.ask(self._requests(tasks), self._next):
            self._open.pop(result.request.item)
            if isinstance(result, Failure):
                self.failures[result.request.item] = result.reason
            settled()

    def _requests(self, tasks: Iterable[Task]) -> Iterator[Request]:
        for task in tasks:
            state = self.conversations.state(task)
            if isinstance(state, Request):
                self._open[task.sample.id] = task
                yield state

    def _next(self, request: Request, completion: Completion) -> Request | None:
        task = self._open[request.item]
        if self.conversations.accepts(request, completion, task):
            return None
        state = self.conversations.state(task)
        return state if isinstance(state, Request) else None
