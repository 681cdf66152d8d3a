"""Generation by models of every family: batches, sampling, grammars, beams, and their own conventions of coordinates."""

import json

import pytest
from forced_answers import saying
from small_benchmark import picture
from tiny_models import FAMILIES

from trace_vlm.core.conventions import CONVENTIONS
from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.demo.session import ask, with_attention
from trace_vlm.inference.predictor import Predictor
from trace_vlm.model.checkpoint import load
from trace_vlm.utils.command import InputError

PICTURES = [picture(seed, size) for seed, size in enumerate([(61, 40), (33, 50), (150, 60)])]
TEXTS = ["Point to the mug.", "Find free space between the red mug and the blue box on the table.", "Left of the ball."]
WAYS = {
    "greedy": {}, "sampled": {"temperature": 1.5, "samples": 2}, "beams": {"num_beams": 2},
    "biased": {"image_attention_bias": 3.0},
    "points": {"reasoning": False, "num_points": 2, "max_new_tokens": 80, "temperature": 1.0},
}  # fmt: skip


@pytest.fixture
def predictor_of(family_folder):
    def make(family, coordinates="unit"):
        checkpoint = load(family_folder(family))
        checkpoint.model.get_output_embeddings().weight.data.mul_(20)  # far from a tie between two tokens
        checkpoint.coordinates = coordinates
        return Predictor(checkpoint)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_its_batch(predictor_of, family):
    predictor, answers = predictor_of(family), {}
    checkpoint = predictor.checkpoint
    for name, options in WAYS.items():
        options = {"max_new_tokens": 10} | options
        alone, answers[name] = (predictor.predict(PICTURES, TEXTS, batch_size=size, **options) for size in (1, 3))
        assert [(a.token_ids, a.samples) for a in alone] == [(a.token_ids, a.samples) for a in answers[name]]
    assert all(len(answer.response.points) == 2 == len(answer.point_confidence) for answer in answers["points"])
    begin = checkpoint.tokenizer.decode(answers["points"][0].token_ids)  # as the template begins an answer
    assert begin.startswith(" [(" if family == "smolvlm" else "[(")
    inputs = checkpoint.inputs(PICTURES[1:2], [answers["greedy"][1].prompt])
    options = {"suppress_tokens": checkpoint.suppressed_ids, "max_new_tokens": 10, "do_sample": False}
    plain = checkpoint.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(answers["greedy"][1].token_ids) == checkpoint.until_end(plain)


@pytest.mark.parametrize("name", sorted({*CONVENTIONS} - {"unit"}))
def test_a_model_is_asked_and_read_in_its_own_convention(predictor_of, name):
    predictor, how = predictor_of("qwen3_vl", name), CONVENTIONS[name]
    sent = predictor.checkpoint.seen_size(PICTURES[0])
    with saying(predictor.checkpoint, how.write([how.numbers((0.25, 0.5), sent)])):
        (answer,) = predictor.predict(PICTURES[:1], [f"Point to the mug. {POINTS_SUFFIX}"], reasoning=False)
    assert how.points in answer.prompt and POINTS_SUFFIX not in answer.prompt
    assert (answer.convention, answer.sent) == (name, sent) and answer.point_confidence == (1.0,)
    assert [(point.x, point.y) for point in answer.response.points] == [pytest.approx((0.25, 0.5), abs=0.01)]
    with pytest.raises(InputError, match="--num-points.*Leave them out"):
        predictor.predict(PICTURES[:1], TEXTS[:1], num_points=2)
    (own,) = predictor.predict(PICTURES[:1], TEXTS[:1], template="Where? {instruction}", max_new_tokens=1)
    assert "Where? Point to the mug.<" in own.prompt


def test_the_demo_streams_an_answer_and_can_be_stopped(predictor_of):
    predictor, text = predictor_of("qwen3_vl", "qwen3-vl"), json.dumps([{"point_2d": [250, 500], "label": "target"}])
    with saying(predictor.checkpoint, text):
        *texts, answer = ask(predictor, "tiny", PICTURES[0], TEXTS[0])
    assert len(texts) > 5 and texts[-1] == text and text.startswith(texts[0])
    attention = with_attention(answer, predictor, PICTURES[0]).attention
    assert answer.prediction.response.points == attention.response.points == (Point(0.25, 0.5),)
    assert attention.maps.shape == (5, 24, 24)
    stopped = ask(predictor, "tiny", PICTURES[0], TEXTS[0], max_new_tokens=3000)
    next(stopped)
    stopped.close()
