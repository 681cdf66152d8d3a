"""Batched generation against the plain loop, sampling that can be resumed, and `trace-vlm predict`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import parse
from trace_vlm.inference.generation import PASS_TOKENS, Decoding
from trace_vlm.inference.predict import as_json, describe, main
from trace_vlm.inference.predictor import Prediction, Predictor, make_batches
from trace_vlm.inference.vision_cache import pass_bytes, row_bytes
from trace_vlm.utils.command import InputError

TEXTS = ["Point to the mug.", "Find free space between the red mug and the blue box on the table.", "Left of the ball."]


@pytest.fixture
def pictures(benchmark_folder: Path) -> list[Path]:
    return sorted((benchmark_folder / "images").iterdir())


def test_a_prompt_longer_than_the_model_is_one_sentence(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    predictor = Predictor(tiny_checkpoint)
    said = r"a prompt of [\d,]+ tokens, .* is too long for tiny, which knows 1,024 positions"
    with pytest.raises(InputError, match=said):
        predictor.predict(pictures[:1], ["Point to the mug. " * 1000], max_new_tokens=2)
    with pytest.raises(InputError, match=said):
        predictor.predict(pictures[:1], ["Point to the mug. " * 1000], max_new_tokens=2, num_beams=2)


def plain_greedy(checkpoint: Any, image: Path, prompt: str, steps: int) -> list[int]:
    """One forward pass over everything for each token: no cache, no padding, no batch."""
    import torch

    inputs = checkpoint.inputs([Image.open(image).convert("RGB")], [prompt])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    found: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            logits = checkpoint.model(input_ids=ids, pixel_values=pixels).logits[0, -1]
            logits[len(checkpoint.tokenizer) :] = float("-inf")
            logits[checkpoint.image_token_id] = float("-inf")
            token = int(logits.argmax())
            if token == checkpoint.tokenizer.eos_token_id:
                break
            found.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return found


@pytest.mark.parametrize("reasoning", [True, False])
def test_batched_answers_equal_a_plain_greedy_loop(tiny_checkpoint: Any, pictures: list[Path], reasoning: bool) -> None:
    found = Predictor(tiny_checkpoint).predict(pictures, TEXTS, reasoning=reasoning, max_new_tokens=12)
    for prediction, image in zip(found, pictures, strict=True):
        assert list(prediction.token_ids) == plain_greedy(tiny_checkpoint, image, prediction.prompt, 12)
        assert (
            prediction.text == tiny_checkpoint.tokenizer.decode(prediction.token_ids, skip_special_tokens=True).strip()
        )
    assert len({prediction.token_ids for prediction in found}) > 1


def test_answers_come_in_the_order_asked_whatever_the_batches(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    predictor = Predictor(tiny_checkpoint)
    counts: list[int] = []
    single = predictor.predict(pictures, TEXTS, batch_size=1, max_new_tokens=8, progress=counts.append)
    pairs = predictor.predict(pictures, TEXTS, batch_size=2, max_new_tokens=8)
    assert [prediction.token_ids for prediction in single] == [prediction.token_ids for prediction in pairs]
    assert [TEXTS[index] in prediction.prompt for index, prediction in enumerate(single)] == [True] * 3
    assert counts == [1, 1, 1]


def test_the_end_token_ends_an_answer_and_padding_is_no_part_of_it(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    """The tokenizer's end token is replaced by one that the model writes soon: rows then end at different places."""
    before = Predictor(tiny_checkpoint).predict(pictures, TEXTS, max_new_tokens=10)
    end = before[0].token_ids[2]
    tokenizer = tiny_checkpoint.tokenizer
    original = tokenizer.eos_token_id
    tokenizer.eos_token_id = end
    try:
        after = Predictor(tiny_checkpoint).predict(pictures, TEXTS, max_new_tokens=10)
    finally:
        tokenizer.eos_token_id = original
    for old, new in zip(before, after, strict=True):
        place = old.token_ids.index(end) if end in old.token_ids else len(old.token_ids)
        assert new.token_ids == old.token_ids[:place]
        assert old.cut and new.cut == (end not in old.token_ids)


def test_ids_beyond_the_vocabulary_are_never_generated(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    import torch

    model, limit = tiny_checkpoint.model, len(tiny_checkpoint.tokenizer)
    weight = model.get_output_embeddings().weight
    assert weight.shape[0] > limit  # padded, otherwise this shows nothing
    original = weight.detach().clone()
    with torch.no_grad():
        weight[limit:] *= 1000
        weight[tiny_checkpoint.image_token_id] *= 1000
    try:
        found = Predictor(tiny_checkpoint).predict(pictures, TEXTS, max_new_tokens=10)
    finally:
        with torch.no_grad():
            weight.copy_(original)
    made = {token for prediction in found for token in prediction.token_ids}
    assert max(made) < limit and tiny_checkpoint.image_token_id not in made


def test_the_checkpoints_own_generation_settings_are_not_used(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    predictor = Predictor(tiny_checkpoint)
    expected = predictor.predict(pictures, TEXTS, max_new_tokens=8)
    expected_beams = predictor.predict(pictures, TEXTS, max_new_tokens=8, num_beams=2)
    own = tiny_checkpoint.model.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1, max_length=3)
    try:
        found = predictor.predict(pictures, TEXTS, max_new_tokens=8)
        beams = predictor.predict(pictures, TEXTS, max_new_tokens=8, num_beams=2)
    finally:
        own.update(do_sample=False, temperature=1.0, repetition_penalty=1.0, no_repeat_ngram_size=0, max_length=20)
    for these, those in ((found, expected), (beams, expected_beams)):
        assert [prediction.token_ids for prediction in these] == [prediction.token_ids for prediction in those]


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    import torch

    predictor = Predictor(tiny_checkpoint)

    def sample(seed: int) -> list[tuple[int, ...]]:
        found = predictor.predict(pictures, TEXTS, max_new_tokens=8, temperature=1.5, seed=seed, batch_size=2)
        return [prediction.token_ids for prediction in found]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sample(0)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert sample(0) == first
    assert sample(1) != first


def test_a_resumed_job_samples_what_an_uninterrupted_one_does(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    predictor = Predictor(tiny_checkpoint)
    decoding = Decoding(max_new_tokens=8, temperature=1.5, seed=3)
    images, texts = pictures * 2, TEXTS * 2

    def answers(done: set[int]) -> dict[int, tuple[int, ...]]:
        batches = predictor.stream(images, texts, decoding, batch_size=2, done=done)
        return {index: one.token_ids for batch in batches for index, one in batch.items()}

    whole = answers(set())
    assert sorted(whole) == list(range(6))
    for done in ({0, 1}, {4}, {1, 4, 5, 2}, set(range(6))):
        assert answers(done) == {index: ids for index, ids in whole.items() if index not in done}


def test_what_is_sampled_depends_on_the_question_and_not_on_its_batch(
    tiny_checkpoint: Any, pictures: list[Path]
) -> None:
    predictor = Predictor(tiny_checkpoint)
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.9, "samples": 3}
    one, many = (predictor.predict(pictures * 2, TEXTS * 2, batch_size=size, **options) for size in (1, 6))
    assert [prediction.samples for prediction in one] == [prediction.samples for prediction in many]
    assert len(set(one[0].samples)) > 1 and one[0].samples != one[3].samples  # the same question, asked again


def test_an_image_is_looked_at_once_for_all_of_its_questions(
    tiny_checkpoint: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its questions fall into several batches; the answers are those of each question alone."""
    seen: list[int] = []
    model = tiny_checkpoint.model
    original = model.get_image_features
    monkeypatch.setattr(
        model, "get_image_features", lambda pixel_values, **rest: (seen.append(len(pixel_values)),
                                                                   original(pixel_values=pixel_values, **rest))[1]
    )  # fmt: skip
    images = [picture for picture in pictures for _ in range(3)]
    texts = [f"{text} Number {place}." for place, text in enumerate(TEXTS * 3)]
    found = Predictor(tiny_checkpoint).predict(images, texts, batch_size=2, max_new_tokens=8)
    assert sum(seen) == 3
    for prediction, image in zip(found, images, strict=True):
        assert list(prediction.token_ids) == plain_greedy(tiny_checkpoint, image, prediction.prompt, 8)


def test_confidence_is_the_probability_of_a_points_tokens(pictures: list[Path]) -> None:
    """Read again in one pass over the whole answer: the geometric mean over the tokens that hold the point."""
    import torch

    from trace_vlm.attention.steps import token_spans

    predictor = Predictor.load("nano-base")
    checkpoint = predictor.checkpoint
    (found,) = predictor.predict(pictures[:1], TEXTS[:1], reasoning=False, max_new_tokens=40)
    inputs = checkpoint.inputs([Image.open(pictures[0]).convert("RGB")], [found.prompt])
    ids = torch.cat([inputs["input_ids"], torch.tensor([found.token_ids])], dim=1)
    with torch.no_grad():
        logits = checkpoint.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
    logits[:, predictor.checkpoint.suppressed_ids] = -torch.inf
    chosen = logits[-len(found.token_ids) - 1 : -1].log_softmax(-1)
    logprobs = chosen.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
    text, spans = token_spans(checkpoint.tokenizer, found.token_ids)
    shift = len(text) - len(text.lstrip())
    assert len(found.point_confidence) == len(found.response.points) > 0
    for sure, (start, end) in zip(found.point_confidence, found.response.spans, strict=True):
        held = [place for place, (a, b) in enumerate(spans) if a < end + shift and b > start + shift]
        assert sure == pytest.approx(float(logprobs[held].mean().exp()), abs=1e-4)


@pytest.mark.parametrize("bias", [-2.0, 1.5])
def test_the_attention_bias_is_the_same_in_both_loops(tiny_checkpoint: Any, pictures: list[Path], bias: float) -> None:
    """The packed loop, transformers' left-padded one, and one pass over everything with the bias written out."""
    import torch

    from trace_vlm.model.attention_recorder import image_bias

    decoding = Decoding(max_new_tokens=8, image_attention_bias=bias)
    predictor = Predictor(tiny_checkpoint)
    (found,) = predictor.stream(pictures, TEXTS, decoding)
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    other = predictor._by_transformers(images, [("", found[place].prompt, 0) for place in range(3)], decoding)
    assert [list(found[place].token_ids) for place in range(3)] == [list(ids) for ((ids, _),) in other]
    plain = predictor.predict(pictures, TEXTS, max_new_tokens=8)
    assert [one.token_ids for one in plain] != [found[place].token_ids for place in range(3)]

    inputs = tiny_checkpoint.inputs(images[:1], [found[0].prompt])
    columns = inputs["input_ids"] == tiny_checkpoint.image_token_id
    model = tiny_checkpoint.model
    with torch.no_grad(), image_bias(model, bias, columns):
        biased = model(**inputs).logits[0, -1]
    with torch.no_grad(), eager_with_bias(model, bias, columns):
        expected = model(**inputs).logits[0, -1]
    assert torch.allclose(biased, expected, atol=1e-4)


@contextmanager
def eager_with_bias(model: Any, bias: float, columns: Any) -> Iterator[None]:
    """Attention as it is defined: softmax(q k / sqrt(d) + causal + bias on the image's columns)."""
    import torch
    from transformers import AttentionInterface

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        scores = query @ key.transpose(2, 3) * scaling + bias * columns[:, None, None]
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("test_defined", attend)
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "test_defined"})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


def test_a_batch_that_does_not_fit_is_halved(
    tiny_checkpoint: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    predictor = Predictor(tiny_checkpoint)
    expected = predictor.predict(pictures, TEXTS, max_new_tokens=6)
    original, sizes = Predictor._by_rows, []

    def little_memory(self: Predictor, pictures: Any, asked: Any, *rest: Any) -> Any:
        sizes.append(len(asked))
        if len(asked) > 1:
            raise torch.OutOfMemoryError("no")
        return original(self, pictures, asked, *rest)

    monkeypatch.setattr(Predictor, "_by_rows", little_memory)
    found = predictor.predict(pictures, TEXTS, max_new_tokens=6)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert sizes == [3, 1, 1, 1]  # three did not fit, and are not tried again


def test_as_many_as_fit(tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trace_vlm.inference import predictor as module

    predictor, decoding = Predictor(tiny_checkpoint), Decoding(max_new_tokens=64)
    for free, expected in ((1 << 40, [32, 20, 1, 1]), (0, [1, 1, 1, 1])):
        monkeypatch.setattr(module, "free_memory", lambda model, free=free: free)
        assert [predictor.largest_batch(["a"] * count, decoding) for count in (64, 40, 1, 0)] == expected
    model, prompts = tiny_checkpoint.model, [*["<image>\na"] * 10, "<image>\n" + "Where is the mug? " * 200]
    row = row_bytes(model, predictor.prompt_tokens(prompts[-1]) + 64)
    free = (row * 5.5 + pass_bytes(model, PASS_TOKENS["cpu"])) / module.FREE_SHARE
    monkeypatch.setattr(module, "free_memory", lambda model: int(free))
    assert predictor.largest_batch(prompts[1:], decoding) == 5  # two batches, where six would not fit
    assert predictor.largest_batch(prompts[:-1], decoding) > 5  # the longest prompt decides


def test_a_question_in_the_users_own_words(tiny_checkpoint: Any, pictures: list[Path]) -> None:
    (found,) = Predictor(tiny_checkpoint).predict(
        pictures[:1], ["Point to the mug."], template="Where? {instruction} Answer!", max_new_tokens=2
    )
    assert "USER: <image>\nWhere? Point to the mug. Answer! ASSISTANT:" in found.prompt


def test_points_are_read_in_the_frame_of_the_original_image(
    tiny_checkpoint: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny_checkpoint.tokenizer("[(20, 10)]", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(Predictor, "_by_rows", lambda self, pictures, rows, *_: [[(ids, [0.0] * len(ids))]] * len(rows))
    (found,) = Predictor(tiny_checkpoint).predict([pictures[2]], ["?"])
    assert found.response.points == (Point(20 / 61, 10 / 40),)


def test_longest_questions_first_and_every_one_once() -> None:
    prompts = ["a" * length for length in (3, 9, 1, 9, 5)]
    assert make_batches(prompts, 2) == [[1, 3], [4, 0], [2]]
    assert make_batches(prompts, 2, ["x", "y", "y", "z", "x"]) == [[1, 2], [3, 4], [0]]  # an image's stay together


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"num_beams": 0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Decoding(**options)


def test_predict_prints_json_and_draws(tiny_model: Path, pictures: list[Path], tmp_path: Path, capsys: Any) -> None:
    overlay = tmp_path / "out" / "answer.png"
    common = [str(pictures[0]), "Point to the mug.", "--model", str(tiny_model), "--max_new_tokens", "6"]
    assert main([*common, "--json", "--overlay", str(overlay), "--no-reasoning"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (
        record["image_size"] == list(Image.open(pictures[0]).size) and record["confidence"] is None
    )  # no points, nothing to be sure of
    assert Image.open(overlay).size[0] > 100
    assert main(common) == 0
    assert "6 tokens in" in capsys.readouterr().out


def test_predict_refuses_before_the_model_is_loaded(pictures: list[Path], tmp_path: Path) -> None:
    for words, message in (
        ([str(tmp_path / "no.png")], "no.png does not exist"),
        ([str(pictures[0]), "--overlay", "answer"], "has to end in .png"),
        ([str(pictures[0]), "--overlay", str(pictures[0] / "answer.png")], "cannot be written"),
        ([str(pictures[0]), "--top-p", "0"], "top-p"),
        ([str(pictures[0]), "--device", "abacus"], "abacus"),
        ([str(pictures[0]), "--dtype", "nn"], "no type of weights"),
        ([str(pictures[0])], "nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            main([words[0], "Point to the mug.", *words[1:], "--model", "nowhere"])
    for empty in ("", " \n", "<image>"):
        with pytest.raises(InputError, match="the instruction is empty"):
            main([str(pictures[0]), empty, "--model", "nowhere"])


def test_predict_looks_at_a_turned_picture_as_people_do(
    tiny_model: Path, pictures: list[Path], tmp_path: Path, capsys: Any
) -> None:
    upright = Image.open(pictures[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 8
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    answers = []
    for path in (pictures[0], tmp_path / "turned.png"):
        assert main([str(path), "Point.", "--model", str(tiny_model), "--max-new-tokens", "6", "--json"]) == 0
        answers.append({**json.loads(capsys.readouterr().out), "seconds": 0})
    assert answers[0] == answers[1] and answers[0]["image_size"] == list(upright.size)
    with pytest.raises(InputError, match="is stored turned .* depth and camera are not"):
        main([str(tmp_path / "turned.png"), "Point.", "--model", "nowhere", "--depth", "d.npy"])


def test_what_predict_says_about_points() -> None:
    response = parse("**Final Answer:** [(0.25, 0.5), (1.5, 0.5), (0.2, 0.2, 0.4, 0.6)]", (200, 100))
    prediction = Prediction(response.text, (1, 2), response, "", None, 0.5)
    record = as_json(prediction, (200, 100))
    pixels = [value for point in record["points"] for value in point["pixel"]]
    assert pixels == pytest.approx([50, 50, 300, 50, 60, 40])
    assert [point["inside"] for point in record["points"]] == [True, False, True]
    assert record["boxes"][0]["pixels"] == pytest.approx([40, 20, 80, 60])
    assert "pixel (50.0, 50.0) of 200 x 100" in describe(prediction, (200, 100))
    empty = dataclasses.replace(prediction, response=parse("no"), text="no")
    assert "no point could be read from this answer\n" in describe(empty, (200, 100))
    cut = dataclasses.replace(empty, cut=True)
    assert "no point could be read: the answer was cut at --max-new-tokens" in describe(cut, (200, 100))
