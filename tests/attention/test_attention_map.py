"""visualization/attention_map.py: what it writes, what it skips, what it refuses."""

import numpy as np
import pytest
from forced_answers import COR, STEPS, saying
from matplotlib.figure import Figure
from PIL import Image
from small_benchmark import IDS, SIZES, make_benchmark, script

from trace_vlm.attention import interventions, results, summary
from trace_vlm.drawing import figures
from trace_vlm.inference.predictor import Predictor
from trace_vlm.report import page_sections
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json, write_jsonl


@pytest.fixture
def folder(tmp_path):
    make_benchmark(tmp_path / "bench")
    return tmp_path / "out"


@pytest.fixture
def generated(nano, monkeypatch):
    """A nano model that answers every question with COR; the list grows by one entry at each question."""
    calls, generate = [], nano.model.generate
    monkeypatch.setattr(nano.model, "generate", lambda **options: calls.append(options) or generate(**options))
    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(nano)))
    with saying(nano, COR):
        yield calls


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are empty: drawing is most of what these tests take."""
    for module, name in ((figures, "draw_step"), (figures, "draw_steps"), (page_sections, "draw_measure")):
        monkeypatch.setattr(module, name, lambda *_, **__: Figure(figsize=(1, 1)))


@pytest.fixture
def attend(folder):
    """Run the command with these words, on the first `end` questions."""
    flags = ["--model", "nano-random", "--data", folder.parent / "bench", "--out", folder, "--end-idx"]
    return lambda *words, end=3: run(script("attention_map").main, list(map(str, [*flags, end, *words])))


def test_one_picture_a_step_one_of_all_and_a_record(tmp_path, folder, generated):
    published = ["--model_path", "nano-random", "--dataset_dir", tmp_path / "bench", "--output_dir", folder]
    words = [*published, "--layers", -1, "--start-idx", 1, "--end-idx", 3]
    assert run(script("attention_map").main, list(map(str, words))) == 0
    records = results.read_records(folder)
    assert [record.question_id for record in records] == [1, "left/2"] and len(generated) == 2
    first = records[0]
    assert first.text == COR and first.accuracy == 1.0 and first.layers == (3,)
    assert first.size == (33, 50) and first.instruction == "Point left of mug 1."
    names = [f"1_{number}_{key}.png" for number, key in enumerate([*STEPS, "answer"], 1)]
    assert [step.picture for step in first.steps] == names
    assert [step.text for step in first.steps] == [*STEPS.values(), "[(0.200, 0.500)]"]
    for name in [*names, first.picture, first.image]:
        Image.open(folder / name).load()
    maps, regions = results.read_maps(folder, first)
    assert [step.share for step in first.steps] == pytest.approx(maps.sum((1, 2)).tolist(), rel=1e-3)
    assert regions.target.shape == (8, 8) and regions.reference is None
    assert first.numbers["3"] == first.numbers["mean"]  # of one layer
    rows = np.load(folder / "1.npz")["rows"]
    assert rows.shape == (1, len(first.token_ids), 64) and rows.dtype == np.float16
    assert read_json(folder / "summary.json")["questions"] == 2
    assert (folder / "report.html").stat().st_size > 20_000


def test_layers_heads_rows_and_questions_are_chosen_by_flags(attend, folder, generated):
    flags = ["--layers", 0, 2, "--heads", 1, "--reduce", "max", "--row", "predict", "--scaling", "each", "--every", 2]
    assert attend(*flags) == 0
    records = results.read_records(folder)
    assert [record.question_id for record in records] == [0, "left/2"]
    assert records[0].layers == (0, 2) and records[0].steps[0].share is None
    assert np.load(folder / "0.npz")["heads_1"].shape == (4, len(records[0].token_ids), 64)
    assert attend("--resume", *flags) == 0 and len(generated) == 2
    assert attend("--layers", 9) == 2  # a mistake of the command ends it at once


def test_saved_answers_are_read_without_generating(attend, folder, tmp_path, generated, undrawn, capsys):
    assert attend(end=1) == 0
    (first,) = results.read_records(folder)
    file = tmp_path / "saved.jsonl"
    write_jsonl(file, [{"question_id": 0, "text": first.text, "token_ids": first.token_ids}])
    words = ["--method", "teacher-forced", "--answers", file, "--out", tmp_path / "b"]
    assert attend(*words, end=1) == 0 and len(generated) == 1
    (forced,) = results.read_records(tmp_path / "b")
    maps = [results.read_maps(path, first)[0] for path in (folder, tmp_path / "b")]
    assert forced.text == first.text and np.abs(maps[0] - maps[1]).max() < 1e-4
    assert attend(*words, end=2) == 1 and "question 1 failed" in capsys.readouterr().out
    assert attend("--answers", file) == 2  # without the method


def test_interventions_are_reported_and_kept(attend, folder, generated, undrawn):
    assert attend("--intervene", end=1) == 0
    effects = interventions.read_effects(folder)
    edits = {(effect["step"], effect["kind"]) for effect in effects}
    assert {(step, "control") for step in STEPS} <= edits and ("target", "direction") in edits
    lines = (folder / "interventions.jsonl").read_text()
    assert attend("--intervene", "--resume", end=1) == 0 and len(generated) == 1
    assert interventions.read_effects(folder) == effects
    assert (folder / "interventions.jsonl").read_text() == lines
    assert "Does the reasoning matter?" in (folder / "report.html").read_text()


def test_resume_skips_complete_questions_only(attend, tmp_path, folder, generated, undrawn):
    def ask(*words, expected, end=3):
        generated.clear()
        assert attend(*words, end=end) == 0 and len(generated) == expected

    ask(end=2, expected=2)
    ask("--resume", expected=1)
    (folder / "1_3_subtype.png").unlink()
    ask("--resume", expected=1)
    assert (folder / "1_3_subtype.png").is_file()
    assert [record.question_id for record in results.read_records(folder)] == list(IDS)
    ask(end=1, expected=1)  # without --resume
    ask("--resume", "--layers", 0, expected=3)  # other layers are another result
    Image.new("RGB", SIZES["tall.png"]).save(tmp_path / "bench/images/tall.png")
    ask("--resume", "--layers", 0, expected=1)  # and so is another picture


def test_records_of_different_settings_are_not_summarised_together(attend, folder, generated, undrawn, capsys):
    assert attend(end=1) == 0
    for flag, value in (("--layers", 0), ("--reduce", "max"), ("--row", "predict"), ("--dtype", "bfloat16")):
        assert attend("--start-idx", 1, flag, value) == 2
        assert flag.strip("-") in capsys.readouterr().err and len(generated) == 1
    assert attend("--start-idx", 1, "--scaling", "each") == 0  # of the pictures only
    record = read_json(folder / "1.json")
    write_json(folder / "1.json", {**record, "settings": {**record["settings"], "model": "sha256:another"}})
    with pytest.raises(InputError, match="model"):
        summary.write_summary(folder)


def test_a_missing_step_is_reported_and_has_no_picture(attend, folder, nano, generated, undrawn):
    folder.mkdir()
    (folder / "0_2_target.png").touch()  # of an earlier answer that had the step
    with saying(nano, "\n".join(line for line in COR.splitlines() if "target area" not in line)):
        assert attend(end=1) == 0
    (record,) = results.read_records(folder)
    assert record.steps[1] == results.StepRecord("target", "Define the target area", "", None, None, None)
    assert record.numbers["mean"]["entropy"][1] is None and record.uniform["entropy"][1] is None
    assert not (folder / "0_2_target.png").exists() and (folder / "0_3_subtype.png").is_file()


def test_one_bad_image_does_not_end_the_run(attend, tmp_path, folder, generated, undrawn, capsys):
    (tmp_path / "bench/images/tall.png").write_bytes(b"no image")
    assert attend() == 1 and "question 1 failed" in capsys.readouterr().out
    assert "tall.png" in read_json(folder / "failures.json")["1"]
    assert [record.question_id for record in results.read_records(folder)] == [0, "left/2"]
    assert attend("--resume", end=1) == 0
    assert "1" in read_json(folder / "failures.json")  # of an earlier run, and not resolved yet
    Image.new("RGB", SIZES["tall.png"]).save(tmp_path / "bench/images/tall.png")
    generated.clear()
    assert attend("--resume") == 0  # failed questions are tried again, the rest is complete
    assert len(generated) == 1 and read_json(folder / "failures.json") == {}
    assert len(results.read_records(folder)) == 3


@pytest.mark.parametrize(("words", "name"), [
    (["--max-new-tokens", 0], "--max-new-tokens"), (["--every", 0], "--every"), (["--conv-mode", "zzz"], "'zzz'"),
    (["--conv-mode", "plain"], "plain"), (["--start-idx", 3], "--start-idx 3"),
    (["--start-idx", -1], "--start-idx -1"), (["--start-idx", 2, "--end-idx", 2], "--end-idx 2"),
])  # fmt: skip
def test_a_mistake_of_the_command_is_reported_before_the_model_is_loaded(attend, folder, words, name, capsys):
    assert attend("--model", folder / "no model", *words) == 2
    assert name in capsys.readouterr().err and not folder.exists()
