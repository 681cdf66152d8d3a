"""Our models in the harness lmms-eval, which finds them by the entry point `lmms_eval.models` of this package.

    python -m lmms_eval --model trace_vlm --model_args pretrained=nano --tasks where2place --batch_size 8

A task that asks for a list of points is asked in this project's words instead, with or without reasoning, and gets its
points in the units it asks for. All other questions are asked as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..core.conventions import CONVENTIONS, write
from ..core.points import format_points
from ..core.prompts import FORMAT_SENTENCE
from ..core.reasoning import FINAL_ANSWER, THOUGHTS, THOUGHTS_END
from ..inference.generation import Decoding
from ..inference.predictor import PLACEHOLDER, Prediction, Predictor
from ..utils.command import InputError
from .answering import torchrun_rank

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError:  # lmms-eval is no dependency
    lmms = object

IMAGES = 64  # opened at a time
DECIMALS = 6  # of points that are rewritten: scores stay what they were
_SETTINGS = ("max_new_tokens", "temperature", "top_p", "num_beams")  # of a task that count here
_GRID = re.compile(r"\b(?:999|1000)\b")  # in the request for points: integers on a grid instead of fractions


def manifest() -> Any:
    """Return what lmms-eval registers: the model's name and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("trace_vlm", simple_class_path=f"{__name__}.{TraceVLM.__name__}")


class TraceVLM(lmms):  # type: ignore[misc]
    """A `Predictor` that answers lmms-eval's requests, about one picture each."""

    is_simple = True  # requests hold a text and a function that returns the pictures, not a chat

    def __init__(
        self, pretrained: str, base: str | None = None, reasoning: bool | None = None, dtype: str | None = None,
        device: str | None = None, batch_size: int | str = 1, max_new_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Load a model; under torchrun, every process on a GPU of its own.

        Args:
            pretrained, base, dtype, device: as for `Predictor.load`.
            reasoning: ask for the Chain of Reasoning before the points; by default as the model was trained.
            batch_size: answers generated together; "auto": as many as fit.
            max_new_tokens: by default those of the task, but at least 512: tasks count tokens without reasoning.
        """
        import torch

        super().__init__()
        self._rank, self._world_size, local = torchrun_rank() or (0, 1, 0)
        if self._world_size > 1 and torch.cuda.is_available():
            device = f"cuda:{local % torch.cuda.device_count()}"
        self.predictor = Predictor.load(pretrained, base, device, dtype)
        self.device = self.predictor.checkpoint.model.device
        self.batch_size = None if batch_size == "auto" else int(batch_size)
        self.reasoning, self.max_new_tokens = reasoning, max_new_tokens

    def generate_until(self, requests: Sequence[Any]) -> list[tuple[str, dict[str, int]]]:
        """Return text and number of tokens of every answer, in the order of the requests.

        InputError: a question without a picture, or with several.
        """
        from tqdm import tqdm

        answers: dict[int, tuple[str, dict[str, int]]] = {}
        groups: dict[tuple[Decoding, str | None], list[int]] = {}
        for index, (text, settings, *_) in enumerate(request.args for request in requests):
            given = {name: settings[name] for name in _SETTINGS if settings.get(name)}
            tokens = self.max_new_tokens or max(Decoding().max_new_tokens, given.get("max_new_tokens", 0))
            template = None if FORMAT_SENTENCE.search(text) else PLACEHOLDER
            groups.setdefault((Decoding(**given | {"max_new_tokens": tokens}), template), []).append(index)
        parts = [(key, group[at : at + IMAGES]) for key, group in groups.items() for at in range(0, len(group), IMAGES)]
        with tqdm(total=len(requests), desc="Model Responding", disable=self._rank != 0) as bar:
            for (decoding, template), part in parts:
                texts = [FORMAT_SENTENCE.split(requests[index].args[0], maxsplit=1) for index in part]
                for batch in self.predictor.stream(
                    [self._picture(*requests[index].args[2:]) for index in part], [text[0].strip() for text in texts],
                    decoding, reasoning=self.reasoning, batch_size=self.batch_size, template=template, seeds=part,
                ):  # fmt: skip
                    for at, prediction in batch.items():
                        answer = answer_text(prediction, grid=any(map(_GRID.search, texts[at][1:])))
                        answers[part[at]] = answer, {"output_tokens": len(prediction.token_ids)}
                    bar.update(len(batch))
        return [answers[index] for index in range(len(requests))]

    def _picture(self, doc_to_visual: Callable[[Any], Any], doc_id: int, task: str, split: str) -> Any:
        pictures = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(pictures) != 1:
            where = f"document {doc_id} of the task {task} has {len(pictures)} pictures"
            raise InputError(f"trace_vlm answers questions about one picture: {where}. Leave the task out")
        return pictures[0]

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        raise InputError("trace_vlm writes answers and rates none. Choose tasks of the type generate_until")

    generate_until_multi_round = loglikelihood


def answer_text(prediction: Prediction, grid: bool = False) -> str:
    """Return an answer as parsers of tasks read it: the reasoning between <think> tags, which lmms-eval removes before it
    scores, and points in fractions; with `grid` in integers from 0 to 1000.
    """
    text, response = prediction.text, prediction.response
    start = response.answer_span[0] if response.answer_span else 0
    thoughts, answer = text[:start].strip(), text[start:]
    if prediction.convention != "unit" and response.points:
        answer = f"{FINAL_ANSWER}\n{format_points(response.points, DECIMALS)}"
    if grid:
        answer = write(answer, CONVENTIONS["robobrain2.5"], (1, 1))
    if thoughts and THOUGHTS not in thoughts:
        thoughts = f"{THOUGHTS}\n{thoughts}\n{THOUGHTS_END}"
    return f"{thoughts}\n\n{answer}" if thoughts else answer
