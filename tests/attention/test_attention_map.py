"""visualization/attention_map.py: what it writes, what it skips, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_answers import saying
from PIL import Image
from small_benchmark import IDS, SIZES, make_benchmark, script

from trace_vlm.attention import interventions, results, summary
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import render
from trace_vlm.drawing import canvas
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json, write_jsonl

STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": "Free space.", "output": "One point."}
COR = render(STEPS, [Point(0.2, 0.5)])


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return make_benchmark(tmp_path / "bench")


@pytest.fixture
def asked(nano: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A nano model that answers every question with COR; grows by one entry at each question."""
    from trace_vlm.inference.predictor import Predictor

    calls: list[int] = []
    generate = nano.model.generate

    def counted(**options: Any) -> Any:
        calls.append(options["input_ids"].shape[1])
        return generate(**options)

    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(nano)))
    # smaller pictures: drawing is most of what these tests take
    monkeypatch.setattr(results, "save_figure", lambda figure, path: canvas.save_figure(figure, path, 0.3))
    monkeypatch.setattr(nano.model, "generate", counted)
    with saying(nano, COR):
        yield calls


def attention(bench: Path, folder: Path, *words: object) -> int:
    given = ["--model", "nano-random", "--data", bench, "--out", folder, *words]
    return run(script("attention_map").main, [str(word) for word in given])


def test_one_picture_a_step_one_of_all_and_a_record(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    words = ["--model_path", "nano-random", "--dataset_dir", bench, "--output_dir", folder, "--layers", -1]  # published
    assert run(script("attention_map").main, [str(word) for word in [*words, "--start-idx", 1, "--end-idx", 3]]) == 0
    records = results.read_records(folder)
    assert [record.question_id for record in records] == [1, "left/2"] and len(asked) == 2
    first = records[0]
    assert first.text == COR and first.accuracy == 1.0 and first.layers == (3,)
    assert first.size == (33, 50) and first.instruction == "Point left of mug 1."
    names = [f"1_{number}_{key}.png" for number, key in enumerate([*STEPS, "answer"], 1)]
    assert [step.picture for step in first.steps] == names
    assert [step.text for step in first.steps] == [*STEPS.values(), "[(0.200, 0.500)]"]
    for name in [*names, first.picture, first.image]:
        with Image.open(folder / name) as image:
            image.load()
    maps, regions = results.read_maps(folder, first)
    assert [step.share for step in first.steps] == pytest.approx(maps.sum((1, 2)).tolist(), rel=1e-3)
    assert regions.target is not None and regions.target.shape == (8, 8) and regions.reference is None
    assert first.numbers["3"] == first.numbers["mean"]  # of one layer
    with np.load(folder / "1.npz") as arrays:
        assert arrays["rows"].shape == (1, len(first.token_ids), 64) and arrays["rows"].dtype == np.float16
    assert read_json(folder / "summary.json")["questions"] == 2
    assert (folder / "report.html").stat().st_size > 20_000


def test_layers_heads_rows_and_questions_are_chosen_by_flags(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    flags = ["--layers", 0, 2, "--heads", 1, "--reduce", "max", "--row", "predict", "--scaling", "each", "--every", 2]
    assert attention(bench, folder, *flags) == 0
    records = results.read_records(folder)
    assert [record.question_id for record in records] == [0, "left/2"]
    assert records[0].layers == (0, 2) and records[0].steps[0].share is None
    with np.load(folder / "0.npz") as arrays:
        assert arrays["heads_1"].shape == (4, len(records[0].token_ids), 64)
    assert attention(bench, folder, "--resume", *flags) == 0
    assert len(asked) == 2
    assert attention(bench, folder, "--layers", 9) == 2  # a mistake of the command ends it at once


def test_saved_answers_are_read_without_generating(
    bench: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert attention(bench, tmp_path / "a", "--end-idx", 1) == 0
    (generated,) = results.read_records(tmp_path / "a")
    file = tmp_path / "saved.jsonl"
    write_jsonl(file, [{"question_id": 0, "text": generated.text, "token_ids": list(generated.token_ids)}])
    words = ["--method", "teacher-forced", "--answers", file, "--end-idx", 1]
    assert attention(bench, tmp_path / "b", *words) == 0
    assert len(asked) == 1
    (forced,) = results.read_records(tmp_path / "b")
    first, second = (results.read_maps(tmp_path / name, generated)[0] for name in "ab")
    assert forced.text == generated.text and np.abs(first - second).max() < 1e-4
    assert attention(bench, tmp_path / "b", *words[:-1], 2) == 1
    assert "question 1 failed" in capsys.readouterr().out
    assert attention(bench, tmp_path / "b", "--answers", file) == 2  # without the method


def test_interventions_are_reported_and_kept(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--end-idx", 1, "--intervene") == 0
    effects = interventions.read_effects(folder)
    places = {(effect["step"], effect["kind"]) for effect in effects}
    assert {(step, "control") for step in STEPS} <= places and ("target", "direction") in places
    lines = (folder / "interventions.jsonl").read_text()
    assert attention(bench, folder, "--end-idx", 1, "--intervene", "--resume") == 0
    assert len(asked) == 1 and interventions.read_effects(folder) == effects
    assert (folder / "interventions.jsonl").read_text() == lines
    assert "Does the reasoning matter?" in (folder / "report.html").read_text()


def test_resume_skips_complete_questions_only(
    bench: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"

    def ask(*words: object, generated: int, code: int = 0) -> None:
        before = len(asked)
        assert attention(bench, folder, *words) == code
        assert len(asked) - before == generated

    ask("--end-idx", 2, generated=2)
    ask("--resume", generated=1)
    (folder / "1_3_subtype.png").unlink()
    ask("--resume", generated=1)
    assert (folder / "1_3_subtype.png").is_file()
    assert [record.question_id for record in results.read_records(folder)] == list(IDS)
    ask("--end-idx", 1, generated=1)  # without --resume
    ask("--resume", "--layers", 0, generated=3)  # other layers are another result
    Image.new("RGB", SIZES["tall.png"]).save(bench / "images/tall.png")
    ask("--resume", "--layers", 0, generated=1)  # and so is another picture
    capsys.readouterr()
    ask("--resume", "--layers", 0, "--end-idx", 1, "--dtype", "bfloat16", generated=0, code=2)
    assert "dtype (float32 and bfloat16)" in capsys.readouterr().err


def test_records_of_different_settings_are_not_summarised_together(
    bench: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--end-idx", 1) == 0
    for words in (["--layers", 0], ["--reduce", "max"], ["--row", "predict"]):
        assert attention(bench, folder, "--start-idx", 1, *words) == 2
        assert str(words[0]).strip("-") in capsys.readouterr().err and len(asked) == 1
    assert attention(bench, folder, "--start-idx", 1, "--scaling", "each") == 0  # of the pictures only
    path = folder / "1.json"
    record = read_json(path)
    write_json(path, {**record, "settings": {**record["settings"], "model": "sha256:another"}})
    with pytest.raises(InputError, match="model"):
        summary.write_summary(folder)


def test_a_missing_step_is_reported_and_has_no_picture(bench: Path, tmp_path: Path, nano: Any, asked: Any) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "0_2_target.png").touch()  # of an earlier answer that had the step
    text = "\n".join(line for line in COR.splitlines() if "target area" not in line)
    with saying(nano, text):
        assert attention(bench, folder, "--end-idx", 1) == 0
    (record,) = results.read_records(folder)
    assert record.steps[1] == results.StepRecord("target", "Define the target area", "", None, None, None)
    assert record.numbers["mean"]["entropy"][1] is None and record.uniform["entropy"][1] is None
    assert not (folder / "0_2_target.png").exists() and (folder / "0_3_subtype.png").is_file()


def test_one_bad_image_does_not_end_the_run(
    bench: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (bench / "images/tall.png").write_bytes(b"no image")
    folder = tmp_path / "out"
    assert attention(bench, folder) == 1
    assert "question 1 failed" in capsys.readouterr().out
    assert "tall.png" in read_json(folder / "failures.json")["1"]
    assert [record.question_id for record in results.read_records(folder)] == [0, "left/2"]
    assert attention(bench, folder, "--resume", "--end-idx", 1) == 0
    assert "1" in read_json(folder / "failures.json")  # of an earlier run, and not resolved yet
    Image.new("RGB", SIZES["tall.png"]).save(bench / "images/tall.png")
    before = len(asked)
    assert attention(bench, folder, "--resume") == 0  # failed questions are tried again, the rest is complete
    assert len(asked) == before + 1 and read_json(folder / "failures.json") == {}
    assert len(results.read_records(folder)) == 3


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--max-new-tokens", 0], "--max-new-tokens"),
        (["--every", 0], "--every"),
        (["--conv-mode", "zzz"], "'zzz'"),
        (["--conv-mode", "plain"], "plain"),
        (["--start-idx", 3], "--start-idx 3"),
        (["--start-idx", -1], "--start-idx -1"),
        (["--start-idx", 2, "--end-idx", 2], "--end-idx 2"),
    ],
)
def test_a_mistake_of_the_command_is_reported_before_the_model_is_loaded(
    bench: Path, tmp_path: Path, words: list[object], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attention(bench, tmp_path / "out", "--model", tmp_path / "no model", *words) == 2
    assert name in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "5.json", {"settings": {}})
    with pytest.raises(InputError, match=r"5\.json"):
        results.read_records(tmp_path)
