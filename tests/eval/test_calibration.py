"""Confidence against success, agreement between answers, and the answer that the others support."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from trace_vlm.core.reasoning import parse
from trace_vlm.drawing import canvas, overlay
from trace_vlm.eval import summarize_vqa
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.eval.statistics import calibration, reliability, risk_coverage
from trace_vlm.eval.tables import draw_calibration
from trace_vlm.inference.confidence import agreement, medoid, point_confidence
from trace_vlm.utils.command import run
from trace_vlm.utils.files import write_jsonl


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(20_000)
    honest = [(float(one), float(rng.random() < one)) for one in sure]
    found = calibration(honest, honest)
    assert found is not None and found["ece"] < 0.02 and found["mean_confidence"] == pytest.approx(0.5, abs=0.01)
    boasting = calibration([(0.95, float(place % 2)) for place in range(100)], [(0.95, 0.5)] * 100)
    assert boasting is not None and boasting["ece"] == pytest.approx(0.45)
    assert [(bar["low"], bar["points"]) for bar in boasting["reliability"]] == [(0.9, 100)]
    assert calibration([], []) is None


def test_the_bins_hold_their_ends() -> None:
    found = reliability([(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)])
    assert [(bar["low"], bar["points"], bar["accuracy"]) for bar in found] == [(0.0, 1, 0), (0.1, 1, 1), (0.9, 1, 1)]


def test_risk_falls_when_the_unsure_answers_are_left_out() -> None:
    answers = [(place / 10, float(place >= 5)) for place in range(10)]  # the surest half is right
    assert risk_coverage(answers) == pytest.approx([0, 0, 0, 0, 0, 1 / 6, 2 / 7, 3 / 8, 4 / 9, 0.5])
    assert risk_coverage([(0.5, 1.0), (0.5, 0.0)] * 5) == pytest.approx([0.5] * 10)  # ties tell nothing


def test_the_figure_is_written(tmp_path: Path) -> None:
    found = calibration([(0.9, 1.0), (0.3, 0.0), (0.5, 1.0)], [(0.9, 1.0), (0.3, 0.0)])
    assert found is not None
    draw_calibration({"a model": found, "another": found}, tmp_path / "c.png", {"a model": "red", "another": "blue"})
    assert Image.open(tmp_path / "c.png").size[0] > 800


def test_the_figure_counts_points_in_each_bin_and_shows_what_range_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, *_, **__: figures.append(figure))
    points = [(0.93, float(place % 50 == 0)) for place in range(200)] + [(0.85, 0.0)] * 7  # sure and wrong
    found = calibration(points, [(0.9, 0.02), (0.8, 0.01)])
    assert found is not None
    draw_calibration({"model": found}, Path("c.png"), {"model": "#1f5fbf", "a model without confidence": "#ec2a2e"})
    reliable, counts, risks = figures[0].axes
    assert {round(bar.get_x(), 1): bar.get_height() for bar in counts.patches} == {0.8: 7, 0.9: 200}
    assert [text.get_text() for text in counts.texts] == ["7", "200"]
    assert counts.get_ylim()[1] > 200 and reliable.get_xlim() == counts.get_xlim() == (0.8, 1.0)
    low, high = risks.get_ylim()
    assert 0.85 < low < 0.98 and 0.99 < high < 1.05  # risks of 0.98 and 0.985
    assert reliable.get_ylim()[0] < 0 and reliable.get_ylim()[1] > 0.93  # the model and what it claims
    drawn = [*reliable.lines[1:], *risks.lines]
    assert {line.get_color() for line in drawn} == {"#1f5fbf"}
    assert {to_hex(bar.get_facecolor()) for bar in counts.patches} == {"#1f5fbf"}


def test_models_without_confidence_keep_their_colors(
    benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(summarize_vqa, "draw_calibration", lambda found, _, colors: given.append((list(found), colors)))
    ids = [question.question_id for question in open_benchmark(benchmark_folder).questions]
    for name, more in (("plain", {}), ("sure", {"point_confidence": [0.8]})):
        write_jsonl(tmp_path / f"{name}.jsonl", [
            {"question_id": one, "text": "(0.5, 0.5)", "metadata": more} for one in ids
        ])  # fmt: skip
    files = [str(tmp_path / f"{name}.jsonl") for name in ("plain", "sure")]
    words = ["--answer", *files, "--data-dir", str(benchmark_folder), "--output", str(tmp_path), "--resamples", "9"]
    assert run(summarize_vqa.main, words) == 0
    assert given == [(["sure"], {"plain": overlay.COLORS[0], "sure": overlay.COLORS[1]})]


SIZE = (200, 100)


def test_agreement_counts_answers_nearby() -> None:
    responses = [parse(text, SIZE) for text in ("[(0.5, 0.5), (0.1, 0.1)]", "[(0.52, 0.5)]", "[(0.9, 0.9)]", "none")]
    assert agreement(responses, SIZE) == [pytest.approx((1 / 3, 0)), pytest.approx((1 / 3,)), (0,), ()]


def test_nearness_is_counted_in_pixels() -> None:
    """0.05 of the diagonal of 200 x 100 pixels is 11.2: 0.1 of the height, half of that of the width."""
    across, down = ([parse("[(0.5, 0.5)]", SIZE), parse(text, SIZE)] for text in ("[(0.57, 0.5)]", "[(0.5, 0.6)]"))
    assert agreement(across, SIZE)[0] == (0,) and agreement(down, SIZE)[0] == (1,)


def test_the_medoid_is_the_answer_that_the_others_support() -> None:
    texts = ["none", "[(0.9, 0.9)]", "[(0.5, 0.5)]", "[(0.51, 0.5)]", "[(0.49, 0.5)]"]
    responses = [parse(text, SIZE) for text in texts]
    assert medoid(responses, SIZE) == 2  # of three that support each other, the one in the middle
    assert medoid([parse("none"), parse("[(0.1, 0.1)]")], SIZE) == 1


def test_points_are_found_where_they_stand() -> None:
    text = "1. **Identify the reference object:** (0.9, 0.9).\n\n**Final Answer:** [(0.1, 0.2), [0.3,.4], (1, 2, 3)]"
    response = parse(text)
    assert [text[start:end] for start, end in response.spans] == ["(0.1, 0.2)", "[0.3,.4]"]
    assert len(response.points) == 2


def test_confidence_belongs_to_the_characters_of_each_point() -> None:
    class Characters:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(map(chr, ids))

    text = "The mug is (0.9, 0.9).\nAnswer: （0.46，0.53） and **x=0.1, y=0.2** and \\(0.3, 0.4\\). Not at (0.8, 0.8)."
    response = parse(text)
    assert [text[start:end] for start, end in response.spans] == ["（0.46，0.53）", "x=0.1, y=0.2", "(0.3, 0.4\\)"]
    logprobs = [math.log(0.9)] * len(text)
    for (start, end), value in zip(response.spans, (0.2, 0.4, 0.6), strict=True):
        logprobs[start:end] = [math.log(value)] * (end - start)
    found = point_confidence(Characters(), [ord(one) for one in text], logprobs, response)
    assert found == pytest.approx((0.2, 0.4, 0.6))
