"""Answers of a given form: the number of points, the budget, and an answer that has the form anyway."""

from contextlib import contextmanager

import pytest
import torch
from PIL import Image

pytest.importorskip("llguidance", reason="comes with the extra `constrain`")

from trace_vlm.core.points import Point  # noqa: E402
from trace_vlm.core.prompts import render_prompt  # noqa: E402
from trace_vlm.core.reasoning import STEPS, parse, render  # noqa: E402
from trace_vlm.inference.predictor import build_question  # noqa: E402
from trace_vlm.utils.command import InputError  # noqa: E402

TEXTS = ["Point to the mug.", "Find free space between the red mug and the blue box.", "Left of the ball."]
WORDS = ["The red mug.", "Left of it.", "A free place.", "Points."]
CANONICAL = {
    "reasoning": render(dict(zip(STEPS, WORDS, strict=True)), [Point(0.461, 0.527), Point(0.5, 0.25)]),
    "points": "[(0.461, 0.527), (0.500, 0.250)]", "boxes": "[(0.1, 0.2, 0.30, 0.4)]",
}  # fmt: skip


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_the_number_of_points_is_met(predictor, pictures, reasoning, count):
    options = {"reasoning": reasoning, "num_points": count, "max_new_tokens": 260}
    for answer in predictor.predict(pictures, TEXTS, **options):
        assert len(answer.response.points) == count == len(answer.point_confidence)
        assert all(isinstance(point, Point) and point.inside for point in answer.response.points)
        assert ([step.key for step in answer.response.steps] == list(STEPS)) is reasoning


@pytest.mark.parametrize("budget", [95, 110, 160])
def test_an_answer_is_readable_whatever_the_budget_and_the_batch(predictor, pictures, budget):
    with pytest.raises(InputError, match="--max-new-tokens [0-9]+"):
        predictor.predict(pictures, TEXTS, num_points=5, max_new_tokens=20)  # too few for any answer
    options = {"constrain": True, "max_new_tokens": budget}
    single, batch = (predictor.predict(pictures, TEXTS, batch_size=size, **options) for size in (1, 3))
    assert [answer.token_ids for answer in single] == [answer.token_ids for answer in batch]
    for answer in batch:  # random weights never end a step by themselves
        assert len(answer.token_ids) <= budget and answer.response.parsable, answer.text
        assert [bool(step.text) for step in answer.response.steps] == [True] * 4, answer.text


@contextmanager
def inclined(checkpoint, prompt, ids):
    """A model whose most probable answer to `prompt` is `ids`; yields the number of passes over answers."""
    passes, written, model = [0], [0], checkpoint.model
    start, end = len(checkpoint.prompt_ids(prompt)), checkpoint.tokenizer.eos_token_id

    def fed(module, arguments, options):
        written[0] = int(options["position_ids"].max()) + 1 - start

    def scripted(module, arguments, output):
        passes[0] += 1
        logits = torch.zeros_like(output)
        logits[:, ids[written[0]] if written[0] < len(ids) else end] = 10.0
        return logits

    feeding = model.model.language_model.register_forward_pre_hook(fed, with_kwargs=True)
    with feeding, model.lm_head.register_forward_hook(scripted):
        yield passes


@pytest.mark.parametrize("kind", CANONICAL)
def test_a_canonical_answer_is_not_changed(predictor, pictures, kind):
    """Nor its tokens, where the model cuts the text as its tokenizer does; headings cost no passes."""
    text, reasoning, checkpoint = CANONICAL[kind], kind == "reasoning", predictor.checkpoint
    ids = checkpoint.tokenizer(text, add_special_tokens=False).input_ids
    prompt = render_prompt(build_question(TEXTS[0], reasoning))
    with inclined(checkpoint, prompt, ids) as free:
        (plain,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=reasoning)
    with inclined(checkpoint, prompt, ids) as forced:
        (kept,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=reasoning, constrain=True)
    assert plain.text == kept.text == text and list(kept.token_ids) == list(ids) == list(plain.token_ids)
    assert kept.response == parse(text, Image.open(pictures[0]).size) and forced[0] < free[0]


@pytest.mark.parametrize("reasoning", [True, False])
def test_an_answer_may_say_that_there_is_nothing_unless_points_are_asked_for(predictor, pictures, reasoning):
    steps, checkpoint = dict(zip(STEPS, WORDS, strict=True)) if reasoning else {}, predictor.checkpoint
    text = render(steps, [], none="there is no mug.") if reasoning else "None: there is no mug."
    ids = checkpoint.tokenizer(text, add_special_tokens=False).input_ids
    with inclined(checkpoint, render_prompt(build_question(TEXTS[0], reasoning)), ids):
        (answer,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=reasoning, constrain=True)
        (pointed,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=reasoning, num_points=2, max_new_tokens=260)
    assert answer.response.none and 0 < answer.confidence <= 1 and answer.point_confidence == ()
    assert len(answer.response.steps) == len(steps) and len(pointed.response.points) == 2
