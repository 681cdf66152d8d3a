"""What a summary says about answers that were written by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.eval.summarize_vqa import main
from trace_vlm.eval.tables import as_text, sentences
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import write_json, write_jsonl

LEFT, RIGHT = "[(0.25, 0.5)]", "[(0.75, 0.5)]"  # inside and outside the region of every question
IDS = range(3, 9)


def summary_of(*arguments: str | Path, expect: str = "") -> dict[str, Any]:
    words = [str(argument) for argument in arguments]
    assert main([*words, "--resamples", "200"]) == 0
    folder = Path(words[words.index("--output") + 1]) if "--output" in words else Path(words[1]).parent
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def accuracy(model: dict[str, Any], value: str = "all") -> float | None:
    return next(entry["mean"] for entry in model["accuracy"] if entry["value"] == value)


def test_answers_in_any_order_failures_as_zero(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {8: LEFT, 3: "no idea", 5: RIGHT, 4: LEFT, 6: "[(0.2, 0.2), (0.9, 0.9)]"}  # 7 is not answered
    path = write_answers(texts)
    summary = summary_of("--answer", path, "--data-dir", benchmark_folder)
    (model,) = summary["models"]
    assert model["scores"] == {"3": 0, "4": 1, "5": 0, "6": 0.5, "7": 0, "8": 1}
    assert accuracy(model) == pytest.approx(2.5 / 6)
    assert (model["unanswered"], model["unparsable"], model["outside"]) == (1, 1, 0)
    assert model["parsable"] == pytest.approx(4 / 6)
    assert accuracy(model, "seen") == pytest.approx(1.5 / 4) and accuracy(model, "unseen") == pytest.approx(0.5)
    assert accuracy(model, "direct") == pytest.approx(2.5 / 3) and accuracy(model, "free") == 0
    assert model["micro"] == pytest.approx(3 / 5) and model["first_point"] == pytest.approx(3 / 6)
    text = capsys.readouterr().out
    assert "unseen (hard)" in text and "1 of 6 questions are not answered and count as 0" in text
    assert "unseen (hard)" in (path.parent / "summary.md").read_text(encoding="utf-8")


def test_points_of_the_reasoning_do_not_count(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    text = f"1. **Identify the reference object:** at (0.9, 0.9).\n\n**Final Answer:**\n{LEFT}"
    summary = summary_of("--answer", write_answers(dict.fromkeys(IDS, text)), "--data-dir", benchmark_folder)
    assert accuracy(summary["models"][0]) == 1.0


def test_baselines(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    path = write_answers({3: LEFT, 4: LEFT, 5: LEFT, 6: RIGHT, 7: RIGHT, 8: RIGHT})
    summary = summary_of("--answer", path, "--data-dir", benchmark_folder)
    baselines = summary["baselines"]
    found = {name: (groups[0]["mean"], groups[0]["questions"]) for name, groups in baselines.items()}
    assert found["shortcut: left edge"] == (1.0, 6)
    assert found["shortcut: midpoint"] == (0.0, 1)  # stored for one question only
    text = as_text(summary)
    assert "solves a part" not in text
    assert found["image centre"] == (0.0, 6)  # the region is the left half without the middle column
    assert found["uniform points"][0] == pytest.approx(np.mean([30 / 61, 16 / 33, 18 / 37]))
    # free: 3 and 5 right, 7 wrong, each about another image: every question sees the two others' answers
    assert found["other images"][0] == pytest.approx(np.mean([0.5, 0.5, 1.0, 0.0, 0.5, 0.5]))


def test_rules_are_told_apart_from_guesses(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    folder = benchmark_folder
    questions = [json.loads(line) for line in (folder / "point_questions.jsonl").read_text().splitlines()]
    for one in questions:
        one["meta"]["shortcuts"] |= {"uniform": [0.1, 0.1], "center": [0.5, 0.5], "image_nearest_on_side": [0.1, 0.5]}
    write_jsonl(folder / "point_questions.jsonl", questions)
    summary = summary_of("--answer", write_answers(dict.fromkeys(IDS, LEFT)), "--data-dir", folder)
    names = set(summary["baselines"])
    assert {"uniform points", "image centre", "shortcut: image nearest on side"} <= names
    assert not {"shortcut: uniform", "shortcut: center"} & names
    assert any("solves a part of the task" in told for told in sentences(summary))


def test_other_images_leaves_out_the_questions_own_image(tmp_path: Path) -> None:
    """Two questions about one image, one about another: the first two only see the third's answer."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, image in enumerate(["a", "a", "b"]):
        Image.new("RGB", (9, 9), {"a": "black", "b": "white"}[image]).save(tmp_path / "images" / f"{image}.png")
        mask = Image.new("L", (9, 9))
        mask.paste(255, (0, 0, 4, 9))
        mask.save(tmp_path / "masks" / f"{number}.png")
    lines = [{"question_id": n, "image": f"{i}.png", "text": "q"} for n, i in enumerate("aab")]
    write_jsonl(tmp_path / "point_questions.jsonl", lines)
    answers = tmp_path / "m.jsonl"
    write_jsonl(answers, [{"question_id": n, "text": text} for n, text in enumerate([LEFT, LEFT, RIGHT])])
    baselines = summary_of("--answer", answers, "--data-dir", tmp_path)["baselines"]
    assert baselines["other images"][0]["mean"] == pytest.approx((0 + 0 + 1) / 3)


def test_two_models_are_compared_on_the_same_questions(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    worse = write_answers({**dict.fromkeys(IDS, RIGHT), 3: LEFT}, "worse.jsonl")  # three images: too few to be sure
    better = write_answers(dict.fromkeys(IDS, LEFT), "better.jsonl", token_ids=[1, 2, 3])
    summary = summary_of("--answer", worse, better, "--labels", "A", "B", "--data-dir", benchmark_folder,
                         "--output", tmp_path / "out")  # fmt: skip
    first, second = summary["models"]
    assert first["difference"] is None and first["mean_tokens"] is None and second["mean_tokens"] == 3
    assert second["difference"]["mean"] == pytest.approx(5 / 6) and second["difference"]["low"] > 0
    assert second["difference"]["p_value"] == pytest.approx(0.25) and not second["difference"]["clear"]
    text = capsys.readouterr().out
    assert "B minus A: +83.3 points" in text and "p = 0.25: no difference is shown, since the test" in text


def test_robopoint_compatibility(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference takes every image for 640 x 480: only pixels hit, and a mixed box is left out of its mean."""
    texts = {3: "(1, 1)", 4: LEFT, 5: LEFT, 6: "(0, 0.2, 0.5, 0.9)", 7: LEFT, 8: LEFT}
    path = write_answers(texts)
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder, "--compat", "robopoint")["models"]
    assert model["robopoint"] == {"accuracy": pytest.approx(1 / 5), "counted": 5, "skipped": 1}
    assert "counts 5 answers and skips 1" in capsys.readouterr().out


def test_the_summary_is_the_same_twice(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    path = write_answers({3: LEFT, 4: RIGHT, 5: LEFT, 6: LEFT, 7: RIGHT, 8: LEFT})
    first = summary_of("--answer", path, "--data-dir", benchmark_folder)
    assert summary_of("--answer", path, "--data-dir", benchmark_folder) == first


def test_the_first_questions_only(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    path = write_answers(dict.fromkeys((3, 4), LEFT))
    summary = summary_of("--answer", path, "--data-dir", benchmark_folder, "--num-questions", "2")
    assert accuracy(summary["models"][0]) == 1.0 and summary["benchmark"]["questions"] == 2


def test_a_benchmark_that_changed_since_is_said(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    record = {"data_dir": str(benchmark_folder), "question_file": "point_questions.jsonl",
              "settings": {"question_sha256": "0" * 64}}  # fmt: skip
    write_json(path.with_suffix(".run.json"), record)
    summary_of("--answer", path)  # finds the benchmark through the record
    assert "was changed since" in capsys.readouterr().out


def test_answers_and_benchmark_moved_together(tmp_path: Path, benchmark_folder: Path) -> None:
    out = tmp_path / "bench" / "out"
    out.mkdir()
    write_jsonl(out / "m.jsonl", [{"question_id": number, "text": LEFT} for number in IDS])
    record = {"data_dir": str(benchmark_folder), "data_dir_from_here": "..", "question_file": "point_questions.jsonl"}
    write_json(out / "m.run.json", record)
    benchmark_folder.rename(tmp_path / "moved")
    assert accuracy(summary_of("--answer", tmp_path / "moved" / "out" / "m.jsonl")["models"][0]) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "a", "b"], "2 labels for 1 answer files"),
        ([], "--data"),
        (["--data-dir", "nowhere"], "nowhere does not exist"),
        (["--num-questions", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_sentence(
    benchmark_folder: Path, write_answers: Callable[..., Path], arguments: list[str], message: str
) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    if "--data-dir" not in arguments and arguments:
        arguments = [*arguments, "--data-dir", str(benchmark_folder)]
    with pytest.raises(InputError, match=message):
        main(["--answer", str(path), *arguments])


def test_broken_files_are_named(benchmark_folder: Path, write_answers: Callable[..., Path], tmp_path: Path) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    path.write_text(path.read_text().replace('"text"', "text", 1))
    with pytest.raises(InputError, match=r"answers.jsonl, line 1 is broken JSON"):
        main(["--answer", str(path), "--data-dir", str(benchmark_folder)])
    path = write_answers(dict.fromkeys(IDS, LEFT))
    (benchmark_folder / "masks" / "5.png").unlink()
    with pytest.raises(InputError, match="question 5 has no mask"):
        main(["--answer", str(path), "--data-dir", str(benchmark_folder)])
    with pytest.raises(InputError, match="cannot be written"):
        main(["--answer", str(path), "--data-dir", str(benchmark_folder), "--output", str(path / "below-a-file")])
    assert not (tmp_path / "summary.json").exists()


# --- several runs, failures, the papers' tables, CSV ------------------------------------------------------------------


def test_runs_of_a_model_give_mean_and_deviation(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By one label, or by the name that `model_vqa --runs` was given."""
    shares = (2, 4, 6)
    paths = [
        write_answers({number: LEFT if place < share else RIGHT for place, number in enumerate(IDS)}, f"m-{run}.jsonl")
        for run, share in enumerate(shares, start=1)
    ]
    (model,) = summary_of("--answer", *paths, "--labels", "m", "m", "m", "--data-dir", benchmark_folder)["models"]
    assert model["runs"] == 3 and accuracy(model) == pytest.approx(4 / 6)
    assert model["accuracy"][0]["std"] == pytest.approx(np.std([2 / 6, 4 / 6, 1], ddof=1))
    assert model["scores"]["3"] == 1 and model["scores"]["8"] == pytest.approx(1 / 3)
    assert "m: 3 runs, 66.7 +- 33.3 (mean and sample deviation)" in capsys.readouterr().out
    (same,) = summary_of("--answer", tmp_path / "m.jsonl", "--data-dir", benchmark_folder)["models"]
    assert same["accuracy"] == model["accuracy"] and len(same["files"]) == 3
    with pytest.raises(InputError, match=r"none.jsonl does not exist"):
        main(["--answer", str(tmp_path / "none.jsonl"), "--data-dir", str(benchmark_folder)])


def test_several_runs_in_one_file_are_runs_of_one_model(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "m.jsonl"
    texts = [
        {"question_id": number, "run": run, "text": LEFT if place < share else RIGHT}
        for run, share in ((1, 2), (2, 4), (3, 6))
        for place, number in enumerate(IDS)
    ]
    write_jsonl(path, texts)
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    assert model["runs"] == 3 and accuracy(model) == pytest.approx(4 / 6) and model["files"] == [str(path)]
    assert model["accuracy"][0]["std"] == pytest.approx(np.std([2 / 6, 4 / 6, 1], ddof=1))
    assert "m: 3 runs, 66.7 +- 33.3 (mean and sample deviation)" in capsys.readouterr().out
    write_jsonl(path, texts[:-1])  # the last question of the third run
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    assert model["warnings"] == ["1 of 6 questions are not answered in m.jsonl, run 3, and count as 0"]


def test_a_single_run_beside_several_of_its_name_is_asked_about(
    benchmark_folder: Path, write_answers: Callable[..., Path]
) -> None:
    """As after one run to m.jsonl and then the paper's protocol: m.jsonl alone would be the old run, silently."""
    single = write_answers(dict.fromkeys(IDS, LEFT), "m.jsonl", run=0)
    for run in (1, 2, 10):
        write_answers(dict.fromkeys(IDS, RIGHT), f"m-{run}.jsonl", run=run)
    asked = ["--answer", single, "--data-dir", benchmark_folder]
    with pytest.raises(InputError, match=r"m.jsonl is one run, and m-1.jsonl, m-2.jsonl, m-10.jsonl .*--runs single"):
        main([str(word) for word in asked])
    (model,) = summary_of(*asked, "--runs", "single")["models"]
    assert (model["runs"], accuracy(model)) == (1, 1.0)
    (model,) = summary_of(*asked, "--runs", "numbered")["models"]
    assert (model["runs"], accuracy(model)) == (3, 0.0)
    single.unlink()
    (model,) = summary_of(*asked)["models"]
    assert (model["runs"], accuracy(model)) == (3, 0.0)
    with pytest.raises(InputError, match=r"m.jsonl does not exist"):
        main([*map(str, asked), "--runs", "single"])


def test_another_model_whose_name_ends_in_a_number_is_no_run(
    benchmark_folder: Path, write_answers: Callable[..., Path]
) -> None:
    gpt = write_answers(dict.fromkeys(IDS, LEFT), "gpt.jsonl")
    write_answers(dict.fromkeys(IDS, RIGHT), "gpt-4.jsonl")
    (model,) = summary_of("--answer", gpt, "--data-dir", benchmark_folder)["models"]
    assert (model["runs"], accuracy(model)) == (1, 1.0)


@pytest.mark.parametrize("finish", ["length", "max_tokens"])
def test_answers_that_were_cut_are_called_cut(
    finish: str, benchmark_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.jsonl"
    texts = {3: "1. **Identify the ref", 4: "no idea", 5: LEFT, 6: "[(0.25, 0.5), (0.2", 7: RIGHT, 8: "<think>Where"}
    write_jsonl(path, [
        {"question_id": number, "text": text, "metadata": {"finish": "stop" if number == 4 else finish}}
        for number, text in texts.items()
    ])  # fmt: skip
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    assert (model["cut"], model["unparsable"], model["unanswered"]) == (2, 1, 0)
    assert model["parsable"] == pytest.approx(3 / 6)
    shares = {name: value for name, value in model["failures"].items() if value}
    assert shares == {
        "cut": pytest.approx(2 / 6),
        "unparsable": pytest.approx(1 / 6),
        "elsewhere": pytest.approx(1 / 6),
    }
    told = capsys.readouterr().out
    assert "2 answers were cut" in told and "1 answers without a point" in told
    row = next(line.split() for line in told.splitlines() if line.startswith("m "))
    assert row[-3] == "3", "the overview counts them as failed"


def test_accuracy_and_failures_are_the_whole(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_answers({3: LEFT, 4: "no idea", 5: "[(1.5, 0.5)]", 6: RIGHT, 7: "[(0.2, 0.2), (0.9, 0.9)]"})
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder, "--convention", "unit")["models"]
    shares = {name: value for name, value in model["failures"].items() if value}
    sixth = pytest.approx(1 / 6)
    assert shares == {
        "not answered": sixth,
        "unparsable": sixth,
        "outside the image": sixth,
        "elsewhere": pytest.approx(1 / 4),
    }
    assert sum(shares.values()) + accuracy(model) == pytest.approx(1)
    text = capsys.readouterr().out
    assert "outside the image" in text
    # 5 lies right of the image: its nearest pixel of the region ends where the image's left half does
    gaps = [0, 1.5 * 37 - 18, 0.75 * 61 - 30, (0 + 0.9 * 33 - 16) / 2]
    assert model["distance"] == pytest.approx(np.mean(gaps))


def test_the_papers_tables_are_marked_as_published(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark_folder = benchmark_folder.rename(benchmark_folder.with_name("where2place"))
    path = write_answers({**dict.fromkeys(IDS, LEFT), 8: RIGHT})
    summary_of("--answer", path, "--data-dir", benchmark_folder, "--paper")
    lines = capsys.readouterr().out.splitlines()
    ours = next(line for line in lines if line.startswith("answers") and line.endswith("this summary"))
    assert ours.split() == ["answers", "-", "83.3", "50.0", "this", "summary"]  # RoboRefIt, all, the unseen part
    theirs = next(line for line in lines if line.startswith("RoboPoint(FFT)+TRACE"))
    assert "48.1 +- 0.1" in theirs and "as published" in theirs
    assert "as published" in (path.parent / "summary.md").read_text()
    summary_of("--answer", path, "--data-dir", benchmark_folder)
    assert "as published" not in capsys.readouterr().out


def test_the_csv_holds_a_line_for_each_model_and_part(
    benchmark_folder: Path, write_answers: Callable[..., Path]
) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    summary = summary_of("--answer", path, "--data-dir", benchmark_folder, "--labels", "a, b")
    rows = list(csv.DictReader((path.parent / "summary.csv").read_text().splitlines()))
    assert [(row["model"], row["field"], row["value"]) for row in rows] == [
        ("a, b", entry["field"], entry["value"]) for entry in summary["models"][0]["accuracy"]
    ]
    assert rows[0]["mean"] == "1.0" and rows[0]["questions"] == "6" and rows[0]["std"] == ""


def test_confidence_of_other_lengths_is_left_out(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT), metadata={"point_confidence": [0.9]})
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    assert model["calibration"]["points"] == 6 and model["calibration"]["ece"] == pytest.approx(0.1)
    path = write_answers(dict.fromkeys(IDS, LEFT), metadata={"point_confidence": [0.9, 0.8]})
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    assert model["calibration"] is None


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_confidence_out_of_range_is_named(
    benchmark_folder: Path, write_answers: Callable[..., Path], value: float
) -> None:
    path = write_answers({3: LEFT}, metadata={"point_confidence": [value]})
    with pytest.raises(InputError, match=rf"answers.jsonl, question 3: point_confidence holds {value}"):
        main(["--answer", str(path), "--data-dir", str(benchmark_folder)])


def test_files_of_one_name_are_told_apart_and_one_file_counts_once(
    benchmark_folder: Path, write_answers: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_answers(dict.fromkeys(IDS, LEFT))
    copies = [tmp_path / model / "bench" / path.name for model in "ab"]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        copy.write_bytes(path.read_bytes())
    summary = summary_of("--answer", *copies, "--data-dir", benchmark_folder, "--output", tmp_path / "out")
    assert [one["label"] for one in summary["models"]] == [f"{model}/bench/{path.stem}" for model in "ab"]
    words = ["--answer", str(path), str(path), "--data-dir", str(benchmark_folder)]
    copies[1] = copies[0].with_suffix(".json")
    copies[1].write_bytes(path.read_bytes())
    summary = summary_of("--answer", *copies, "--data-dir", benchmark_folder, "--output", tmp_path / "out")
    assert [one["label"] for one in summary["models"]] == [f"bench/{copy.name}" for copy in copies]
    with pytest.raises(InputError, match="is given twice"):
        main(words)
    for mistake in (["--resamples", "0"], ["--seed", "-1"]):
        with pytest.raises(InputError, match=mistake[0]):
            main(["--answer", str(path), "--data-dir", str(benchmark_folder), *mistake])


# --- answers of other models ------------------------------------------------------------------------------------------


def test_answers_that_may_count_in_another_way_are_refused(
    benchmark_folder: Path, write_answers: Callable[..., Path]
) -> None:
    for text, shown in {
        '[{"point_2d": [400, 600]}]': "JSON keys",
        '<point x="46.1" y="52.7" alt="mug">mug</point>': "XML tags",
        "[(400, 300)]": "numbers above 1",
    }.items():
        path = write_answers({3: LEFT, 4: text, 5: text})
        with pytest.raises(InputError, match=rf"answers.jsonl, question 4: the answer holds {shown}.*--convention"):
            main(["--answer", str(path), "--data-dir", str(benchmark_folder)])


def test_a_convention_can_be_named(
    tmp_path: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture of 1280 x 960 whose target lies around pixel (400, 600)."""
    folder = tmp_path / "large"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (1280, 960)).save(folder / "images" / "a.png")
    mask = Image.new("L", (1280, 960))
    mask.paste(255, (360, 560, 440, 640))
    mask.save(folder / "masks" / "1.png")
    write_jsonl(folder / "point_questions.jsonl", [{"question_id": 1, "image": "a.png", "text": "q"}])
    foreign = write_answers({1: '[{"point_2d": [400, 600]}]'}, "foreign.jsonl")
    (model,) = summary_of("--answer", foreign, "--data-dir", folder, "--convention", "qwen2.5-vl")["models"]
    assert accuracy(model) == 1.0 and model["convention"] == "qwen2.5-vl"
    assert "no size of the pictures as sent is recorded" in capsys.readouterr().out
    (model,) = summary_of("--answer", foreign, "--data-dir", folder, "--convention", "qwen3-vl")["models"]
    assert accuracy(model) == 0.0 and "no size" not in capsys.readouterr().out
    pixels = write_answers({1: "[(400, 600)]"}, "pixels.jsonl")
    words = ("--answer", foreign, pixels, "--data-dir", folder, "--convention", "qwen3-vl", "unit")
    assert [accuracy(model) for model in summary_of(*words)["models"]] == [0.0, 1.0]
    with pytest.raises(InputError, match="3 conventions for 2 answer files"):
        main([*map(str, words), "gemini"])
    with pytest.raises(InputError, match="no convention 'klingon'"):
        main(["--answer", str(foreign), "--data-dir", str(folder), "--convention", "klingon"])


def test_a_recorded_run_is_of_the_projects_own_convention(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`model_vqa` may write a stray pixel: it is read as one."""
    path = write_answers({**dict.fromkeys(IDS, LEFT), 4: "[(8, 25)]", 5: "[(1.5, 0.5)]"})
    record = {"data_dir": str(benchmark_folder), "question_file": "point_questions.jsonl", "settings": {}}
    write_json(path.with_suffix(".run.json"), record)
    (model,) = summary_of("--answer", path)["models"]
    assert accuracy(model) == pytest.approx(5 / 6) and model["outside"] == 1 and not model["warnings"]
    (same,) = summary_of("--answer", path, "--convention", "qwen3-vl")["models"]
    assert accuracy(same) == pytest.approx(5 / 6)
    assert "--convention qwen3-vl does not apply: the file records its own, unit" in capsys.readouterr().out


def test_fractions_under_another_convention_are_doubted(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("qwen3-vl", "qwen2.5-vl", "gemini"):
        path = write_answers(dict.fromkeys(IDS, "[0.46, 0.53]"))
        summary_of("--answer", path, "--data-dir", benchmark_folder, "--convention", name)
        text = capsys.readouterr().out
        assert "6 of 6 points lie below 1/100 of the picture" in text and "fractions (convention unit)" in text
    summary_of("--answer", path, "--data-dir", benchmark_folder, "--convention", "unit")
    assert "lie below" not in capsys.readouterr().out


def test_an_answer_that_mixes_points_and_boxes_is_scored_by_its_points(
    benchmark_folder: Path, write_answers: Callable[..., Path]
) -> None:
    """Everything that is counted agrees: accuracy, first point, micro, failures, distances, confidence."""
    box = "(0.1, 0.1, 0.4, 0.9)"
    mixed, plain = f"[{box}, (0.9, 0.5), (0.9, 0.5), {box}, (0.25, 0.5)]", "[(0.9, 0.5), (0.9, 0.5), (0.25, 0.5)]"
    sure = {"point_confidence": [0.1, 0.2, 0.3, 0.4, 0.9]}
    path = write_answers(dict.fromkeys(IDS, mixed), "mixed.jsonl", metadata=sure)
    other = write_answers(dict.fromkeys(IDS, plain), "plain.jsonl", metadata={"point_confidence": [0.2, 0.3, 0.9]})
    first, second = summary_of("--answer", path, other, "--data-dir", benchmark_folder)["models"]
    assert accuracy(first) == first["micro"] == pytest.approx(1 / 3) and first["first_point"] == 0
    for name in ("accuracy", "micro", "first_point", "failures", "distance", "mean_points", "calibration", "scores"):
        assert first[name] == second[name], name
    boxes = write_answers(dict.fromkeys(IDS, f"[{box}]"), "boxes.jsonl")
    (model,) = summary_of("--answer", boxes, "--data-dir", benchmark_folder)["models"]
    assert accuracy(model) == 1.0 and model["micro"] == 1.0


UNREAD = {
    "About 46%, 53%": "percent signs",
    "(0,46; 0,53)": "decimal commas",
    "<loc0512><loc0400>": "special tokens",
    "0.46, 0.53": "no brackets",
    "There is none.": "no numbers",
    " ": "empty",
    "1. **Identify the reference object:** the mug": "cut before the final answer",
    "<think>the cup is at (0.1, 0.2)": "cut before the final answer",
    "**Final Answer:** [(0.4": "cut inside a point",
    "[(0.1, 0.2, 0.3)]": "three numbers in brackets",
    "{0.46, 0.53}": "another form of brackets",
}


def test_answers_that_are_not_read_are_shown_with_the_reason(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for text, reason in UNREAD.items():
        path = write_answers({3: LEFT, 4: text})
        (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
        assert model["unread"]["reasons"] == {reason: 1}
        assert f"question 4 ({reason})" in capsys.readouterr().out
    long = "word " * 200 + "0.46, 0.53"
    path = write_answers({3: LEFT, 4: "no idea", 5: "no idea", 6: "no idea", 7: long, 8: "46%\n 53%"})
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    shown = {one["question_id"]: one["text"] for one in model["unread"]["examples"]}
    assert list(shown) == ["4", "7", "8"] and shown["8"] == "46% 53%"
    assert len(shown["7"]) < 150 and shown["7"].endswith("0.46, 0.53") and shown["7"].startswith("word word")
    said = (
        'not read: no numbers (3), no brackets (1), percent signs (1). For example question 4 (no numbers): "no idea"'
    )
    assert said in capsys.readouterr().out and said in (path.parent / "summary.md").read_text(encoding="utf-8")


def test_an_answer_that_a_server_cut_says_so(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    path = write_answers({3: "I look at the mug"}, metadata={"convention": "unit", "finish": "length"})
    (model,) = summary_of("--answer", path, "--data-dir", benchmark_folder)["models"]
    assert model["unread"]["reasons"] == {"cut before the final answer": 1}


# --- pictures and masks that are not what they seem -------------------------------------------------------------------


def test_copies_of_a_picture_under_other_names_are_one_picture(tmp_path: Path) -> None:
    """The interval of five pictures with four questions each is the same when every question has its own copy."""
    summaries = []
    for name in ("shared", "copied"):
        folder = tmp_path / name
        lines, texts = [], []
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for number in range(20):
            image = f"{number // 4}.png" if name == "shared" else f"copy{number}.png"
            Image.new("RGB", (8, 8), (number // 4, 0, 0)).save(folder / "images" / image)
            mask = Image.new("L", (8, 8))
            mask.paste(255, (0, 0, 4, 8))
            mask.save(folder / "masks" / f"q{number}.png")
            lines.append({"question_id": f"q{number}", "image": image, "text": "q"})
            texts.append({"question_id": f"q{number}", "text": LEFT if number // 4 < 3 else RIGHT})
        write_jsonl(folder / "point_questions.jsonl", lines)
        write_jsonl(folder / "m.jsonl", texts)
        summaries.append(summary_of("--answer", folder / "m.jsonl", "--data-dir", folder))
    shared, copied = summaries
    assert shared["benchmark"]["images"] == copied["benchmark"]["images"] == 5
    assert shared["models"][0]["accuracy"] == copied["models"][0]["accuracy"]
    entry = shared["models"][0]["accuracy"][0]
    assert entry["low"] <= 0.2 and entry["high"] == 1
    assert shared["baselines"]["other images"] == copied["baselines"]["other images"]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_in_the_alpha_channel_is_the_region(
    benchmark_folder: Path, write_answers: Callable[..., Path], mode: str
) -> None:
    for path in (benchmark_folder / "masks").iterdir():
        alpha = Image.open(path)
        white = Image.new(mode, alpha.size, "white")
        white.putalpha(alpha)
        white.save(path)
    summary = summary_of("--answer", write_answers(dict.fromkeys(IDS, RIGHT)), "--data-dir", benchmark_folder)
    assert accuracy(summary["models"][0]) == 0 and not summary["models"][0]["warnings"]


def test_a_mask_of_the_whole_picture_is_warned_about(
    benchmark_folder: Path, write_answers: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (4, 6):
        path = benchmark_folder / "masks" / f"{number}.png"
        Image.new("L", Image.open(path).size, 255).save(path)
    summary_of("--answer", write_answers(dict.fromkeys(IDS, RIGHT)), "--data-dir", benchmark_folder)
    text = capsys.readouterr().out
    assert "the mask covers the whole image in 2 of 6 questions (question 4 is the first)" in text
