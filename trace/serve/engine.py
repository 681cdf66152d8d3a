"""Answers questions in batches: those that arrive while the model answers, or within a short window, share the next one.

One thread asks the model. Questions with the same settings are answered together; the features of recent images are kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..inference.vision_cache import RecentImages

if TYPE_CHECKING:
    from ..inference.predictor import Prediction, Predictor
    from .requests import Asked

RECENT_IMAGES = 64  # whose features are kept


@dataclass(slots=True, eq=False)
class Job:
    """A question on its way through the engine; `future` gets its prediction, from the engine's thread alone."""

    asked: Asked
    deadline: float  # of time.monotonic
    on_text: Callable[[str], object] | None = None  # called with the text so far, from the engine's thread
    future: Future[Prediction] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    given_up: bool = False  # set by the one who asked

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not (self.given_up or self.future.done()) and time.monotonic() < self.deadline


class _NobodyWaits(Exception):
    """Ends the generation of a batch whose questions have all been given up."""


class Engine:
    """The model's thread and its queue."""

    def __init__(
        self, predictor: Predictor, window: float, most: int, observe: Callable[[int], object] = lambda size: None
    ) -> None:
        """Args:
        window: seconds after a question's arrival in which others may join its batch.
        most: questions in a batch.
        observe: called with the size of every batch.
        """
        self.predictor, self.window, self.most, self.observe = predictor, window, most, observe
        self._cache = RecentImages(predictor.checkpoint, RECENT_IMAGES)
        self._waiting: list[Job] = []
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a question."""
        job.future.set_running_or_notify_cancel()  # so that nobody can cancel it while it gets its answer
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Answer what is queued, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next_batch():
            self.observe(len(jobs))
            self._answer_all(jobs)

    def _next_batch(self) -> list[Job]:
        """Wait for a question and for what arrives in its window; [] at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return []
                until = self._waiting[0].arrived + self.window
                self._changed.wait_for(lambda: self._stopping, until - time.monotonic())
                wanted = [job for job in self._waiting if job.wanted]
                batch = [job for job in wanted if job.asked.settings == wanted[0].asked.settings][: self.most]
                self._waiting = [job for job in wanted if job not in batch]
            if batch:
                return batch

    def _answer_all(self, jobs: Sequence[Job]) -> None:
        """Answer questions together; if that fails, each by itself, so that it fails alone."""
        try:
            self._answer(jobs)
        except _NobodyWaits:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again in the task that asked; the thread goes on)
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                if job.wanted:
                    self._answer_all([job])

    def _answer(self, jobs: Sequence[Job]) -> None:
        tokenizer, asked = self.predictor.checkpoint.tokenizer, [job.asked for job in jobs]

        def on_step(rows: Sequence[Any]) -> None:
            if not any(job.wanted for job in jobs):
                raise _NobodyWaits
            for row in rows:
                if (tell := jobs[row.position].on_text) is not None:
                    tell(str(tokenizer.decode(row.token_ids, skip_special_tokens=True)).strip())

        batches = self.predictor.stream(
            [one.image for one in asked], [one.instruction for one in asked], asked[0].decoding,
            reasoning=asked[0].reasoning, template=asked[0].template, keys=[one.key for one in asked],
            cache=self._cache, batch_size=None, on_step=on_step, seeds=[one.draw for one in asked],
        )  # fmt: skip
        for predictions in batches:
            for position, prediction in predictions.items():
                jobs[position].future.set_result(prediction)
