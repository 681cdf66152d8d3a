"""The demo without its page: the text streams in, points carry confidence, mistakes are told in words."""

from __future__ import annotations

import json
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_answers import encoded, saying
from PIL import Image

from trace_vlm.core.images import open_image
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import HEADINGS, render
from trace_vlm.demo import app
from trace_vlm.demo.session import Models, Options, Told, as_record, ask, model_paths
from trace_vlm.model import presets
from trace_vlm.model.presets import bundled_models
from trace_vlm.utils.command import InputError, run

STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": "Free space.", "output": "One point."}
TEXT = render(STEPS, [Point(0.25, 0.5), Point(1.4, 0.5)])
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8))


def test_the_text_streams_in_and_the_answer_is_whole(nano: Any) -> None:
    with saying(nano, [*encoded(nano.tokenizer, TEXT), nano.tokenizer.eos_token_id]):
        *texts, told = ask(nano, "nano", IMAGE, "Point left of the mug.")
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert len(texts) > 20 and texts[-1] == TEXT
    assert isinstance(told, Told) and told.prediction.text == TEXT
    assert len(told.prediction.point_confidence) == 2 and all(0 <= one <= 1 for one in told.prediction.point_confidence)
    assert told.maps.missing == ()
    record = as_record(told)
    assert json.loads(json.dumps(record)) == record
    assert [one["key"] for one in record["attention"]] == [*STEPS, "answer"]
    assert record["points"][0]["confidence"] == told.prediction.point_confidence[0]


def test_confidence_is_the_probability_of_the_points_tokens(nano: Any) -> None:
    with saying(nano, [*encoded(nano.tokenizer, TEXT), nano.tokenizer.eos_token_id]):
        *_, told = ask(nano, "nano", IMAGE, "Point left of the mug.")
    assert told.prediction.point_confidence == (1.0, 1.0)  # what is forced is certain


def test_closing_the_answer_ends_the_generation(nano: Any) -> None:
    answers = ask(nano, "nano", IMAGE, "Point.", Options(max_new_tokens=100_000))
    next(answers)
    answers.close()  # would take minutes otherwise
    assert isinstance([*ask(nano, "nano", IMAGE, "Point.", Options(max_new_tokens=3))][-1], Told)


def test_a_chosen_number_of_points_is_met(nano: Any) -> None:
    pytest.importorskip("llguidance", reason="pip install llguidance for a chosen number of points")
    options = Options(reasoning=False, num_points=3, temperature=0.8, seed=4, max_new_tokens=120)
    *_, told = ask(nano, "nano", IMAGE, "Point left of the mug.", options)
    *_, again = ask(nano, "nano", IMAGE, "Point left of the mug.", options)
    assert len(told.prediction.response.points) == 3
    assert told.prediction.text == again.prediction.text  # seeded


def test_mistakes_are_told_in_words(nano: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="say what to point at"):
        next(ask(nano, "nano", IMAGE, "  "))
    with pytest.raises(InputError, match="9,000 x|9000 x"):
        next(ask(nano, "nano", Image.new("1", (9000, 9000)), "Point."))
    with pytest.raises(InputError, match="there is no model 'other'"):
        Models(model_paths([])).get("other")
    assert run(app.main, ["--model", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert run(app.main, ["--port", "0"]) == 2


def test_models_have_names_and_those_that_were_named_come_first(tmp_path: Path) -> None:
    for name in ("a", "b/a"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    found = model_paths([f"trace={tmp_path / 'a'}", str(tmp_path / "a"), str(tmp_path / "b/a")])
    assert list(found) == ["trace", "a", str(tmp_path / "b/a"), *bundled_models()]
    with pytest.raises(InputError, match=r"the model none/such is no folder"):
        model_paths(["trace=none/such"])


def test_the_model_that_reasons_answers_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "ASSETS", tmp_path)
    (tmp_path / "nano-base").mkdir()
    assert presets.default_model() == tmp_path / "nano-base" and list(model_paths([])) == ["nano-base"]
    (tmp_path / "nano").mkdir()
    assert presets.default_model() == tmp_path / "nano" and list(model_paths([])) == ["nano", "nano-base"]
    assert presets.resolve_model("nano") == tmp_path / "nano" and presets.resolve_model("other") == "other"
    monkeypatch.chdir(tmp_path)  # a folder of that name where one stands is meant
    assert presets.resolve_model("nano") == "nano" and presets.default_model() == tmp_path / "nano"


def test_an_answer_is_written_step_by_step_and_nothing_in_it_is_markup() -> None:
    evil = "<script>alert(1)</script>"
    text = render({**STEPS, "target": evil}, [Point(0.25, 0.5)])
    page = app.written(text, (100, 60), "subtype")
    places = [page.index(f"<b>{number}. {escape(words)}") for number, words in enumerate(HEADINGS.values(), 1)]
    assert places == sorted(places)
    assert "5. Final answer" in page and "<script" not in page and "&lt;script&gt;" in page
    assert [part.split("'")[0] for part in page.split("data-step='")[1:] if "accent-soft" in part] == ["subtype"]
    for plain in (evil, text[:30] + evil):  # without steps, and cut off while it comes
        assert "<script" not in app.written(plain, (100, 60))


def test_the_samples_that_ship_can_be_asked_about() -> None:
    samples = json.loads((app.SAMPLES / "samples.json").read_text())
    assert len(samples) > 2
    for one in samples:
        assert one["instruction"] and open_image(app.SAMPLES / one["image"]).size == (128, 128)


def test_the_page_may_load_from_this_machine_alone() -> None:
    sources = {word for part in app.POLICY.split(";") for word in part.split()[1:]}
    assert sources <= {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    assert app.HOST == "127.0.0.1"


def test_without_gradio_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['gradio'] = None; from trace_vlm.demo import app; sys.exit(app.run(app.main, []))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and "trace-vlm[demo]" in done.stderr
