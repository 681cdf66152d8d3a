"""Batched generation against a plain loop, sampling that can be resumed, confidence, and `trace-vlm predict`."""

import copy
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forced_answers import saying
from PIL import Image
from transformers import AttentionInterface

from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import parse
from trace_vlm.inference import predictor as module
from trace_vlm.inference.answer import answer_record
from trace_vlm.inference.confidence import agreement, medoid, point_confidence
from trace_vlm.inference.generation import PASS_TOKENS, AnswerRow, Decoding, generate_with_transformers
from trace_vlm.inference.predict import format_prediction, main
from trace_vlm.inference.predictor import Prediction, Predictor, make_batches
from trace_vlm.inference.vision_cache import pass_bytes, row_bytes
from trace_vlm.model.attention_recorder import image_bias, language_attention
from trace_vlm.utils.command import InputError

TEXTS = ["Point to the mug.", "Find free space between the red mug and the blue box on the table.", "Left of the ball."]


def ids_of(predictions):
    return [list(prediction.token_ids) for prediction in predictions]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_longer_than_the_model_is_refused(predictor, pictures, beams):
    with pytest.raises(InputError, match="tiny"):
        predictor.predict(pictures[:1], ["Point. " * 1000], max_new_tokens=2, num_beams=beams)


def plain_greedy(checkpoint, image, prompt, steps):
    """One forward pass over everything for each token: no cache, no padding, no batch."""
    inputs = checkpoint.inputs([Image.open(image).convert("RGB")], [prompt])
    ids, answer = inputs["input_ids"], []
    for _ in range(steps):
        with torch.no_grad():
            logits = checkpoint.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        logits[len(checkpoint.tokenizer) :] = logits[checkpoint.image_token_id] = -torch.inf
        token = int(logits.argmax())
        if token == checkpoint.tokenizer.eos_token_id:
            break
        answer.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return answer


@pytest.mark.parametrize("reasoning", [True, False])
def test_batched_answers_equal_a_plain_greedy_loop(predictor, tiny_checkpoint, pictures, reasoning):
    predictions = predictor.predict(pictures, TEXTS, reasoning=reasoning, max_new_tokens=12)
    for prediction, image in zip(predictions, pictures, strict=True):
        assert list(prediction.token_ids) == plain_greedy(tiny_checkpoint, image, prediction.prompt, 12)
        text = tiny_checkpoint.tokenizer.decode(prediction.token_ids, skip_special_tokens=True)
        assert prediction.text == text.strip()
    assert len({prediction.token_ids for prediction in predictions}) > 1


@pytest.mark.parametrize("beams", [1, 2])
def test_the_end_token_ends_an_answer(predictor, tiny_checkpoint, pictures, beams):
    """The end token is replaced by one that the model writes soon: rows then end at different steps."""
    before = predictor.predict(pictures, TEXTS, max_new_tokens=10)
    tokenizer, end = tiny_checkpoint.tokenizer, before[0].token_ids[2]
    original, tokenizer.eos_token_id = tokenizer.eos_token_id, end
    try:
        after = predictor.predict(pictures, TEXTS, max_new_tokens=10, num_beams=beams)
    finally:
        tokenizer.eos_token_id = original
    assert all(end not in prediction.token_ids for prediction in after)
    if beams == 1:
        for old, new in zip(before, after, strict=True):
            assert new.token_ids == old.token_ids[: [*old.token_ids, end].index(end)]
            assert old.cut and new.cut == (end not in old.token_ids)


def test_ids_that_are_no_text_are_never_generated(predictor, tiny_checkpoint, pictures):
    limit, image = len(tiny_checkpoint.tokenizer), tiny_checkpoint.image_token_id
    assert tiny_checkpoint.model.lm_head.out_features > limit  # padded, otherwise this shows nothing

    def prefer_others(module, inputs, logits):
        logits[..., [image, *range(limit, logits.shape[-1])]] += 1000

    with tiny_checkpoint.model.lm_head.register_forward_hook(prefer_others):
        predictions = predictor.predict(pictures, TEXTS, max_new_tokens=10)
    assert all(token < limit and token != image for prediction in predictions for token in prediction.token_ids)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_checkpoints_own_generation_settings_are_not_used(predictor, tiny_checkpoint, pictures, monkeypatch, beams):
    own = copy.deepcopy(tiny_checkpoint.model.generation_config)
    expected = predictor.predict(pictures, TEXTS, max_new_tokens=8, num_beams=beams)
    own.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1, max_length=3)
    monkeypatch.setattr(tiny_checkpoint.model, "generation_config", own)
    assert ids_of(predictor.predict(pictures, TEXTS, max_new_tokens=8, num_beams=beams)) == ids_of(expected)


@pytest.mark.parametrize("beams", [1, 2])
def test_sampling_is_seeded_and_leaves_the_global_generator_alone(predictor, pictures, beams):
    def sample(seed):
        options = {"max_new_tokens": 8, "batch_size": 2, "temperature": 1.5, "seed": seed, "num_beams": beams}
        return ids_of(predictor.predict(pictures, TEXTS, **options))

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sample(0)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(6)
    assert sample(0) == first != sample(1)


def test_a_resumed_job_samples_what_an_uninterrupted_one_does(predictor, pictures):
    decoding = Decoding(max_new_tokens=8, temperature=1.5, seed=3)

    def answers(done):
        batches = predictor.stream(pictures * 2, TEXTS * 2, decoding, batch_size=2, done=done)
        return {index: answer.token_ids for batch in batches for index, answer in batch.items()}

    complete = answers(set())
    assert sorted(complete) == list(range(6))
    for done in ({0, 1}, {4}, {1, 4, 5, 2}, set(range(6))):
        assert answers(done) == {index: ids for index, ids in complete.items() if index not in done}


def test_samples_depend_on_the_question_and_not_on_its_batch(predictor, pictures):
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.9, "samples": 3}
    single, batch = (predictor.predict(pictures * 2, TEXTS * 2, batch_size=size, **options) for size in (1, 6))
    assert [prediction.samples for prediction in single] == [prediction.samples for prediction in batch]
    assert len(set(single[0].samples)) > 1 and single[0].samples != single[3].samples  # the same question, asked again


def test_the_answer_streams_and_can_be_stopped(predictor, pictures):
    decoding, steps = Decoding(max_new_tokens=6), []

    def record(rows):
        steps.append(list(rows[0].token_ids))
        if len(steps) == 10:
            raise KeyboardInterrupt

    (batch,) = predictor.stream(pictures[:1], TEXTS[:1], decoding, on_step=record)
    assert [len(step) for step in steps] == [1, 2, 3, 4, 5, 6] and steps[-1] == list(batch[0].token_ids)
    with pytest.raises(KeyboardInterrupt):
        list(predictor.stream(pictures[:1], TEXTS[:1], decoding, on_step=record))


def test_an_image_is_encoded_once_for_all_of_its_questions(predictor, pictures):
    """Also if its questions fall into several batches; the answers are those of each question alone."""
    counts, checkpoint = [], predictor.checkpoint
    images = [picture for picture in pictures for _ in range(3)]
    texts = [f"{text} Number {number}." for number, text in enumerate(TEXTS * 3)]
    with checkpoint.model.model.vision_tower.register_forward_hook(lambda *call: counts.append(len(call[2][0]))):
        predictions = predictor.predict(images, texts, batch_size=2, max_new_tokens=8)
    assert sum(counts) == 3
    for prediction, image in zip(predictions, images, strict=True):
        assert list(prediction.token_ids) == plain_greedy(checkpoint, image, prediction.prompt, 8)


def test_confidence_is_the_probability_of_a_points_tokens(pictures):
    checkpoint = (predictor := Predictor.load("nano-direct")).checkpoint
    (prediction,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=False, max_new_tokens=40)
    inputs = checkpoint.inputs([Image.open(pictures[0]).convert("RGB")], [prediction.prompt])
    answer = torch.tensor([prediction.token_ids])
    inputs = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], dim=1), "attention_mask": None}
    with torch.no_grad():
        logits = checkpoint.model(**inputs).logits[0, -answer.shape[1] - 1 : -1]
    logits[:, checkpoint.suppressed_ids] = -torch.inf
    logprobs = logits.log_softmax(-1).gather(1, answer.T)[:, 0].tolist()
    expected = point_confidence(checkpoint.tokenizer, prediction.token_ids, logprobs, prediction.response)
    assert len(expected) == len(prediction.response.points) > 0
    assert prediction.point_confidence == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bias", [-2.0, 1.5])
def test_the_attention_bias_is_the_same_in_both_loops(predictor, tiny_checkpoint, pictures, bias):
    """The packed loop, transformers' left-padded one, and one pass with attention as it is defined."""
    decoding = Decoding(max_new_tokens=8, image_attention_bias=bias)
    predictions = [answer for _, answer in sorted(next(predictor.stream(pictures, TEXTS, decoding)).items())]
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    inputs = tiny_checkpoint.inputs(images, [prediction.prompt for prediction in predictions])
    rows = [AnswerRow(index, ()) for index in range(3)]
    generate_with_transformers(tiny_checkpoint, rows, inputs, decoding)
    assert ids_of(predictions) == [row.token_ids for row in rows]
    assert ids_of(predictions) != ids_of(predictor.predict(pictures, TEXTS, max_new_tokens=8))
    inputs = tiny_checkpoint.inputs(images[:1], [predictions[0].prompt])
    columns, model = inputs["input_ids"] == tiny_checkpoint.image_token_id, tiny_checkpoint.model

    def attend(module, query, key, value, mask, scaling, **_):
        """softmax(q k / sqrt(d) + causal + bias on the image's columns)."""
        scores = query @ key.transpose(2, 3) * scaling + bias * columns[:, None, None]
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("test_defined", attend)
    with torch.no_grad(), image_bias(model, bias, columns):
        biased = model(**inputs).logits[0, -1]
    with torch.no_grad(), language_attention(model, "test_defined"):
        assert torch.allclose(biased, model(**inputs).logits[0, -1], atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved(predictor, pictures, monkeypatch):
    expected = ids_of(predictor.predict(pictures, TEXTS, max_new_tokens=6))
    original, sizes = module.generate, []

    def little_memory(checkpoint, rows, *rest):
        sizes.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no")
        original(checkpoint, rows, *rest)

    monkeypatch.setattr(module, "generate", little_memory)
    assert ids_of(predictor.predict(pictures, TEXTS, max_new_tokens=6)) == expected
    assert sizes == [3, 1, 1, 1]  # three did not fit, and are not tried again


def test_the_largest_batch_fits_in_the_free_memory(predictor, tiny_checkpoint, monkeypatch):
    decoding = Decoding(max_new_tokens=64)
    for free, expected in ((1 << 40, [32, 20, 1, 1]), (0, [1, 1, 1, 1])):
        monkeypatch.setattr(module, "free_memory", lambda model, free=free: free)
        assert [predictor.largest_batch(["a"] * count, decoding) for count in (64, 40, 1, 0)] == expected
    model, prompts = tiny_checkpoint.model, [*["<image>\na"] * 10, "<image>\n" + "Where is the mug? " * 200]
    row = row_bytes(model, predictor.prompt_tokens(prompts[-1]) + 64)
    free = (row * 5.5 + pass_bytes(model, PASS_TOKENS["cpu"])) / module.FREE_SHARE
    monkeypatch.setattr(module, "free_memory", lambda model: int(free))
    assert predictor.largest_batch(prompts[1:], decoding) == 5  # two batches, where six would not fit
    assert predictor.largest_batch(prompts[:-1], decoding) > 5  # the longest prompt decides


def test_own_words_in_the_question_and_points_in_the_frame_of_the_original_image(predictor, pictures):
    with saying(predictor.checkpoint, "[(20, 10)]"):
        (prediction,) = predictor.predict([pictures[2]], TEXTS[:1], template="Where? {instruction} Answer!")
    assert "USER: <image>\nWhere? Point to the mug. Answer! ASSISTANT:" in prediction.prompt
    assert prediction.response.points == (Point(20 / 61, 10 / 40),)


def test_longest_questions_first_and_every_one_once():
    prompts = ["a" * length for length in (3, 9, 1, 9, 5)]
    assert make_batches(prompts, 2) == [[1, 3], [4, 0], [2]]
    assert make_batches(prompts, 2, ["x", "y", "y", "z", "x"]) == [[1, 2], [3, 4], [0]]  # an image's stay together


@pytest.mark.parametrize("options", [
    {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"num_beams": 0}, {"seed": -1}, {"samples": 2},
    {"num_beams": 2, "constrain": True}, {"aggregate": "medoid"}, {"num_points": 51},
], ids=str)  # fmt: skip
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options)).replace("_", "-")):
        Decoding(**options)


def test_predict_prints_json_and_draws(tiny_model, pictures, tmp_path, capsys):
    common = [str(pictures[0]), "Point to the mug.", "--model", str(tiny_model), "--max_new_tokens", "6"]
    main([*common, "--json", "--overlay", str(tmp_path / "out/a.png"), "--no-reasoning", "--num-beams", "2"])
    record = json.loads(capsys.readouterr().out)
    assert record["image_size"] == [37, 37] and record["confidence"] is None  # no points, nothing to be sure of
    assert Image.open(tmp_path / "out/a.png").size[0] > 100
    main(common)
    assert "6 tokens in" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["no.png", "Point."], "no.png"), (["square.png", " \n"], "instruction"), (["square.png", "<image>"], "instruction"),
    (["square.png", "Point.", "--overlay", "answer"], "overlay answer"),
    (["square.png", "Point.", "--overlay", "square.png/answer.png"], "square.png"),
    (["square.png", "Point.", "--top-p", "0"], "--top-p"), (["square.png", "Point.", "--device", "abacus"], "abacus"),
    (["square.png", "Point.", "--dtype", "nn"], "'nn'"), (["square.png", "Point."], "nowhere"),
    (["turned.png", "Point.", "--depth", "d.npy"], "turned.png"),
])  # fmt: skip
def test_predict_refuses_before_the_model_is_loaded(pictures, monkeypatch, words, message):
    monkeypatch.chdir(pictures[0].parent)
    exif = Image.Exif()
    exif[0x112] = 8  # turned by a quarter: no depth image fits
    Image.open(pictures[2]).save("turned.png", exif=exif)
    with pytest.raises(InputError, match=message):
        main([*words, "--model", "nowhere"])


def test_points_and_boxes_as_json_and_text():
    response = parse("**Final Answer:** [(0.25, 0.5), (1.5, 0.5), (0.2, 0.2, 0.4, 0.6)]", (200, 100))
    prediction = Prediction(response.text, (1, 2), response, "", None, 0.5)
    record = answer_record(prediction, (200, 100), "nano").as_json()
    pixels = [value for point in record["points"] for value in point["pixel"]]
    assert pixels == pytest.approx([50, 50, 300, 50, 60, 40])
    assert [point["inside"] for point in record["points"]] == [True, False, True]
    assert [point["box"] for point in record["points"]] == [None, None, pytest.approx((0.2, 0.2, 0.4, 0.6))]
    assert "pixel (50.0, 50.0) of 200 x 100" in format_prediction(answer_record(prediction, (200, 100), "nano"), 2)
    for cut in (True, False):
        answer = dataclasses.replace(prediction, response=parse("no"), text="no", cut=cut)
        assert ("--max-new-tokens" in format_prediction(answer_record(answer, (200, 100), "nano"), 2)) is cut


def test_one_image_and_one_text_give_one_prediction_from_a_path_a_picture_or_an_array(predictor, pictures):
    path, options = pictures[0], {"reasoning": False, "max_new_tokens": 8}
    (expected,) = predictor.predict([path], ["Point to the mug."], **options)
    picture = Image.open(path).convert("RGB")
    for image in (path, str(path), picture, np.asarray(picture)):
        assert predictor.predict(image, "Point to the mug.", **options).token_ids == expected.token_ids
    assert len(predictor.predict([np.asarray(picture)] * 2, TEXTS[:2], **options)) == 2
    for wrong, named in ((np.zeros((4, 4)), "float64"), (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"), (7, "int")):
        with pytest.raises(InputError, match=f"an image must be .* not .*{named}"):
            predictor.predict(wrong, "Point to the mug.", **options)


def test_agreement_counts_answers_nearby():
    responses = [
        parse(text, (200, 100)) for text in ("[(0.5, 0.5), (0.1, 0.1)]", "[(0.52, 0.5)]", "[(0.9, 0.9)]", "no idea")
    ]
    assert agreement(responses, (200, 100)) == [pytest.approx((1 / 3, 0)), pytest.approx((1 / 3,)), (0,), ()]
    nothing = [parse(text) for text in ("None: there is no mug.", "[]", "[(0.5, 0.5)]")]
    assert agreement(nothing, (200, 100)) == [(0.5,), (0.5,), (0,)] and medoid(nothing, (200, 100)) == 0
    # 0.05 of the diagonal of 200 x 100 pixels is 11.2: 0.1 of the height, half of that of the width
    across, down = (
        [parse("[(0.5, 0.5)]", (200, 100)), parse(text, (200, 100))] for text in ("[(0.57, 0.5)]", "[(0.5, 0.6)]")
    )
    assert agreement(across, (200, 100))[0] == (0,) and agreement(down, (200, 100))[0] == (1,)


def test_medoid_is_the_answer_that_the_others_support():
    texts = ["no idea", "[(0.9, 0.9)]", "[(0.5, 0.5)]", "[(0.51, 0.5)]", "[(0.49, 0.5)]"]
    assert (
        medoid([parse(text, (200, 100)) for text in texts], (200, 100)) == 2
    )  # the middle one of three that support each other
    assert medoid([parse("no idea"), parse("[(0.1, 0.1)]")], (200, 100)) == 1


def test_confidence_belongs_to_the_characters_of_each_point():
    characters = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    text = "The mug is (0.9, 0.9).\nAnswer: （0.46，0.53） and **x=0.1, y=0.2** and \\(0.3, 0.4\\). Not at (0.8, 0.8)."
    response, logprobs = parse(text), [math.log(0.9)] * len(text)
    assert [text[start:end] for start, end in response.spans] == ["（0.46，0.53）", "x=0.1, y=0.2", "(0.3, 0.4\\)"]
    for (start, end), value in zip(response.spans, (0.2, 0.4, 0.6), strict=True):
        logprobs[start:end] = [math.log(value)] * (end - start)
    confidence = point_confidence(characters, [ord(character) for character in text], logprobs, response)
    assert confidence == pytest.approx((0.2, 0.4, 0.6))
    nothing = "Answer: None: there is no mug."
    logprobs = [math.log(0.3 if start <= place < start + 4 else 0.9) for start in (8,) for place in range(len(nothing))]
    assert point_confidence(characters, list(map(ord, nothing)), logprobs, parse(nothing)) == pytest.approx((0.3,))
