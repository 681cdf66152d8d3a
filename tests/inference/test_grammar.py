"""Answers of a given form: the number of points, the budget, and an answer that has the form anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("llguidance", reason="comes with the extra `constrain`")

from trace_vlm.core.points import Point  # noqa: E402
from trace_vlm.core.prompts import render_prompt  # noqa: E402
from trace_vlm.core.reasoning import STEPS, parse, render  # noqa: E402
from trace_vlm.inference.predictor import Predictor, build_question  # noqa: E402
from trace_vlm.utils.command import InputError  # noqa: E402

TEXTS = ["Point to the mug.", "Find free space between the red mug and the blue box.", "Left of the ball."]
POINTS = [Point(0.461, 0.527), Point(0.5, 0.25)]
WORDS = ["The red mug.", "Left of it.", "A free place.", "Points."]
CANONICAL = {
    "reasoning": render(dict(zip(STEPS, WORDS, strict=True)), POINTS),
    "points": "[(0.461, 0.527), (0.500, 0.250)]",
    "boxes": "[(0.1, 0.2, 0.30, 0.4)]",
}


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_the_number_of_points_is_met(tiny_checkpoint: Any, pictures: list[Path], reasoning: bool, count: int) -> None:
    found = Predictor(tiny_checkpoint).predict(
        pictures, TEXTS, reasoning=reasoning, num_points=count, max_new_tokens=260, batch_size=3
    )
    for one in found:
        assert len(one.response.points) == count == len(one.point_confidence)
        assert all(isinstance(point, Point) and point.inside for point in one.response.points)
        assert ([step.key for step in one.response.steps] == list(STEPS)) is reasoning


@pytest.mark.parametrize("budget", [95, 110, 160])
def test_an_answer_is_readable_whatever_the_budget(tiny_checkpoint: Any, pictures: list[Path], budget: int) -> None:
    """A model of random weights never ends a step by itself."""
    for one in Predictor(tiny_checkpoint).predict(pictures, TEXTS, constrain=True, max_new_tokens=budget):
        assert len(one.token_ids) <= budget
        assert one.response.parsable and len(one.response.steps) == 4, one.text
        assert all(step.text for step in one.response.steps)


def test_a_budget_that_is_too_small_is_said(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    with pytest.raises(InputError, match="--max-new-tokens [0-9]+"):
        Predictor(tiny_checkpoint).predict(pictures, TEXTS, num_points=5, max_new_tokens=20)


def test_batches_do_not_change_constrained_answers(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    one, many = (
        Predictor(tiny_checkpoint).predict(pictures, TEXTS, constrain=True, batch_size=size, max_new_tokens=120)
        for size in (1, 3)
    )
    assert [prediction.token_ids for prediction in one] == [prediction.token_ids for prediction in many]


@contextmanager
def inclined(checkpoint: Any, prompt: str, ids: Sequence[int]) -> Iterator[list[int]]:
    """A model whose most probable answer to `prompt` is `ids`; yields the number of passes over answers."""
    import torch

    passes, written, model = [0], [0], checkpoint.model
    start, end = len(checkpoint.prompt_ids(prompt)), checkpoint.tokenizer.eos_token_id

    def fed(module: Any, arguments: Any, options: Any) -> None:
        written[0] = int(options["position_ids"].max()) + 1 - start

    def scripted(module: Any, arguments: Any, output: Any) -> Any:
        passes[0] += 1
        logits = torch.zeros_like(output)
        logits[:, ids[written[0]] if written[0] < len(ids) else end] = 10.0
        return logits

    hooks = [
        model.model.language_model.register_forward_pre_hook(fed, with_kwargs=True),
        model.lm_head.register_forward_hook(scripted),
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", CANONICAL)
def test_a_canonical_answer_is_not_changed(tiny_checkpoint: Any, pictures: list[Path], kind: str) -> None:
    """Nor its tokens, where the model cuts the text as its tokenizer does; headings cost no passes."""
    text, reasoning = CANONICAL[kind], kind == "reasoning"
    ids = tiny_checkpoint.tokenizer(text, add_special_tokens=False).input_ids
    predictor, prompt = Predictor(tiny_checkpoint), render_prompt(build_question(TEXTS[0], reasoning))
    with inclined(tiny_checkpoint, prompt, ids) as free:
        (plain,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=reasoning)
    with inclined(tiny_checkpoint, prompt, ids) as forced:
        (kept,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=reasoning, constrain=True)
    assert plain.text == kept.text == text
    assert list(kept.token_ids) == list(ids) == list(plain.token_ids)
    assert kept.response == parse(text, Image.open(pictures[0]).size)
    assert forced[0] < free[0]


def test_the_models_own_canonical_answers_are_left_as_they_are(pictures: list[Path]) -> None:
    """The model that ships with the package: whatever it answers in canonical form stays, token by token."""
    predictor = Predictor.load("nano-base")
    plain = predictor.predict(pictures, TEXTS, reasoning=False, max_new_tokens=60)
    kept = predictor.predict(pictures, TEXTS, reasoning=False, max_new_tokens=60, constrain=True)
    canonical = [one for one in plain if one.text.startswith("[(") and one.text.endswith(")]")]
    assert canonical
    for before, after in zip(plain, kept, strict=True):
        assert after.response.parsable
        if before in canonical:
            assert after.token_ids == before.token_ids
