"""What a summary contains for answers that were written by hand."""

import csv

import numpy as np
import pytest

from trace_vlm.drawing import overlay
from trace_vlm.eval import summarize_vqa
from trace_vlm.eval.tables import as_text, sentences
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json, write_jsonl

LEFT, RIGHT = "[(0.25, 0.5)]", "[(0.75, 0.5)]"  # inside and outside the region of every question
IDS = range(3, 9)
ALL_LEFT, ALL_RIGHT = dict.fromkeys(IDS, LEFT), dict.fromkeys(IDS, RIGHT)


@pytest.fixture
def summarize(bench, tmp_path):
    def run(*words, data=bench):
        named, out = ["--data", data] if data else [], tmp_path / "out"
        words = ["--resamples", 200, "--out", out, *named, "--answers", *words]
        assert summarize_vqa.main([str(word) for word in words]) == 0
        return read_json(out / "summary.json")

    return run


@pytest.fixture
def model_of(summarize):
    return lambda *words, **options: summarize(*words, **options)["models"][0]


def accuracy(model, value="all"):
    return next(entry["mean"] for entry in model["accuracy"] if entry["value"] == value)


def test_accuracy_counts_failures_as_zero(model_of, write_answers, capsys):
    path = write_answers({8: LEFT, 3: "no idea", 5: RIGHT, 4: LEFT, 6: "[(0.2, 0.2), (0.9, 0.9)]"})  # 7 is missing
    model = model_of(path, "--labels", "a, b")
    assert model["scores"] == {"3": 0, "4": 1, "5": 0, "6": 0.5, "7": 0, "8": 1}
    assert (model["unanswered"], model["unparsable"], model["outside"]) == (1, 1, 0)
    parts = {"all": 2.5 / 6, "seen": 1.5 / 4, "unseen": 0.5, "direct": 2.5 / 3, "free": 0}
    assert {part: accuracy(model, part) for part in parts} == pytest.approx(parts)
    assert [model[name] for name in ("parsable", "micro", "first_point")] == pytest.approx([4 / 6, 3 / 5, 3 / 6])
    failures = {"not answered": 1 / 6, "unparsable": 1 / 6, "elsewhere": 1.5 / 6}
    assert model["failures"] == pytest.approx(dict.fromkeys(model["failures"], 0) | failures)
    assert sum(failures.values()) + accuracy(model) == pytest.approx(1)
    assert model["distance"] == pytest.approx(np.mean([0, 0, 0.75 * 37 - 18, (0 + 0.9 * 61 - 30) / 2]))
    text = capsys.readouterr().out
    assert "unseen (hard)" in text and "1 of 6 questions are not answered" in text
    assert "unseen (hard)" in (path.parent / "out" / "summary.md").read_text(encoding="utf-8")
    rows = list(csv.DictReader((path.parent / "out" / "summary.csv").read_text().splitlines()))
    expected = [("a, b", entry["field"], entry["value"]) for entry in model["accuracy"]]
    assert [(row["model"], row["field"], row["value"]) for row in rows] == expected
    assert float(rows[0]["mean"]) == pytest.approx(2.5 / 6, abs=1e-3) and rows[0]["questions"] == "6"
    assert rows[0]["std"] == ""


def test_baselines(summarize, write_answers, bench):
    path = write_answers({**ALL_LEFT, 6: RIGHT, 7: RIGHT, 8: RIGHT})
    summary = summarize(path)
    means = {name: (groups[0]["mean"], groups[0]["questions"]) for name, groups in summary["baselines"].items()}
    assert means["shortcut: left edge"] == (1.0, 6)
    assert means["shortcut: midpoint"] == (0.0, 1)  # stored for one question only
    assert "shortcut: left edge" in as_text(summary) and "solves a part" not in as_text(summary)
    assert means["image centre"] == (0.0, 6)  # the region is the left half without the middle column
    assert means["uniform points"][0] == pytest.approx(np.mean([30 / 61, 16 / 33, 18 / 37]))
    # free: 3 and 5 right, 7 wrong, each about another image: every question sees the two others' answers
    assert means["other images"][0] == pytest.approx(np.mean([0.5, 0.5, 1.0, 0.0, 0.5, 0.5]))
    assert summary == summarize(path), "the same seed gives the same summary"
    file = bench / "point_questions.jsonl"
    more = '"shortcuts": {"uniform": [0.1, 0.1], "image_nearest_on_side": [0.1, 0.5], '
    file.write_text(file.read_text().replace('"shortcuts": {', more))
    summary = summarize(path)
    assert "shortcut: image nearest on side" in summary["baselines"]
    assert "shortcut: uniform" not in summary["baselines"]
    assert any("solves a part of the task" in sentence for sentence in sentences(summary))


def test_two_models_are_compared_on_the_same_questions(summarize, write_answers, capsys):
    worse = write_answers({**ALL_RIGHT, 3: LEFT}, "worse.jsonl")  # three images: too few to be sure
    better = write_answers(ALL_LEFT, "better.jsonl", token_ids=[1, 2, 3])
    first, second = summarize(worse, better, "--labels", "A", "B")["models"]
    assert first["difference"] is None and first["mean_tokens"] is None and second["mean_tokens"] == 3
    difference = second["difference"]
    assert difference["mean"] == pytest.approx(5 / 6) and difference["low"] > 0
    assert difference["p_value"] == pytest.approx(0.25) and not difference["clear"]
    assert "B minus A: +83.3 points" in capsys.readouterr().out
    summary = summarize(worse, "--num-questions", 2)
    assert accuracy(summary["models"][0]) == 0.5 and summary["benchmark"]["questions"] == 2


def test_robopoint_compatibility(model_of, write_answers):
    """The reference takes every image for 640 x 480: only pixels hit, and a mixed box is left out of its mean."""
    path = write_answers({**ALL_LEFT, 3: "(1, 1)", 6: "(0, 0.2, 0.5, 0.9)"})
    expected = {"accuracy": pytest.approx(1 / 5), "counted": 5, "skipped": 1}
    assert model_of(path, "--compat", "robopoint")["robopoint"] == expected


def test_record_names_the_benchmark(model_of, write_answers, bench, tmp_path, capsys):
    """Also after answers and benchmark were moved together; a changed question file is reported."""
    path = write_answers(ALL_LEFT, "bench/m.jsonl")
    write_json(path.with_suffix(".run.json"), {
        "data_dir": str(bench), "data_dir_from_here": ".", "question_file": "point_questions.jsonl",
        "settings": {"question_sha256": "0" * 64}})  # fmt: skip
    model_of(path, data=None)
    assert "was changed since" in capsys.readouterr().out
    bench.rename(tmp_path / "moved")
    assert accuracy(model_of(tmp_path / "moved" / "m.jsonl", data=None)) == 1.0


def test_models_that_were_asked_differently_are_named(summarize, write_answers, capsys):
    paths = [write_answers(ALL_LEFT, f"{name}.jsonl") for name in ("before", "after")]
    for path, reasoning in zip(paths, (True, False), strict=True):
        write_json(path.with_suffix(".run.json"), {"settings": {"reasoning": reasoning}})
    summarize(*paths)
    assert "asked to reason: before; asked not to: after. A difference" in capsys.readouterr().out
    summarize(paths[0])
    assert "asked to reason" not in capsys.readouterr().out


@pytest.mark.parametrize(("words", "named"), [
    (["{path}", "--labels", "a", "b"], "2 labels"), (["{path}", "--data", "nowhere"], "nowhere"),
    (["{path}", "--num-questions", "0"], "--num-questions"), (["{path}", "--resamples", "0"], "--resamples"),
    (["{path}", "--seed", "-1"], "--seed"), (["{path}", "--convention", "klingon"], "klingon"),
    (["{path}", "--convention", "unit", "gemini"], "2 conventions"), (["{path}", "{path}"], "answers.jsonl"),
    (["{path}", "--out", "{path}/below-a-file"], "below-a-file"), (["none.jsonl"], "none.jsonl"),
    (["{path}.broken"], "answers.jsonl.broken, line 1"),
])  # fmt: skip
def test_refused_flags_and_files(summarize, write_answers, tmp_path, words, named):
    path = write_answers(ALL_LEFT)
    path.with_name("answers.jsonl.broken").write_text(path.read_text().replace('"text"', "text", 1))
    with pytest.raises(InputError, match=named):
        summarize(*(word.format(path=path) for word in words))
    with pytest.raises(InputError, match="--data"):
        summarize(path, data=None)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_runs_of_a_model_give_mean_and_deviation(model_of, write_answers, tmp_path, capsys):
    """By one label, by the name that `model_vqa --runs` was given, or in one file by `run`."""
    runs = [{n: LEFT if n < 3 + count else RIGHT for n in IDS} for count in (2, 4, 6)]
    paths = [write_answers(texts, f"m-{run}.jsonl") for run, texts in enumerate(runs, start=1)]
    model = model_of(*paths, "--labels", "m", "m", "m")
    assert model["runs"] == 3 and accuracy(model) == pytest.approx(4 / 6)
    assert model["accuracy"][0]["std"] == pytest.approx(np.std([2 / 6, 4 / 6, 1], ddof=1))
    assert model["scores"]["3"] == 1 and model["scores"]["8"] == pytest.approx(1 / 3)
    assert "m: 3 runs, 66.7 +- 33.3" in capsys.readouterr().out
    same, one_file = model_of(tmp_path / "m.jsonl"), tmp_path / "one.jsonl"
    assert same["accuracy"] == model["accuracy"] and len(same["files"]) == 3
    lines = [{"question_id": n, "run": run, "text": texts[n]} for run, texts in enumerate(runs, start=1) for n in IDS]
    write_jsonl(one_file, lines)
    same = model_of(one_file)
    assert same["accuracy"] == model["accuracy"] and same["files"] == [str(one_file)]
    write_jsonl(one_file, lines[:-1])
    assert "1 of 6 questions are not answered in one.jsonl, run 3" in model_of(one_file)["warnings"][0]


def test_single_run_beside_numbered_runs_is_ambiguous(model_of, write_answers):
    """As after one run to m.jsonl and then the paper's protocol: m.jsonl alone would silently be the old run."""
    single = write_answers(ALL_LEFT, "m.jsonl", run=0)
    write_answers(ALL_RIGHT, "m-model.jsonl")
    for run in (1, 2, 10):
        write_answers(ALL_RIGHT, f"m-{run}.jsonl", run=run)
    with pytest.raises(InputError, match=r"m.jsonl .* m-1.jsonl, m-2.jsonl, m-10.jsonl .*--runs single"):
        model_of(single)
    models = [model_of(single, "--runs", choice) for choice in ("single", "numbered")]
    assert [(model["runs"], accuracy(model)) for model in models] == [(1, 1.0), (3, 0.0)]
    single.unlink()
    assert model_of(single)["runs"] == 3
    with pytest.raises(InputError, match="m.jsonl"):
        model_of(single, "--runs", "single")
    gpt, _ = write_answers(ALL_LEFT, "gpt.jsonl"), write_answers(ALL_RIGHT, "gpt-4.jsonl")
    assert model_of(gpt)["runs"] == 1, "a model's name may end in a number"


@pytest.mark.parametrize("finish", ["length", "max_tokens"])
def test_cut_answers_are_not_unparsable(finish, model_of, tmp_path, capsys):
    texts = {3: "1. **Identify the ref", 4: "no idea", 5: LEFT, 6: "[(0.25, 0.5), (0.2", 7: RIGHT, 8: "<think>Where"}
    write_jsonl(tmp_path / "m.jsonl", [
        {"question_id": number, "text": text, "metadata": {"finish": "stop" if number == 4 else finish}}
        for number, text in texts.items()])  # fmt: skip
    model = model_of(tmp_path / "m.jsonl")
    assert (model["cut"], model["unparsable"], model["unanswered"]) == (2, 1, 0)
    assert model["parsable"] == pytest.approx(3 / 6)
    expected = dict.fromkeys(model["failures"], 0) | {"cut": 2 / 6, "unparsable": 1 / 6, "elsewhere": 1 / 6}
    assert model["failures"] == pytest.approx(expected)
    text = capsys.readouterr().out
    assert "2 answers were cut" in text and "question 4 (no numbers)" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("m "))
    assert row[-3] == "3", "the overview counts them as failed"


def test_papers_tables_are_marked_as_published(summarize, write_answers, bench, capsys):
    folder = bench.rename(bench.with_name("where2place"))
    path = write_answers({**ALL_LEFT, 8: RIGHT})
    summarize(path, "--paper", data=folder)
    lines = capsys.readouterr().out.splitlines()
    ours = next(line for line in lines if line.startswith("answers") and line.endswith("this summary"))
    assert ours.split() == ["answers", "-", "83.3", "50.0", "this", "summary"]  # RoboRefIt, all, the unseen part
    theirs = next(line for line in lines if line.startswith("RoboPoint(FFT)+TRACE"))
    assert "48.1 +- 0.1" in theirs and "as published" in theirs
    assert "as published" in (path.parent / "out" / "summary.md").read_text()
    summarize(path, data=folder)
    assert "as published" not in capsys.readouterr().out


def test_confidence(model_of, summarize, write_answers, monkeypatch):
    model = model_of(write_answers(ALL_LEFT, metadata={"point_confidence": [0.9]}))
    assert model["calibration"]["points"] == 6 and model["calibration"]["ece"] == pytest.approx(0.1)
    assert model_of(write_answers(ALL_LEFT, metadata={"point_confidence": [0.9, 0.8]}))["calibration"] is None
    drawn = []  # a model keeps its color in the calibration figure
    monkeypatch.setattr(summarize_vqa, "draw_calibration", lambda models, _, colors: drawn.append((*models, colors)))
    plain = write_answers(ALL_LEFT, "plain.jsonl")
    sure = write_answers(ALL_LEFT, "sure.jsonl", metadata={"point_confidence": [0.8]})
    summarize(plain, sure)
    assert drawn == [("sure", {"plain": overlay.COLORS[0], "sure": overlay.COLORS[1]})]


@pytest.mark.parametrize("metadata", [
    {"point_confidence": [-0.5]}, {"point_confidence": [1.5]}, {"convention": "klingon"},
    {"convention": "qwen2.5-vl", "sent": [0, 3]},
], ids=str)  # fmt: skip
def test_broken_metadata_is_named(metadata, model_of, write_answers):
    with pytest.raises(InputError, match="answers.jsonl, question 3"):
        model_of(write_answers({3: LEFT}, metadata=metadata))


def test_files_of_one_name_are_told_apart(summarize, write_answers):
    names = ["a/bench/answers.jsonl", "b/bench/answers.jsonl", "a/bench/answers.json"]
    first, *others = (write_answers(ALL_LEFT, name) for name in names)
    labels = [[model["label"] for model in summarize(first, other)["models"]] for other in others]
    assert labels == [["a/bench/answers", "b/bench/answers"], ["bench/answers.jsonl", "bench/answers.json"]]


@pytest.mark.parametrize("text", ['[{"point_2d": [400, 600]}]', '<point x="46" y="52.7">mug</point>', "[(400, 300)]"])
def test_answers_of_an_unknown_convention_are_refused(text, summarize, write_answers):
    with pytest.raises(InputError, match=r"answers.jsonl, question 4: .*--convention"):
        summarize(write_answers({3: LEFT, 4: text, 5: text}))


def test_convention_can_be_named(summarize, write_benchmark, write_answers, capsys):
    """A picture of 1280 x 960 whose left half holds pixel (400, 600), but not (700, 300)."""
    folder = write_benchmark({1: "a.png"}, size=(1280, 960))
    foreign = write_answers({1: '[{"point_2d": [700, 300]}]'}, "foreign.jsonl")
    pixels = write_answers({1: "[(400, 600)]"}, "pixels.jsonl")
    (model,) = summarize(pixels, "--convention", "qwen2.5-vl", data=folder)["models"]
    assert accuracy(model) == 1.0 and model["convention"] == "qwen2.5-vl"
    assert "no size of the pictures as sent is recorded" in capsys.readouterr().out
    models = summarize(foreign, pixels, "--convention", "qwen3-vl", "unit", data=folder)["models"]
    assert [accuracy(model) for model in models] == [0.0, 1.0] and "no size" not in capsys.readouterr().out


def test_recorded_run_has_the_projects_own_convention(model_of, write_answers, bench, capsys):
    """`model_vqa` may write a stray pixel: it is read as one."""
    path = write_answers({**ALL_LEFT, 4: "[(8, 25)]", 5: "[(1.5, 0.5)]"})
    record = {"data_dir": str(bench), "question_file": "point_questions.jsonl", "settings": {}}
    write_json(path.with_suffix(".run.json"), record)
    model = model_of(path, data=None)
    assert accuracy(model) == pytest.approx(5 / 6) and model["outside"] == 1 and not model["warnings"]
    assert accuracy(model_of(path, "--convention", "qwen3-vl", data=None)) == pytest.approx(5 / 6)
    assert "--convention qwen3-vl does not apply" in capsys.readouterr().out


def test_mixed_answer_is_scored_by_its_points(summarize, write_answers):
    box = "(0.1, 0.1, 0.4, 0.9)"
    mixed, plain = f"[{box}, (0.9, 0.5), (0.9, 0.5), {box}, (0.25, 0.5)]", "[(0.9, 0.5), (0.9, 0.5), (0.25, 0.5)]"
    confidence = {"point_confidence": [0.1, 0.2, 0.3, 0.4, 0.9]}
    path = write_answers(dict.fromkeys(IDS, mixed), "mixed.jsonl", metadata=confidence)
    other = write_answers(dict.fromkeys(IDS, plain), "plain.jsonl", metadata={"point_confidence": [0.2, 0.3, 0.9]})
    boxes = write_answers(dict.fromkeys(IDS, f"[{box}]"), "boxes.jsonl")
    first, second, third = summarize(path, other, boxes)["models"]
    assert accuracy(first) == first["micro"] == pytest.approx(1 / 3) and first["first_point"] == 0
    for name in ("accuracy", "micro", "first_point", "failures", "distance", "mean_points", "calibration", "scores"):
        assert first[name] == second[name], name
    assert accuracy(third) == third["micro"] == 1.0


def test_copies_of_an_image_under_other_names_are_one_image(summarize, write_benchmark, write_answers):
    summaries = []
    for name in ("shared", "copied"):
        questions = {f"q{n}": f"{n // 4}.png" if name == "shared" else f"copy{n}.png" for n in range(20)}
        folder = write_benchmark(questions, folder=name, greys=[n // 4 for n in range(20)])
        path = write_answers({f"q{n}": LEFT if n // 4 < 3 else RIGHT for n in range(20)})
        summaries.append(summarize(path, data=folder))
    shared, copied = ((summary["benchmark"]["images"], summary["models"][0]["accuracy"],
                       summary["baselines"]["other images"]) for summary in summaries)  # fmt: skip
    assert shared == copied and shared[0] == 5 and shared[1][0]["low"] <= 0.2 and shared[1][0]["high"] == 1
    # 12 questions see 8 right answers among the 16 about other images, 8 see 12
    assert shared[2][0]["mean"] == pytest.approx((12 * 8 / 16 + 8 * 12 / 16) / 20)
