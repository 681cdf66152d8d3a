"""The commands in visualization/: what they write, what they skip, what they refuse."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from forced_answers import encoded, saying
from PIL import Image

from trace_vlm.attention import interventions, results, summary
from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import render
from trace_vlm.drawing import canvas
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.report import comparison as comparing
from trace_vlm.report import comparison_files
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"wide.png": (61, 40), "tall.png": (33, 50), "square.png": (37, 37)}
IDS: Mapping[int | str, str] = {0: "wide.png", 1: "tall.png", "left/2": "square.png"}
IN, OUT = "(0.2, 0.5)", "(0.9, 0.5)"  # the region is the left half of every image
STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": "Free space.", "output": "One point."}
COR = render(STEPS, [Point(0.2, 0.5)])


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "visualization" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / "images" / name)
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(folder / "masks" / Path(name).with_suffix(".jpg"), quality=100)
    write_jsonl(folder / "point_questions.jsonl", [
        {"question_id": number, "image": image, "text": f"Point left of mug {number}. {POINTS_SUFFIX}",
         "category": "unseen" if number == 1 else "seen"}
        for number, image in IDS.items()
    ])  # fmt: skip
    return folder


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *texts: str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        write_jsonl(path, [{"question_id": i, "text": text} for i, text in zip(IDS, texts, strict=False)])
        return path

    return write


# --- visualize_results ---------------------------------------------------------------------------------------------


@pytest.fixture
def two(answers: Callable[..., Path]) -> tuple[Path, Path]:
    """Accuracies 1, 0, 1/2 and 1, 1, 1."""
    return answers("first", IN, OUT, f"[{IN}, {OUT}]"), answers("second", COR, COR, IN)


def visualize(*words: object) -> int:
    return run(script("visualize_results").main, [str(word) for word in words])


def test_pictures_and_their_index_are_written(bench: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    flags = ["--labels", "plain", "cor", "--data_dir", bench / "images", "--output_dir", folder, "--num_questions", 2]
    assert visualize("--answer_files", *two, *flags) == 0
    gallery = comparison_files.read_comparisons(folder)
    assert [item.question_id for item in gallery.items] == [0, 1, "left/2"]
    assert [item.picture for item in gallery.items] == ["0.png", "1.png", None]  # data of all, pictures of --num
    assert gallery.scores == (
        comparison_files.Score("plain", 3, 0.5, (("right", 2), ("elsewhere", 1)), 0.5, 3),
        comparison_files.Score("cor", 3, 1.0, (("right", 3),), 1.0, 3),
    )
    second = gallery.items[1]
    assert second.instruction == "Point left of mug 1." and second.category == "unseen" and second.size == (33, 50)
    assert second.answers == (
        comparison_files.ModelAnswer("plain", OUT, 0.0, "elsewhere"),
        comparison_files.ModelAnswer("cor", COR, 1.0, "right"),
    )
    corners = np.array(second.outline[0])
    assert corners.min() == pytest.approx(0, abs=0.02) and corners.max(axis=0) == pytest.approx([16 / 33, 1], abs=0.02)
    for name in ["0.png", "1.png", "failures.png", *(item.image for item in gallery.items)]:
        with Image.open(folder / name) as image:
            image.load()
    assert (folder / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("given", [0, 1, "left/2"]),
        ("worst", [1, "left/2", 0]),
        ("best", [0, "left/2", 1]),
        ("disagree", [1, "left/2", 0]),
    ],
)
def test_the_order_of_the_questions(bench: Path, two: tuple[Path, Path], order: str, expected: list[Any]) -> None:
    comparison = comparing.compare(open_benchmark(bench), {"a": two[0], "b": two[1]})
    assert [question.question_id for question in comparing.ordered(comparison, order)] == expected


@pytest.mark.parametrize(
    ("flags", "whole", "hard"),
    [
        (["--where2place-h"], ["1"], None),
        (["--where2place_h", "--num", "1"], ["1"], None),
        (["--create-both", "--where2place-h-count", "5", "--num", "2"], ["0", "1"], ["1"]),
    ],
)
def test_the_hard_part_by_the_published_flags(
    bench: Path, two: tuple[Path, Path], tmp_path: Path, flags: list[str], whole: list[str], hard: list[str] | None
) -> None:
    words = ["--answer-files", *map(str, two), "--data-dir", str(bench), "--output", str(tmp_path / "out"), *flags]
    assert script("visualize_results").main(words) == 0
    found = {folder: tmp_path / "out" / folder for folder in ("", "hard")}
    names = {folder: [str(item["question_id"]) for item in read_json(path / "index.json")["items"] if item["picture"]]
             for folder, path in found.items() if (path / "index.json").exists()}  # fmt: skip
    assert names == {"": whole, **({"hard": hard} if hard else {})}


def test_only_what_all_models_answered_is_compared(bench: Path, answers: Callable[..., Path]) -> None:
    files = {"a": answers("a", OUT, IN, IN), "b": answers("b", IN, IN)}
    comparison = comparing.compare(open_benchmark(bench), files)
    assert [question.question_id for question in comparison.questions] == [0, 1]
    assert [(one.label, one.questions, one.accuracy) for one in comparison.overall] == [("a", 2, 0.5), ("b", 2, 1.0)]
    unseen = comparing.compare(open_benchmark(bench), files, "unseen")
    assert [question.question_id for question in unseen.questions] == [1]
    with pytest.raises(InputError, match="no question of category 'hard'"):
        comparing.compare(open_benchmark(bench), files, "hard")


def test_the_mean_over_the_benchmark_counts_what_was_not_answered_as_0(
    bench: Path, answers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = answers("all", IN, OUT, IN), answers("two", IN, IN)
    assert (
        visualize("--answer-files", *files, "--data-dir", bench, "--output", tmp_path / "out", "--category", "seen")
        == 0
    )
    scores = comparison_files.read_comparisons(tmp_path / "out").scores
    assert [(one.questions, one.accuracy) for one in scores] == [(1, 1.0), (1, 1.0)]
    assert [(round(one.benchmark or 0, 3), one.asked, one.unanswered) for one in scores] == [
        (0.667, 3, 0),
        (0.667, 3, 1),
    ]
    assert "66.7% of all 3 questions of the benchmark, 100.0% of 1 questions" in capsys.readouterr().out


def test_without_masks_nothing_is_scored(bench: Path, two: tuple[Path, Path]) -> None:
    for path in (bench / "masks").iterdir():
        path.unlink()
    comparison = comparing.compare(open_benchmark(bench), {"a": two[0]})
    assert comparison.overall == (comparison_files.Score("a", 3, None, asked=3),)
    with pytest.raises(InputError, match="--sort worst needs accuracies"):
        comparing.ordered(comparison, "worst")


def test_questions_are_filtered_by_how_an_answer_failed(
    bench: Path, answers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = answers("a", IN, "I cannot say.", "(1.4, 0.5)")
    words = (
        "--answer-files",
        file,
        "--data-dir",
        bench,
        "--output",
        tmp_path / "out",
        "--failure",
        "outside the image",
    )
    assert visualize(*words) == 2 and "--convention" in capsys.readouterr().err
    assert visualize(*words, "--convention", "unit") == 0
    (item,) = comparison_files.read_comparisons(tmp_path / "out").items
    assert item.question_id == "left/2"
    assert "right 1, unparsable 1, outside the image 1" in capsys.readouterr().out
    assert visualize(*words, "--convention", "unit", "--failure", "late") == 2
    assert "these occur: outside the image, right, unparsable" in capsys.readouterr().err


def test_answers_that_were_cut_are_called_cut(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the text, in the index that the report reads, and so in failures.png, which draws what the index counts."""
    file = tmp_path / "a.jsonl"
    write_jsonl(file, [
        {"question_id": number, "text": "1. **Identify the", "metadata": {"finish": finish}}
        for number, finish in zip(IDS, ("length", "stop", "length"), strict=True)
    ])  # fmt: skip
    assert visualize("--answer-files", file, "--data-dir", bench, "--output", tmp_path / "out") == 0
    assert "cut 2, unparsable 1" in capsys.readouterr().out
    gallery = comparison_files.read_comparisons(tmp_path / "out")
    assert gallery.scores[0].outcomes == (("cut", 2), ("unparsable", 1))
    assert [item.answers[0].outcome for item in gallery.items] == ["cut", "unparsable", "cut"]
    assert '"outcome":"cut"' in (tmp_path / "out" / "report.html").read_text()


def test_answers_of_several_runs_are_compared_one_run_at_a_time(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    write_jsonl(file, [{"question_id": number, "text": IN, "run": run} for run in (1, 2) for number in IDS])
    assert visualize("--answer-files", file, "--data-dir", bench, "--output", tmp_path / "out") == 2
    assert "holds the answers of 2 runs (1, 2)" in capsys.readouterr().err


def test_what_makes_the_numbers_doubtful_is_said(
    bench: Path, answers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full(SIZES[IDS[1]][::-1], 255, np.uint8)).save(
        bench / "masks" / Path(IDS[1]).with_suffix(".jpg")
    )
    words = ["--data-dir", bench, "--output", tmp_path / "out", "--convention", "qwen3-vl"]
    assert visualize("--answer-files", answers("a", *["[(0.46, 0.53)]"] * 3), *words) == 0
    said = capsys.readouterr().out
    assert "warning: a: 3 of 3 points lie below 1/100" in said
    assert "warning: the mask covers the whole image in 1 of 3 questions (question 1 is the first)" in said


def test_a_question_that_was_skipped_needs_no_picture(
    bench: Path, answers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench / "images" / IDS[1]).write_bytes(b"no image")
    file = answers("a", IN)
    write_jsonl(file, [{"question_id": number, "text": IN} for number in IDS if number != 1])
    write_json(file.with_suffix(".run.json"), {"skipped": [1], "settings": {}})
    assert visualize("--answer-files", file, "--data-dir", bench, "--output", tmp_path / "out") == 0
    assert "a: 66.7% of all 3 questions of the benchmark" in capsys.readouterr().out


def test_mistakes_are_one_sentence(
    bench: Path, two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in [
        (["--answer-files", tmp_path / "none.jsonl"], "does not exist"),
        (["--answer-files", *two, "--labels", "one"], "as many different --labels"),
        (["--answer-files", two[0], "--num", "0"], "--num has to be at least 1"),
        (
            ["--answer-files", two[0], "--where2place-h-count", "-3"],
            "--where2place-h-count has to be at least 1, not -3",
        ),
        (["--answer-files", two[0], "--create-both", "--where2place-h-count", "0"], "has to be at least 1, not 0"),
        (["--answer-files", two[0], "--category", "seen", "--where2place-h"], "leave out one"),
    ]:
        assert visualize(*words, "--data-dir", bench, "--output", tmp_path / "out") == 2
        assert said in capsys.readouterr().err


def test_it_runs_from_anywhere(bench: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["--answer-files", two[0], "--data-dir", bench, "--output", "out", "--num", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "visualization/visualize_results.py", *map(str, words)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "first: 50.0% of 3 questions" in done.stdout and (tmp_path / "out/0.png").is_file()


def test_no_two_questions_share_a_file() -> None:
    names = [comparison_files.file_name(name) for name in (7, "a/b", "a_b", "a?b", "../a", "..", "x" * 300, "x" * 301)]
    assert len(set(names)) == len(names) and names[0] == "7"
    assert all("/" not in name and not name.startswith(".") and len(name) < 100 for name in names)


# --- attention_map -------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(nano: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A nano model that answers every question with COR; grows by the number of prompt tokens at each question."""
    from trace_vlm.inference.predictor import Predictor

    calls: list[int] = []
    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(nano)))
    with saying(nano, [*encoded(nano.tokenizer, COR), nano.tokenizer.eos_token_id]):
        generate = nano.model.generate

        def counted(**options: Any) -> Any:
            calls.append(options["input_ids"].shape[1])
            return generate(**options)

        # smaller pictures: drawing is most of what these tests take
        monkeypatch.setattr(results, "save", lambda figure, path: canvas.save(figure, path, 0.3))
        monkeypatch.setattr(nano.model, "generate", counted)
        yield calls  # type: ignore[misc]
        monkeypatch.undo()


def attention(bench: Path, folder: Path, *words: object) -> int:
    given = ["--model-path", "nano", "--dataset-dir", bench, "--output-dir", folder, *words]
    return run(script("attention_map").main, [str(word) for word in given])


def test_one_picture_a_milestone_one_strip_and_a_record(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--start-idx", 1, "--end-idx", 3, "--layers", -1) == 0
    records = results.read_attention(folder)
    assert [record.question_id for record in records] == [1, "left/2"]
    first = records[0]
    assert first.text == COR and first.accuracy == 1.0 and first.missing == () and first.layers == (3,)
    assert first.size == (33, 50) and first.instruction == "Point left of mug 1."
    names = [
        f"1_{place}_{key}.png" for place, key in enumerate(["reference", "target", "subtype", "output", "answer"], 1)
    ]
    assert [milestone.picture for milestone in first.milestones] == names
    assert [milestone.text for milestone in first.milestones] == [*STEPS.values(), "[(0.200, 0.500)]"]
    for name in [*names, first.picture, first.image]:
        with Image.open(folder / name) as image:
            image.load()
    maps, regions = results.read_maps(folder, first)
    assert [milestone.share for milestone in first.milestones] == pytest.approx(maps.sum((1, 2)).tolist(), rel=1e-3)
    assert all(step.heat.shape == (50, 33) for step in first.steps(maps))  # type: ignore[union-attr]
    assert regions.target is not None and regions.target.shape == (8, 8) and regions.reference is None
    assert first.numbers["3"] == first.numbers["mean"]  # of one layer
    with np.load(folder / "1.npz") as arrays:
        assert arrays["rows"].shape == (1, len(first.token_ids), 64) and arrays["rows"].dtype == np.float16
    assert read_json(folder / "summary.json")["questions"] == 2
    assert (folder / "report.html").stat().st_size > 20_000
    assert len(asked) == 2


def test_layers_heads_and_rows_are_chosen_by_flags(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    flags = ["--layers", 0, 2, "--heads", 1, "--reduce", "max", "--row", "predict", "--scaling", "each"]
    assert attention(bench, folder, "--end-idx", 1, *flags) == 0
    (record,) = results.read_attention(folder)
    assert record.layers == (0, 2) and record.milestones[0].share is None
    with np.load(folder / "0.npz") as arrays:
        assert arrays["heads_1"].shape == (4, len(record.token_ids), 64)
    assert attention(bench, folder, "--end-idx", 1, "--resume", *flags) == 0
    assert len(asked) == 1
    assert attention(bench, folder, "--layers", 9) == 2  # a mistake of the command ends it at once


def test_saved_answers_are_read_without_generating(
    bench: Path, tmp_path: Path, asked: list[int], answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert attention(bench, tmp_path / "a", "--end-idx", 1) == 0
    (generated,) = results.read_attention(tmp_path / "a")
    file = tmp_path / "saved.jsonl"
    write_jsonl(file, [{"question_id": 0, "text": generated.text, "token_ids": list(generated.token_ids)}])
    words = ["--method", "teacher-forced", "--answer-file", file, "--end-idx", 1]
    assert attention(bench, tmp_path / "b", *words) == 0
    assert len(asked) == 1
    (forced,) = results.read_attention(tmp_path / "b")
    one, other = (results.read_maps(tmp_path / name, generated)[0] for name in "ab")
    assert forced.text == generated.text and np.abs(one - other).max() < 1e-4
    assert attention(bench, tmp_path / "b", *words[:-1], 2) == 1
    assert "holds no answer to question 1" in capsys.readouterr().out
    assert attention(bench, tmp_path / "b", "--answer-file", file) == 2


def test_interventions_are_reported_and_kept(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--end-idx", 1, "--intervene") == 0
    effects = interventions.read_effects(folder)
    found = {(one["step"], one["kind"]) for one in effects}
    assert {(step, "control") for step in STEPS} <= found and ("target", "direction") in found
    before = len(asked)
    assert attention(bench, folder, "--end-idx", 1, "--intervene", "--resume") == 0
    assert len(asked) == before and interventions.read_effects(folder) == effects
    assert "Does the reasoning matter?" in (folder / "report.html").read_text()


def test_resume_skips_what_is_whole_and_only_that(
    bench: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--end-idx", 2) == 0
    assert attention(bench, folder, "--resume") == 0
    assert len(asked) == 3 and "2 of 3 questions are whole already" in capsys.readouterr().out
    (folder / "1_3_subtype.png").unlink()
    assert attention(bench, folder, "--resume") == 0
    assert len(asked) == 4 and (folder / "1_3_subtype.png").is_file()
    assert [record.question_id for record in results.read_attention(folder)] == list(IDS)
    assert attention(bench, folder, "--end-idx", 1) == 0
    assert len(asked) == 5  # without --resume all is drawn anew
    assert attention(bench, folder, "--resume", "--layers", 0) == 0
    assert len(asked) == 8  # other layers are another result
    Image.new("RGB", SIZES["tall.png"]).save(bench / "images/tall.png")
    assert attention(bench, folder, "--resume", "--layers", 0) == 0
    assert len(asked) == 9  # and so is another picture
    capsys.readouterr()
    assert attention(bench, folder, "--resume", "--layers", 0, "--end-idx", 1, "--dtype", "bfloat16") == 2
    assert "differ in dtype (float32 and bfloat16)" in capsys.readouterr().err and len(asked) == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--layers", 0], "layers (None and [0])"), (["--reduce", "max"], "reduce (mean and max)"),
     (["--row", "predict"], "row (fed and predict)")],
)  # fmt: skip
def test_records_of_different_settings_are_not_summarised_as_one(
    bench: Path, tmp_path: Path, asked: list[int], words: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--end-idx", 1) == 0
    assert attention(bench, folder, "--start-idx", 1, *words) == 2
    error = capsys.readouterr().err
    assert len(asked) == 1 and said in error and "its own --output-dir" in error
    assert attention(bench, folder, "--start-idx", 1, "--scaling", "each") == 0  # of the pictures only
    path = folder / "1.json"
    record = read_json(path)
    write_json(path, {**record, "settings": {**record["settings"], "model": "sha256:another"}})
    with pytest.raises(InputError, match="differ in model"):
        summary.write_summary(folder)


def test_a_missing_step_is_reported_and_has_no_picture(
    bench: Path, tmp_path: Path, nano: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trace_vlm.inference.predictor import Predictor

    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(nano)))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "0_2_target.png").touch()  # of an earlier answer that had the step
    text = "\n".join(line for line in COR.splitlines() if "target area" not in line)
    with saying(nano, [*encoded(nano.tokenizer, text), nano.tokenizer.eos_token_id]):
        assert attention(bench, folder, "--end-idx", 1) == 0
    (record,) = results.read_attention(folder)
    assert record.missing == ("Define target area",)
    assert record.milestones[1] == results.MilestoneRecord("target", "Define target area", "", None, None, None)
    assert record.numbers["mean"]["entropy"][1] is None and record.uniform["entropy"][1] is None
    assert not (folder / "0_2_target.png").exists() and (folder / "0_3_subtype.png").is_file()


def test_one_bad_image_does_not_end_the_run(
    bench: Path, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (bench / "images/tall.png").write_bytes(b"no image")
    folder = tmp_path / "out"
    assert attention(bench, folder) == 1
    assert "question 1 failed: the image" in capsys.readouterr().out
    assert "cannot be read" in read_json(folder / "failures.json")["1"]
    assert [record.question_id for record in results.read_attention(folder)] == [0, "left/2"]
    assert attention(bench, folder, "--resume", "--end-idx", 1) == 0
    assert "1" in read_json(folder / "failures.json")  # of an earlier run, and not mended yet
    Image.new("RGB", SIZES["tall.png"]).save(bench / "images/tall.png")
    before = len(asked)
    assert attention(bench, folder, "--resume") == 0  # what failed is tried again, the rest is whole
    assert len(asked) == before + 1 and read_json(folder / "failures.json") == {}
    assert len(results.read_attention(folder)) == 3


def test_every_other_question_is_asked(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    folder = tmp_path / "out"
    assert attention(bench, folder, "--every", 2, "--layers", -1) == 0
    assert [record.question_id for record in results.read_attention(folder)] == [0, "left/2"]
    assert attention(bench, folder, "--every", 0) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-new-tokens", 0], "--max-new-tokens"),
        (["--conv-mode", "zzz"], "'zzz'"),
        (["--conv-mode", "plain"], "plain"),
    ],
)
def test_a_mistake_of_the_command_is_said_before_the_model_is_loaded(
    bench: Path, tmp_path: Path, words: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attention(bench, tmp_path / "out", "--model-path", tmp_path / "no model", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--start-idx", 3], ["--start-idx", -1], ["--start-idx", 2, "--end-idx", 2]])
def test_a_range_without_questions_is_refused(
    bench: Path, tmp_path: Path, words: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert attention(bench, tmp_path / "out", *words) == 2
    assert "is no part of the 3 questions" in capsys.readouterr().err


def test_a_strange_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"records": ["5.json"]}))
    (tmp_path / "5.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(InputError, match=r"5\.json is not a record of attention"):
        results.read_attention(tmp_path)
    with pytest.raises(InputError, match="not an index of compared answers"):
        comparison_files.read_comparisons(tmp_path)
