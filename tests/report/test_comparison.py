"""visualization/visualize_results.py: comparing answers, the order and choice of questions, what it writes and refuses."""

import shutil
from itertools import zip_longest

import numpy as np
import pytest
from forced_answers import COR
from PIL import Image
from small_benchmark import IDS, SIZES, make_benchmark, script

from trace_vlm.drawing.canvas import file_stem
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.report.comparison import ModelAnswer, ModelScore, compare, read_comparison, sort_questions
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json, write_jsonl

IN, OUT = "(0.2, 0.5)", "(0.9, 0.5)"  # the target is the left half of every image


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def bench(tmp_path):
    return make_benchmark(tmp_path / "bench")


@pytest.fixture
def answers(tmp_path):
    def write(name, *texts, finish=()):
        lines = [
            {"question_id": number, "text": text, "metadata": {"finish": why}}
            for number, text, why in zip_longest(IDS, texts, finish) if text
        ]  # fmt: skip
        write_jsonl(path := tmp_path / f"{name}.jsonl", lines)
        return path

    return write


@pytest.fixture
def two(answers):
    """Accuracies 1, 0, 1/2 and 1, 1, 1."""
    return answers("first", IN, OUT, f"[{IN}, {OUT}]"), answers("second", COR, COR, IN)


@pytest.fixture
def visualize(bench, folder):
    flags = ["--data", bench, "--out", folder]
    return lambda *words: run(script("visualize_results").main, list(map(str, [*flags, *words])))


def ids(questions):
    return [question.question_id for question in questions]


def test_pictures_and_their_index_are_written(bench, two, folder):
    published = ["--answer_files", *two, "--labels", "plain", "cor", "--data_dir", bench / "images",
                 "--output_dir", folder, "--num_questions", 2]  # fmt: skip
    assert run(script("visualize_results").main, list(map(str, published))) == 0
    scores, items = read_comparison(folder)
    assert ids(items) == list(IDS)
    assert [item.picture for item in items] == ["0.png", "1.png", None]  # data of all, pictures of --num
    plain = ModelScore("plain", 3, 0.5, (("right", 2), ("elsewhere", 1)), 0.5, 3)
    assert scores == [plain, ModelScore("cor", 3, 1.0, (("right", 3),), 1.0, 3)]
    second = items[1]
    assert second.instruction == "Point left of mug 1." and second.category == "unseen" and second.size == (33, 50)
    assert second.answers == (ModelAnswer("plain", OUT, 0.0, "elsewhere"), ModelAnswer("cor", COR, 1.0, "right"))
    corners = np.array(second.outline[0])
    assert corners.min() == pytest.approx(0, abs=0.02) and corners.max(axis=0) == pytest.approx([16 / 33, 1], abs=0.02)
    for name in ["0.png", "1.png", "failures.png", *(item.image for item in items)]:
        Image.open(folder / name).load()
    assert (folder / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize("order, expected", [
    ("given", [0, 1, "left/2"]), ("worst", [1, "left/2", 0]), ("best", [0, "left/2", 1]), ("disagree", [1, "left/2", 0]),
])  # fmt: skip
def test_the_order_of_the_questions(bench, two, order, expected):
    assert ids(sort_questions(compare(open_benchmark(bench), {"a": two[0], "b": two[1]}), order)) == expected


@pytest.mark.parametrize(("flags", "drawn"), [
    (["--where2place_h", "--num", "1"], {"": [1]}),
    (["--create-both", "--where2place-h-count", "5", "--num", "2"], {"": [0, 1], "hard": [1]}),
])  # fmt: skip
def test_the_hard_part_by_the_published_flags(visualize, two, folder, flags, drawn):
    assert visualize("--answers", *two, *flags) == 0
    indexes = {path.parent.relative_to(folder).name: read_json(path)["items"] for path in folder.rglob("index.json")}
    pictured = {name: [item["question_id"] for item in items if item["picture"]] for name, items in indexes.items()}
    assert pictured == drawn


def test_only_what_all_models_answered_is_compared(bench, answers):
    files = {"a": answers("a", OUT, IN, IN), "b": answers("b", IN, IN)}
    comparison = compare(open_benchmark(bench), files)
    assert ids(comparison.questions) == [0, 1]
    assert [(score.questions, score.accuracy) for score in comparison.overall] == [(2, 0.5), (2, 1)]
    assert ids(compare(open_benchmark(bench), files, "unseen").questions) == [1]
    with pytest.raises(InputError, match="'hard'"):
        compare(open_benchmark(bench), files, "hard")


def test_unanswered_questions_score_0_in_the_mean_over_the_benchmark(bench, visualize, answers, folder, capsys):
    assert visualize("--answers", answers("all", IN, OUT, IN), answers("two", IN, IN), "--category", "seen") == 0
    score = 1, 1.0, (("right", 1),), pytest.approx(2 / 3), 3
    assert read_comparison(folder)[0] == [ModelScore("all", *score), ModelScore("two", *score, 1)]
    assert "66.7% of all 3" in capsys.readouterr().out
    (bench / "images/tall.png").write_bytes(b"no image")  # a question that was skipped needs no picture
    file = answers("a", IN, None, IN)
    write_json(file.with_suffix(".run.json"), {"skipped": [1], "settings": {}})
    assert visualize("--answers", file) == 0 and "a: 66.7% of all 3" in capsys.readouterr().out


def test_other_questions_and_other_requests_are_named(bench, visualize, answers, capsys):
    files = [answers("a", IN), answers("b", IN)]
    write_json(files[0].with_suffix(".run.json"), {"settings": {"reasoning": True, "question_sha256": "0" * 64}})
    write_json(files[1].with_suffix(".run.json"), {"settings": {"reasoning": False}})
    assert visualize("--answers", *files) == 0
    said = capsys.readouterr().out
    assert "warning: a: " in said and "was changed since" in said and "asked to reason: a; asked not to: b" in said
    files[0].rename(files[0].with_stem("a-1"))
    assert visualize("--answers", *files) == 2 and "in several runs. Choose one" in capsys.readouterr().err


def test_without_masks_nothing_is_scored(bench, two):
    shutil.rmtree(bench / "masks")
    comparison = compare(open_benchmark(bench), {"a": two[0]})
    assert comparison.overall == (ModelScore("a", 3, None, asked=3),)
    with pytest.raises(InputError, match="--sort worst"):
        sort_questions(comparison, "worst")


def test_questions_are_filtered_by_outcome(visualize, answers, folder, capsys):
    words = "--answers", answers("a", IN, "I cannot say.", "(1.4, 0.5)"), "--failure", "outside the image"
    assert visualize(*words) == 2 and "--convention" in capsys.readouterr().err
    assert visualize(*words, "--convention", "unit") == 0
    assert ids(read_comparison(folder)[1]) == ["left/2"]
    assert "right 1, unparsable 1, outside the image 1" in capsys.readouterr().out
    assert visualize(*words, "--convention", "unit", "--failure", "late") == 2
    assert "'late'" in capsys.readouterr().err


def test_answers_that_were_cut_are_called_cut(visualize, answers, folder, capsys):
    file = answers("a", *["1. **Identify the"] * 3, finish=("length", "stop", "length"))
    assert visualize("--answers", file) == 0 and "cut 2, unparsable 1" in capsys.readouterr().out
    (score,), items = read_comparison(folder)
    assert score.outcomes == (("cut", 2), ("unparsable", 1))
    assert [item.answers[0].outcome for item in items] == ["cut", "unparsable", "cut"]
    assert '"outcome":"cut"' in (folder / "report.html").read_text()


def test_doubtful_numbers_are_warned_about(bench, visualize, answers, capsys):
    Image.new("L", SIZES["tall.png"], 255).save(bench / "masks/tall.jpg")
    assert visualize("--answers", answers("a", *["[(0.46, 0.53)]"] * 3), "--convention", "qwen3-vl") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "a: 3 of 3 points" in warnings[0] and "question 1" in warnings[1]


@pytest.mark.parametrize("words, named", [
    ("none.jsonl", "none.jsonl"), ("runs.jsonl", "runs.jsonl"), ("first.jsonl second.jsonl --labels one", "--labels"),
    ("first.jsonl --num 0", "--num"), ("first.jsonl --where2place-h-count -3", "--where2place-h-count"),
    ("first.jsonl --create-both --where2place-h-count 0", "--where2place-h-count"),
    ("first.jsonl --category seen --where2place-h", "--category seen"),
])  # fmt: skip
def test_mistakes_name_their_flag_or_file(visualize, two, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    write_jsonl("runs.jsonl", [{"question_id": number, "text": IN, "run": run} for run in (1, 2) for number in IDS])
    assert visualize("--answers", *words.split()) == 2 and named in capsys.readouterr().err


def test_no_two_questions_share_a_file():
    names = [file_stem(name) for name in (7, "a/b", "a_b", "a?b", "../a", "..", "x" * 300, "x" * 301)]
    assert len(set(names)) == len(names) and names[0] == "7"
    assert all("/" not in name and not name.startswith(".") and len(name) < 100 for name in names)
