"""Answers requests in batches: those that arrive while the model answers, or within a short window, share the next one.

One thread asks the model. Requests with the same settings are answered together; the features of recent images are kept.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..inference.generation import Decoding
from ..inference.vision_cache import RecentImages
from ..utils.command import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.predictor import Prediction, Predictor

RECENT_IMAGES = 64  # whose features are kept


class QueueFull(RuntimeError):
    """There are as many waiting requests as are allowed."""


@dataclass(slots=True)
class Job:
    """A question on its way through the engine; `future` gets its prediction."""

    image: Image
    key: str  # the same for the same image
    instruction: str
    decoding: Decoding
    reasoning: bool
    template: str | None
    deadline: float  # of time.monotonic
    on_text: Callable[[str], object] | None = None  # called with the text so far, from the engine's thread
    future: Future[Prediction] = field(default_factory=Future)

    @property
    def settings(self) -> tuple[Any, ...]:
        return self.decoding, self.reasoning, self.template

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.future.done() and time.monotonic() < self.deadline


class _NobodyWaits(Exception):
    """Ends the generation of a batch whose requests have all been cancelled."""


class Engine:
    """The model's thread and its queue."""

    def __init__(
        self,
        predictor: Predictor,
        window: float,
        most_waiting: int,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        """Args:
        window: seconds to wait for more requests after the first one of a batch.
        most_waiting: requests in the queue beyond which `submit` refuses.
        observe: called with the size of every batch.
        """
        self.predictor, self.window, self.most_waiting, self.observe = predictor, window, most_waiting, observe
        self._cache = RecentImages(predictor.checkpoint, RECENT_IMAGES)
        self._waiting: deque[Job] = deque()
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> Future[Prediction]:
        """Queue a question. QueueFull: too many are waiting."""
        with self._changed:
            if len(self._waiting) >= self.most_waiting:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Answer what is queued, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next_batch():
            self.observe(len(jobs))
            try:
                self._answer(jobs)
            except _NobodyWaits:
                pass
            except InputError as error:  # of one question; the others are answered without it
                for job in jobs:
                    if len(jobs) == 1:
                        job.future.set_exception(error)
                    elif job.wanted:
                        self._answer_alone(job)
            except BaseException as error:  # noqa: BLE001 (handed to whoever asked; the thread goes on)
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _answer_alone(self, job: Job) -> None:
        try:
            self._answer([job])
        except BaseException as error:  # noqa: BLE001 (as above)
            if not job.future.done():
                job.future.set_exception(error)

    def _next_batch(self) -> list[Job]:
        """Wait for a request and for what arrives in the window; [] at the end."""
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return []
                self._changed.wait()
            until = time.monotonic() + self.window
            while (left := until - time.monotonic()) > 0 and not self._stopping:
                self._changed.wait(left)
            waiting = [job for job in self._waiting if job.wanted]
            batch = [job for job in waiting if job.settings == waiting[0].settings] if waiting else []
            kept = {id(job) for job in batch}
            self._waiting = deque(job for job in waiting if id(job) not in kept)
        return batch or self._next_batch()

    def _answer(self, jobs: Sequence[Job]) -> None:
        tokenizer = self.predictor.checkpoint.tokenizer

        def on_step(rows: Sequence[Any]) -> None:
            if not any(job.wanted for job in jobs):
                raise _NobodyWaits
            for row in rows:
                if (tell := jobs[row.position].on_text) is not None:
                    tell(str(tokenizer.decode(row.token_ids, skip_special_tokens=True)))

        images, keys = [job.image for job in jobs], [job.key for job in jobs]
        decoding, reasoning, template = jobs[0].settings
        batches = self.predictor.stream(
            images, [job.instruction for job in jobs], decoding, reasoning=reasoning, template=template, keys=keys,
            cache=self._cache, batch_size=None, on_step=on_step, seeds=[0] * len(jobs),
        )  # fmt: skip
        for predictions in batches:
            for position, prediction in predictions.items():
                if not jobs[position].future.done():
                    jobs[position].future.set_result(prediction)
