"""What a summary contains for answers that were written by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.drawing import overlay
from trace_vlm.eval import summarize_vqa
from trace_vlm.eval.summarize_vqa import main
from trace_vlm.eval.tables import as_text, sentences
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json, write_jsonl

LEFT, RIGHT = "[(0.25, 0.5)]", "[(0.75, 0.5)]"  # inside and outside the region of every question
IDS = range(3, 9)
Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def summarize(benchmark_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run summarize_vqa on answer files, with further flags, and return summary.json."""

    def run(*words: str | Path, data: Path | None = benchmark_folder) -> dict[str, Any]:
        named = ["--data", str(data)] if data else []
        out = tmp_path / "out"
        assert main(["--resamples", "200", "--out", str(out), *named, "--answers", *map(str, words)]) == 0
        summary: dict[str, Any] = read_json(out / "summary.json")
        return summary

    return run


Summarize = Callable[..., dict[str, Any]]


def accuracy(model: dict[str, Any], value: str = "all") -> float | None:
    return next(entry["mean"] for entry in model["accuracy"] if entry["value"] == value)


def shares(model: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in model["failures"].items() if value}


def small_benchmark(folder: Path, questions: dict[str, str], size: tuple[int, int] = (9, 9)) -> Path:
    """Questions by id with their image files, each of its own grey; the region is the left half."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (question_id, image) in enumerate(questions.items()):
        if not (folder / "images" / image).exists():
            Image.new("RGB", size, (number, 0, 0)).save(folder / "images" / image)
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(folder / "masks" / f"{question_id}.png")
    lines = [{"question_id": name, "image": image, "text": "q"} for name, image in questions.items()]
    write_jsonl(folder / "point_questions.jsonl", lines)
    return folder


def test_accuracy_counts_failures_as_zero(summarize: Summarize, write_answers: Write, capsys: Capture) -> None:
    path = write_answers({8: LEFT, 3: "no idea", 5: RIGHT, 4: LEFT, 6: "[(0.2, 0.2), (0.9, 0.9)]"})  # 7 is missing
    (model,) = summarize(path)["models"]
    assert model["scores"] == {"3": 0, "4": 1, "5": 0, "6": 0.5, "7": 0, "8": 1}
    assert accuracy(model) == pytest.approx(2.5 / 6)
    assert (model["unanswered"], model["unparsable"], model["outside"]) == (1, 1, 0)
    assert model["parsable"] == pytest.approx(4 / 6)
    assert accuracy(model, "seen") == pytest.approx(1.5 / 4) and accuracy(model, "unseen") == pytest.approx(0.5)
    assert accuracy(model, "direct") == pytest.approx(2.5 / 3) and accuracy(model, "free") == 0
    assert model["micro"] == pytest.approx(3 / 5) and model["first_point"] == pytest.approx(3 / 6)
    text = capsys.readouterr().out
    assert "unseen (hard)" in text and "1 of 6 questions are not answered" in text
    assert "unseen (hard)" in (path.parent / "out" / "summary.md").read_text(encoding="utf-8")


def test_points_of_the_reasoning_do_not_count(summarize: Summarize, write_answers: Write) -> None:
    text = f"1. **Identify the reference object:** at (0.9, 0.9).\n\n**Final Answer:**\n{LEFT}"
    assert accuracy(summarize(write_answers(dict.fromkeys(IDS, text)))["models"][0]) == 1.0


def test_baselines(summarize: Summarize, write_answers: Write, benchmark_folder: Path) -> None:
    path = write_answers({3: LEFT, 4: LEFT, 5: LEFT, 6: RIGHT, 7: RIGHT, 8: RIGHT})
    summary = summarize(path)
    found = {name: (groups[0]["mean"], groups[0]["questions"]) for name, groups in summary["baselines"].items()}
    assert found["shortcut: left edge"] == (1.0, 6)
    assert found["shortcut: midpoint"] == (0.0, 1)  # stored for one question only
    assert "shortcut: left edge" in as_text(summary) and "solves a part" not in as_text(summary)
    assert found["image centre"] == (0.0, 6)  # the region is the left half without the middle column
    assert found["uniform points"][0] == pytest.approx(np.mean([30 / 61, 16 / 33, 18 / 37]))
    # free: 3 and 5 right, 7 wrong, each about another image: every question sees the two others' answers
    assert found["other images"][0] == pytest.approx(np.mean([0.5, 0.5, 1.0, 0.0, 0.5, 0.5]))
    file = benchmark_folder / "point_questions.jsonl"
    questions = [json.loads(line) for line in file.read_text().splitlines()]
    for one in questions:
        one["meta"]["shortcuts"] |= {"uniform": [0.1, 0.1], "center": [0.5, 0.5], "image_nearest_on_side": [0.1, 0.5]}
    write_jsonl(file, questions)
    summary = summarize(path)
    assert "shortcut: image nearest on side" in summary["baselines"]
    assert not {"shortcut: uniform", "shortcut: center"} & set(summary["baselines"])
    assert any("solves a part of the task" in sentence for sentence in sentences(summary))


def test_other_images_leaves_out_the_questions_own_image(summarize: Summarize, tmp_path: Path) -> None:
    """Two questions about one image, one about another: the first two only see the third's answer."""
    folder = small_benchmark(tmp_path / "b", {"0": "a.png", "1": "a.png", "2": "b.png"})
    write_jsonl(folder / "m.jsonl", [{"question_id": n, "text": t} for n, t in enumerate([LEFT, LEFT, RIGHT])])
    baselines = summarize(folder / "m.jsonl", data=folder)["baselines"]
    assert baselines["other images"][0]["mean"] == pytest.approx((0 + 0 + 1) / 3)


def test_two_models_are_compared_on_the_same_questions(
    summarize: Summarize, write_answers: Write, capsys: Capture
) -> None:
    worse = write_answers({**dict.fromkeys(IDS, RIGHT), 3: LEFT}, "worse.jsonl")  # three images: too few to be sure
    better = write_answers(dict.fromkeys(IDS, LEFT), "better.jsonl", token_ids=[1, 2, 3])
    first, second = summarize(worse, better, "--labels", "A", "B")["models"]
    assert first["difference"] is None and first["mean_tokens"] is None and second["mean_tokens"] == 3
    assert second["difference"]["mean"] == pytest.approx(5 / 6) and second["difference"]["low"] > 0
    assert second["difference"]["p_value"] == pytest.approx(0.25) and not second["difference"]["clear"]
    assert "B minus A: +83.3 points" in capsys.readouterr().out


def test_robopoint_compatibility(summarize: Summarize, write_answers: Write) -> None:
    """The reference takes every image for 640 x 480: only pixels hit, and a mixed box is left out of its mean."""
    path = write_answers({3: "(1, 1)", 4: LEFT, 5: LEFT, 6: "(0, 0.2, 0.5, 0.9)", 7: LEFT, 8: LEFT})
    (model,) = summarize(path, "--compat", "robopoint")["models"]
    assert model["robopoint"] == {"accuracy": pytest.approx(1 / 5), "counted": 5, "skipped": 1}


def test_summary_is_the_same_twice(summarize: Summarize, write_answers: Write) -> None:
    path = write_answers({3: LEFT, 4: RIGHT, 5: LEFT, 6: LEFT, 7: RIGHT, 8: LEFT})
    assert summarize(path) == summarize(path)


def test_num_questions(summarize: Summarize, write_answers: Write) -> None:
    summary = summarize(write_answers(dict.fromkeys((3, 4), LEFT)), "--num-questions", "2")
    assert accuracy(summary["models"][0]) == 1.0 and summary["benchmark"]["questions"] == 2


def test_record_names_the_benchmark(
    summarize: Summarize, write_answers: Write, benchmark_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Also after answers and benchmark were moved together; a changed question file is reported."""
    path = write_answers(dict.fromkeys(IDS, LEFT), "bench/m.jsonl")
    record = {"data_dir": str(benchmark_folder), "data_dir_from_here": ".", "question_file": "point_questions.jsonl",
              "settings": {"question_sha256": "0" * 64}}  # fmt: skip
    write_json(path.with_suffix(".run.json"), record)
    summarize(path, data=None)
    assert "was changed since" in capsys.readouterr().out
    benchmark_folder.rename(tmp_path / "moved")
    assert accuracy(summarize(tmp_path / "moved" / "m.jsonl", data=None)["models"][0]) == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "a", "b"], "2 labels for 1"),
        (["--data", "nowhere"], "nowhere"),
        (["--num-questions", "0"], "--num-questions"),
        (["--resamples", "0"], "--resamples 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--convention", "klingon"], "klingon"),
        (["--convention", "unit", "gemini"], "2 conventions for 1"),
    ],
)
def test_refused_flags(summarize: Summarize, write_answers: Write, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        summarize(write_answers(dict.fromkeys(IDS, LEFT)), *flags)


def test_refused_files(summarize: Summarize, write_answers: Write, benchmark_folder: Path, tmp_path: Path) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    with pytest.raises(InputError, match="--data"):
        summarize(path, data=None)
    with pytest.raises(InputError, match="answers.jsonl is given twice"):
        summarize(path, path)
    with pytest.raises(InputError, match="below-a-file"):
        main(["--answers", str(path), "--data", str(benchmark_folder), "--out", str(path / "below-a-file")])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(path.read_text().replace('"text"', "text", 1))
    with pytest.raises(InputError, match="broken.jsonl, line 1"):
        summarize(broken)
    (benchmark_folder / "masks" / "5.png").unlink()
    with pytest.raises(InputError, match="question 5"):
        summarize(path)
    assert not (tmp_path / "out" / "summary.json").exists()


# --- several runs, error classes, the papers' tables, CSV, confidence --------------------------------------------------


def runs_with(right: tuple[int, ...]) -> list[dict[int, str]]:
    """The answers of several runs, of which the first ones are right."""
    return [{number: LEFT if index < count else RIGHT for index, number in enumerate(IDS)} for count in right]


def test_runs_of_a_model_give_mean_and_deviation(
    summarize: Summarize, write_answers: Write, tmp_path: Path, capsys: Capture
) -> None:
    """By one label, by the name that `model_vqa --runs` was given, or in one file by `run`."""
    runs = runs_with((2, 4, 6))
    paths = [write_answers(texts, f"m-{run}.jsonl") for run, texts in enumerate(runs, start=1)]
    (model,) = summarize(*paths, "--labels", "m", "m", "m")["models"]
    assert model["runs"] == 3 and accuracy(model) == pytest.approx(4 / 6)
    assert model["accuracy"][0]["std"] == pytest.approx(np.std([2 / 6, 4 / 6, 1], ddof=1))
    assert model["scores"]["3"] == 1 and model["scores"]["8"] == pytest.approx(1 / 3)
    assert "m: 3 runs, 66.7 +- 33.3" in capsys.readouterr().out
    (same,) = summarize(tmp_path / "m.jsonl")["models"]
    assert same["accuracy"] == model["accuracy"] and len(same["files"]) == 3
    one_file = tmp_path / "one.jsonl"
    lines = [
        {"question_id": number, "run": run, "text": text}
        for run, texts in enumerate(runs, start=1)
        for number, text in texts.items()
    ]
    write_jsonl(one_file, lines)
    (same,) = summarize(one_file)["models"]
    assert same["accuracy"] == model["accuracy"] and same["files"] == [str(one_file)]
    write_jsonl(one_file, lines[:-1])
    assert "1 of 6 questions are not answered in one.jsonl, run 3" in summarize(one_file)["models"][0]["warnings"][0]
    with pytest.raises(InputError, match="none.jsonl"):
        summarize(tmp_path / "none.jsonl")


def test_single_run_beside_numbered_runs_is_ambiguous(summarize: Summarize, write_answers: Write) -> None:
    """As after one run to m.jsonl and then the paper's protocol: m.jsonl alone would silently be the old run."""
    single = write_answers(dict.fromkeys(IDS, LEFT), "m.jsonl", run=0)
    write_answers(dict.fromkeys(IDS, RIGHT), "m-model.jsonl")
    for run in (1, 2, 10):
        write_answers(dict.fromkeys(IDS, RIGHT), f"m-{run}.jsonl", run=run)
    with pytest.raises(InputError, match=r"m.jsonl .* m-1.jsonl, m-2.jsonl, m-10.jsonl .*--runs single"):
        summarize(single)
    results = {}
    for choice in ("single", "numbered"):
        (model,) = summarize(single, "--runs", choice)["models"]
        results[choice] = model["runs"], accuracy(model)
    single.unlink()
    (model,) = summarize(single)["models"]
    assert results == {"single": (1, 1.0), "numbered": (3, 0.0)} and (model["runs"], accuracy(model)) == (3, 0.0)
    with pytest.raises(InputError, match="m.jsonl"):
        summarize(single, "--runs", "single")


def test_model_name_that_ends_in_a_number_is_not_a_run(summarize: Summarize, write_answers: Write) -> None:
    gpt = write_answers(dict.fromkeys(IDS, LEFT), "gpt.jsonl")
    write_answers(dict.fromkeys(IDS, RIGHT), "gpt-4.jsonl")
    (model,) = summarize(gpt)["models"]
    assert (model["runs"], accuracy(model)) == (1, 1.0)


@pytest.mark.parametrize("finish", ["length", "max_tokens"])
def test_cut_answers_are_not_unparsable(finish: str, summarize: Summarize, tmp_path: Path, capsys: Capture) -> None:
    texts = {3: "1. **Identify the ref", 4: "no idea", 5: LEFT, 6: "[(0.25, 0.5), (0.2", 7: RIGHT, 8: "<think>Where"}
    write_jsonl(tmp_path / "m.jsonl", [
        {"question_id": number, "text": text, "metadata": {"finish": "stop" if number == 4 else finish}}
        for number, text in texts.items()
    ])  # fmt: skip
    (model,) = summarize(tmp_path / "m.jsonl")["models"]
    assert (model["cut"], model["unparsable"], model["unanswered"]) == (2, 1, 0)
    assert model["parsable"] == pytest.approx(3 / 6)
    assert shares(model) == pytest.approx({"cut": 2 / 6, "unparsable": 1 / 6, "elsewhere": 1 / 6})
    text = capsys.readouterr().out
    assert "2 answers were cut" in text and "question 4 (no numbers)" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("m "))
    assert row[-3] == "3", "the overview counts them as failed"


def test_accuracy_and_error_classes_add_up_to_one(summarize: Summarize, write_answers: Write) -> None:
    path = write_answers({3: LEFT, 4: "no idea", 5: "[(1.5, 0.5)]", 6: RIGHT, 7: "[(0.2, 0.2), (0.9, 0.9)]"})
    (model,) = summarize(path, "--convention", "unit")["models"]
    sixth = 1 / 6
    expected = {"not answered": sixth, "unparsable": sixth, "outside the image": sixth, "elsewhere": 1 / 4}
    assert shares(model) == pytest.approx(expected)
    assert sum(expected.values()) + accuracy(model) == pytest.approx(1)
    # 5 is right of the image: its nearest pixel of the region ends where the image's left half does
    assert model["distance"] == pytest.approx(np.mean([0, 1.5 * 37 - 18, 0.75 * 61 - 30, (0 + 0.9 * 33 - 16) / 2]))


def test_papers_tables_are_marked_as_published(
    summarize: Summarize, write_answers: Write, benchmark_folder: Path, capsys: Capture
) -> None:
    folder = benchmark_folder.rename(benchmark_folder.with_name("where2place"))
    path = write_answers({**dict.fromkeys(IDS, LEFT), 8: RIGHT})
    summarize(path, "--paper", data=folder)
    lines = capsys.readouterr().out.splitlines()
    ours = next(line for line in lines if line.startswith("answers") and line.endswith("this summary"))
    assert ours.split() == ["answers", "-", "83.3", "50.0", "this", "summary"]  # RoboRefIt, all, the unseen part
    theirs = next(line for line in lines if line.startswith("RoboPoint(FFT)+TRACE"))
    assert "48.1 +- 0.1" in theirs and "as published" in theirs
    assert "as published" in (path.parent / "out" / "summary.md").read_text()
    summarize(path, data=folder)
    assert "as published" not in capsys.readouterr().out


def test_csv_has_a_line_per_model_and_part(summarize: Summarize, write_answers: Write) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    summary = summarize(path, "--labels", "a, b")
    rows = list(csv.DictReader((path.parent / "out" / "summary.csv").read_text().splitlines()))
    assert [(row["model"], row["field"], row["value"]) for row in rows] == [
        ("a, b", entry["field"], entry["value"]) for entry in summary["models"][0]["accuracy"]
    ]
    assert rows[0]["mean"] == "1.0" and rows[0]["questions"] == "6" and rows[0]["std"] == ""


def test_confidence(summarize: Summarize, write_answers: Write) -> None:
    """Confidences of another number than the points are left out; those out of range are an error."""
    path = write_answers(dict.fromkeys(IDS, LEFT), metadata={"point_confidence": [0.9]})
    (model,) = summarize(path)["models"]
    assert model["calibration"]["points"] == 6 and model["calibration"]["ece"] == pytest.approx(0.1)
    path = write_answers(dict.fromkeys(IDS, LEFT), metadata={"point_confidence": [0.9, 0.8]})
    assert summarize(path)["models"][0]["calibration"] is None
    for value in (-0.5, 1.5):
        path = write_answers({3: LEFT}, metadata={"point_confidence": [value]})
        with pytest.raises(InputError, match=rf"answers.jsonl, question 3: .*{value}"):
            summarize(path)


def test_models_keep_their_colors_in_the_calibration_figure(
    summarize: Summarize, write_answers: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(summarize_vqa, "draw_calibration", lambda found, _, colors: given.append((list(found), colors)))
    plain = write_answers(dict.fromkeys(IDS, LEFT), "plain.jsonl")
    sure = write_answers(dict.fromkeys(IDS, LEFT), "sure.jsonl", metadata={"point_confidence": [0.8]})
    summarize(plain, sure)
    assert given == [(["sure"], {"plain": overlay.COLORS[0], "sure": overlay.COLORS[1]})]


def test_files_of_one_name_are_told_apart(summarize: Summarize, write_answers: Write, tmp_path: Path) -> None:
    copies = [write_answers(dict.fromkeys(IDS, LEFT), f"{model}/bench/answers.jsonl") for model in "ab"]
    labels = [one["label"] for one in summarize(*copies)["models"]]
    assert labels == ["a/bench/answers", "b/bench/answers"]
    copies[1] = copies[0].with_suffix(".json")
    copies[1].write_bytes(copies[0].read_bytes())
    assert [one["label"] for one in summarize(*copies)["models"]] == ["bench/answers.jsonl", "bench/answers.json"]


# --- answers of other models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['[{"point_2d": [400, 600]}]', '<point x="46.1" y="52.7" alt="mug">mug</point>', "[(400, 300)]"]
)
def test_answers_of_an_unknown_convention_are_refused(text: str, summarize: Summarize, write_answers: Write) -> None:
    with pytest.raises(InputError, match=r"answers.jsonl, question 4: .*--convention"):
        summarize(write_answers({3: LEFT, 4: text, 5: text}))


def test_convention_can_be_named(summarize: Summarize, tmp_path: Path, write_answers: Write, capsys: Capture) -> None:
    """A picture of 1280 x 960 whose target is around pixel (400, 600)."""
    folder = small_benchmark(tmp_path / "large", {"1": "a.png"}, (1280, 960))
    mask = Image.new("L", (1280, 960))
    mask.paste(255, (360, 560, 440, 640))
    mask.save(folder / "masks" / "1.png")
    foreign = write_answers({1: '[{"point_2d": [400, 600]}]'}, "foreign.jsonl")
    (model,) = summarize(foreign, "--convention", "qwen2.5-vl", data=folder)["models"]
    assert accuracy(model) == 1.0 and model["convention"] == "qwen2.5-vl"
    assert "no size of the pictures as sent is recorded" in capsys.readouterr().out
    pixels = write_answers({1: "[(400, 600)]"}, "pixels.jsonl")
    models = summarize(foreign, pixels, "--convention", "qwen3-vl", "unit", data=folder)["models"]
    assert [accuracy(model) for model in models] == [0.0, 1.0] and "no size" not in capsys.readouterr().out


def test_recorded_run_has_the_projects_own_convention(
    summarize: Summarize, write_answers: Write, benchmark_folder: Path, capsys: Capture
) -> None:
    """`model_vqa` may write a stray pixel: it is read as one."""
    path = write_answers({**dict.fromkeys(IDS, LEFT), 4: "[(8, 25)]", 5: "[(1.5, 0.5)]"})
    record = {"data_dir": str(benchmark_folder), "question_file": "point_questions.jsonl", "settings": {}}
    write_json(path.with_suffix(".run.json"), record)
    (model,) = summarize(path, data=None)["models"]
    assert accuracy(model) == pytest.approx(5 / 6) and model["outside"] == 1 and not model["warnings"]
    (same,) = summarize(path, "--convention", "qwen3-vl", data=None)["models"]
    assert accuracy(same) == pytest.approx(5 / 6)
    assert "--convention qwen3-vl does not apply" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen2.5-vl", "gemini", "unit"])
def test_fractions_under_another_convention_are_doubted(name: str, summarize: Summarize, write_answers: Write) -> None:
    (model,) = summarize(write_answers(dict.fromkeys(IDS, "[0.46, 0.53]")), "--convention", name)["models"]
    doubted = any("6 of 6 points" in warning and "convention unit" in warning for warning in model["warnings"])
    assert doubted == (name != "unit")


def test_mixed_answer_is_scored_by_its_points(summarize: Summarize, write_answers: Write) -> None:
    """All numbers agree: accuracy, first point, micro, error classes, distances, confidence."""
    box = "(0.1, 0.1, 0.4, 0.9)"
    mixed, plain = f"[{box}, (0.9, 0.5), (0.9, 0.5), {box}, (0.25, 0.5)]", "[(0.9, 0.5), (0.9, 0.5), (0.25, 0.5)]"
    confidence = {"point_confidence": [0.1, 0.2, 0.3, 0.4, 0.9]}
    path = write_answers(dict.fromkeys(IDS, mixed), "mixed.jsonl", metadata=confidence)
    other = write_answers(dict.fromkeys(IDS, plain), "plain.jsonl", metadata={"point_confidence": [0.2, 0.3, 0.9]})
    first, second = summarize(path, other)["models"]
    assert accuracy(first) == first["micro"] == pytest.approx(1 / 3) and first["first_point"] == 0
    for name in ("accuracy", "micro", "first_point", "failures", "distance", "mean_points", "calibration", "scores"):
        assert first[name] == second[name], name
    (model,) = summarize(write_answers(dict.fromkeys(IDS, f"[{box}]"), "boxes.jsonl"))["models"]
    assert accuracy(model) == model["micro"] == 1.0


# --- images and masks -------------------------------------------------------------------------------------------------


def test_copies_of_an_image_under_other_names_are_one_image(summarize: Summarize, tmp_path: Path) -> None:
    """The interval of five images with four questions each is the same when every question has its own copy."""
    summaries = []
    for name in ("shared", "copied"):
        questions = {f"q{n}": f"{n // 4}.png" if name == "shared" else f"copy{n}.png" for n in range(20)}
        folder = small_benchmark(tmp_path / name, questions)
        for number, image in enumerate(questions.values()):
            Image.new("RGB", (9, 9), (number // 4, 0, 0)).save(folder / "images" / image)
        texts = [{"question_id": f"q{n}", "text": LEFT if n // 4 < 3 else RIGHT} for n in range(20)]
        write_jsonl(folder / "m.jsonl", texts)
        summaries.append(summarize(folder / "m.jsonl", data=folder))
    shared, copied = summaries
    assert shared["benchmark"]["images"] == copied["benchmark"]["images"] == 5
    assert shared["models"][0]["accuracy"] == copied["models"][0]["accuracy"]
    assert shared["baselines"]["other images"] == copied["baselines"]["other images"]
    entry = shared["models"][0]["accuracy"][0]
    assert entry["low"] <= 0.2 and entry["high"] == 1


def test_mask_of_the_whole_image_gives_a_warning(
    summarize: Summarize, benchmark_folder: Path, write_answers: Write
) -> None:
    for number in (4, 6):
        path = benchmark_folder / "masks" / f"{number}.png"
        Image.new("L", Image.open(path).size, 255).save(path)
    (model,) = summarize(write_answers(dict.fromkeys(IDS, RIGHT)))["models"]
    assert "2 of 6 questions (question 4" in model["warnings"][0]
