"""The demo without its page: the text streams in, points carry confidence, mistakes get a message."""

from __future__ import annotations

import json
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_answers import saying
from PIL import Image

from trace_vlm.core.images import open_image
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import HEADINGS, render
from trace_vlm.demo import app
from trace_vlm.demo.session import DemoAnswer, Models, as_record, ask, model_paths
from trace_vlm.inference.predictor import Predictor
from trace_vlm.model.presets import bundled_models
from trace_vlm.utils.command import InputError, run

STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": "Free space.", "output": "One point."}
TEXT = render(STEPS, [Point(0.25, 0.5), Point(1.4, 0.5)])
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8))


def ask_nano(nano: Any, instruction: str = "Point left of the mug.", **settings: Any) -> Any:
    return ask(Predictor(nano), "nano", IMAGE, instruction, **settings)


def test_the_text_streams_in_and_the_answer_is_complete(nano: Any) -> None:
    with saying(nano, TEXT):
        *texts, answer = ask_nano(nano)
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert len(texts) > 20 and texts[-1] == TEXT
    assert isinstance(answer, DemoAnswer) and answer.prediction.text == TEXT and len(answer.attention.spans) == 5
    assert answer.prediction.point_confidence == (1.0, 1.0)  # forced tokens are certain
    record = as_record(answer)
    assert json.loads(json.dumps(record)) == record
    assert [step["key"] for step in record["attention"]] == [*STEPS, "answer"]
    assert record["points"][0]["confidence"] == 1.0


def test_closing_the_answer_ends_the_generation(nano: Any) -> None:
    answers = ask_nano(nano, max_new_tokens=5_000)
    next(answers)
    answers.close()
    assert isinstance([*ask_nano(nano, max_new_tokens=3)][-1], DemoAnswer)


def test_a_chosen_number_of_points_is_met_and_the_seed_repeats_it(nano: Any) -> None:
    pytest.importorskip("llguidance", reason="pip install llguidance for a chosen number of points")
    options = {"reasoning": False, "num_points": 3, "temperature": 0.8, "seed": 4, "max_new_tokens": 120}
    first, again = ([*ask_nano(nano, **options)][-1].prediction for _ in range(2))
    assert len(first.response.points) == 3 and first.text == again.text


def test_mistakes_get_a_message(nano: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        next(ask_nano(nano, "  "))
    with pytest.raises(InputError, match="9000 x 9000"):
        next(ask(Predictor(nano), "nano", Image.new("1", (9000, 9000)), "Point."))
    with pytest.raises(InputError, match="'other'"):
        Models(model_paths([])).get("other")
    assert run(app.main, ["--model", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert run(app.main, ["--port", "0"]) == 2


def test_models_have_names_and_the_given_ones_come_first(tmp_path: Path) -> None:
    for name in ("a", "b/a"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    paths = model_paths([f"trace={tmp_path / 'a'}", str(tmp_path / "a"), str(tmp_path / "b/a")])
    assert list(paths) == ["trace", "a", str(tmp_path / "b/a"), *bundled_models()]
    assert list(model_paths(["nano-base"]))[0] == "nano-base"
    with pytest.raises(InputError, match="none/such"):
        model_paths(["trace=none/such"])


def test_an_answer_is_html_step_by_step_and_nothing_in_it_is_markup() -> None:
    evil = "<script>alert(1)</script>"
    text = render({**STEPS, "target": evil}, [Point(0.25, 0.5)])
    page = app.answer_html(text, (100, 60), "subtype")
    places = [page.index(f"<b>{number}. {escape(words)}") for number, words in enumerate(HEADINGS.values(), 1)]
    assert places == sorted(places)
    assert "5. Final answer" in page and "<script" not in page and "&lt;script&gt;" in page
    assert [part.split("'")[0] for part in page.split("data-step='")[1:] if "accent-soft" in part] == ["subtype"]
    for plain in (evil, text[:30] + evil):  # without steps, and not complete yet
        assert "<script" not in app.answer_html(plain, (100, 60))


def test_the_bundled_samples_can_be_opened() -> None:
    samples = json.loads((app.SAMPLES / "samples.json").read_text())
    assert len(samples) > 2
    for sample in samples:
        assert sample["instruction"] and open_image(app.SAMPLES / sample["image"]).size == (128, 128)


def test_the_page_may_load_from_this_machine_alone() -> None:
    sources = {word for part in app.POLICY.split(";") for word in part.split()[1:]}
    assert sources <= {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert app.HOST == "127.0.0.1"


def test_without_gradio_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['gradio'] = None; from trace_vlm.demo import app; sys.exit(app.run(app.main, []))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and "trace-vlm[demo]" in done.stderr
