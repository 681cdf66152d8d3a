"""The demo without its page: the text streams in, points carry confidence, mistakes get a message."""

import json
import subprocess
import sys
from html import escape

import pytest
from forced_answers import STEPS, saying
from PIL import Image
from small_benchmark import picture

from trace_vlm.core.images import open_image
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import HEADINGS, render
from trace_vlm.demo import app
from trace_vlm.demo.session import DemoAnswer, Models, as_record, ask, model_paths, with_attention
from trace_vlm.inference.predictor import Predictor
from trace_vlm.model.presets import bundled_models
from trace_vlm.utils.command import InputError, run

TEXT = render(STEPS, [Point(0.25, 0.5), Point(1.4, 0.5)])


def ask_nano(nano, instruction="Point left of the mug.", image=None, **settings):
    return ask(Predictor(nano), "nano", image or picture(0), instruction, **settings)


def test_the_text_streams_in_and_the_answer_is_complete(nano):
    with saying(nano, TEXT):
        *texts, answer = ask_nano(nano)
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert len(texts) > 20 and texts[-1] == answer.prediction.text == TEXT
    assert answer.prediction.point_confidence == (1.0, 1.0)  # forced tokens are certain
    assert "attention" not in as_record(answer)  # it takes another pass, which has to be asked for
    record = as_record(with_attention(answer, Predictor(nano), picture(0)))
    assert json.loads(json.dumps(record))["points"] and record["model"]
    assert [step["key"] for step in record["attention"] if step["tokens"]] == [*STEPS, "answer"]
    assert record["points"][0]["confidence"] == 1.0


def test_closing_the_answer_ends_the_generation(nano):
    answers = ask_nano(nano, max_new_tokens=5_000)
    next(answers)
    answers.close()
    assert isinstance([*ask_nano(nano, max_new_tokens=3)][-1], DemoAnswer)


def test_a_chosen_number_of_points_is_met_and_the_seed_repeats_it(nano):
    pytest.importorskip("llguidance", reason="pip install llguidance for a chosen number of points")
    options = {"reasoning": False, "num_points": 3, "temperature": 0.8, "seed": 4, "max_new_tokens": 120}
    first, again = ([*ask_nano(nano, **options)][-1].prediction for _ in range(2))
    assert len(first.response.points) == 3 and first.text == again.text


def test_mistakes_get_a_message(nano, capsys):
    with pytest.raises(InputError):
        next(ask_nano(nano, "  "))
    with pytest.raises(InputError, match="9000 x 9000"):
        next(ask_nano(nano, image=Image.new("1", (9000, 9000))))
    with pytest.raises(InputError, match="'other'"):
        Models(model_paths([])).get("other")
    for words, name in ((["--model", "no/model"], "no/model"), (["--port", "0"], "--port")):
        assert run(app.main, words) == 2 and name in capsys.readouterr().err


def test_models_have_names_and_the_given_ones_come_first(tmp_path):
    first, second = folders = [tmp_path / "a", tmp_path / "b/a"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert list(model_paths([f"trace={first}", *map(str, folders)])) == ["trace", "a", str(second), *bundled_models()]
    assert list(model_paths(["nano-direct"]))[0] == "nano-direct"


def test_an_answer_is_html_step_by_step_and_nothing_in_it_is_markup():
    evil = "<script>alert(1)</script>"
    page = app.answer_html(render({**STEPS, "target": evil}, [Point(0.25, 0.5)]), (100, 60), "subtype")
    headings = [page.index(f"<b>{number}. {escape(title)}") for number, title in enumerate(HEADINGS.values(), 1)]
    assert headings == sorted(headings) and "5. Final answer" in page and "&lt;script&gt;" in page
    assert [part.split("'")[0] for part in page.split("data-step='")[1:] if "accent-soft" in part] == ["subtype"]
    for shown in (page, app.answer_html(evil, (9, 9)), app.answer_html(TEXT[:30] + evil, (9, 9))):  # not complete yet
        assert "<script" not in shown


def test_the_bundled_samples_can_be_opened_and_the_page_loads_from_this_machine_alone():
    samples = json.loads((app.SAMPLES / "samples.json").read_text())
    assert len(samples) > 2 and all(sample["instruction"] for sample in samples)
    assert {open_image(app.SAMPLES / sample["image"]).size for sample in samples} == {(128, 128)}
    sources = {word for part in app.POLICY.split(";") for word in part.split()[1:]}
    assert sources <= {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"} and app.HOST == "127.0.0.1"


def test_without_gradio_the_extra_is_named(tmp_path):
    code = "import sys; sys.modules['gradio'] = None; from trace_vlm.demo import app; sys.exit(app.run(app.main, []))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and "trace-vlm[demo]" in done.stderr
