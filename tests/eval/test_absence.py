"""Questions about what is not there: scores, false points, wrong "none", and what stands beside the models."""

import json

import numpy as np
import pytest
from PIL import Image
from small_benchmark import write_pictures

from trace_vlm.core.records import Question
from trace_vlm.eval import summarize_vqa
from trace_vlm.eval.scoring import question_groups
from trace_vlm.utils.command import run
from trace_vlm.utils.files import read_json, write_jsonl

INSIDE, OUTSIDE, NONE, REFUSAL = "[(0.2, 0.5)]", "[(0.9, 0.5)]", "None: there is no mug.", "I'm sorry, I can't help."
ABSENT = {"2": True, "3": True, "5": True}


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path, {f"{number}.png": (60, 40) for number in range(6)})
    for number in ABSENT:
        (tmp_path / "masks" / f"{number}.jpg").unlink()
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    write_jsonl(tmp_path / "point_questions.jsonl", [
        {"question_id": number, "image": f"{number}.png", "text": f"Point at mug {number}.",
         "meta": {"task": "object_reference", "kind": "direct", "absent": str(number) in ABSENT}}
        for number in range(6)
    ])  # fmt: skip
    return tmp_path


def summarize(folder, *texts, status=0):
    files = []
    for index, answers in enumerate(texts):
        files.append(folder / f"m{index}.jsonl")
        records = [
            {
                "question_id": number,
                "text": text,
                "confidence": 0.5,
                "metadata": {"point_confidence": [0.9 - number / 10]},
            }
            for number, text in enumerate(answers)
        ]
        write_jsonl(files[-1], records)
    arguments = ["--answers", *map(str, files), "--data", str(folder), "--out", str(folder), "--resamples", "200"]
    assert run(summarize_vqa.main, arguments) == status
    return read_json(folder / "summary.json") if not status else None


def test_none_is_right_where_nothing_is_and_wrong_elsewhere(folder, capsys):
    summary = summarize(folder, [INSIDE, NONE, NONE, INSIDE, OUTSIDE, REFUSAL])
    model, absence = summary["models"][0], summary["absence"]
    assert model["scores"] == {"0": 1, "1": 0, "2": 1, "3": 0, "4": 0, "5": 0}
    own = absence["m0"]
    assert own["accuracy"]["mean"] == pytest.approx(1 / 3) and own["accuracy"]["questions"] == 3
    assert own["false_points"]["mean"] == pytest.approx(1 / 3) and own["false_none"]["mean"] == pytest.approx(1 / 3)
    assert own["f1"] == pytest.approx(2 * 1 / (2 + 3))  # two say none, three are not there, one of them is right
    assert own["coverage"] == pytest.approx(3 / 6) and own["risk"] == pytest.approx(1 - 1 / 3)
    failures = {name: value for name, value in model["failures"].items() if value}
    assert failures == pytest.approx({"points, though nothing is there": 1 / 6, "none, though something is there": 1 / 6,
                                      "elsewhere": 1 / 6, "unparsable": 1 / 6})  # fmt: skip
    assert model["unparsable"] == 1 and model["parsable"] == pytest.approx(5 / 6)
    assert model["calibration"]["answers"] == 3 and model["calibration"]["answered"] == pytest.approx(4 / 6)
    assert summary["benchmark"]["rules"] == {"share of points": 3, "nothing there": 3}
    printed = capsys.readouterr().out
    assert "Where nothing is there to point at" in printed and "never none: uniform points" in printed


def test_a_model_that_always_says_none_and_one_that_never_does(folder):
    summary = summarize(folder, [NONE] * 6, [INSIDE] * 6)
    always, never, rule, uniform = (summary["absence"][name] for name in (
        "m0", "m1", "always none", "never none: uniform points"))  # fmt: skip
    assert always == rule and always["risk"] is None and always["f1"] == pytest.approx(2 * 3 / 9)
    assert never["false_points"]["mean"] == 1 == uniform["false_points"]["mean"] and never["f1"] == 0 == uniform["f1"]
    assert never["accuracy"]["mean"] == 1 and never["risk"] == pytest.approx(0.5)
    assert uniform["accuracy"]["mean"] == pytest.approx(0.5, abs=0.02)
    for label, name in (("m0", "always none"), ("m1", "uniform points")):
        values = {one["label"]: one for one in summary["models"]}[label]["accuracy"][0]["mean"]
        assert values == pytest.approx(0.5) and summary["baselines"][name][0]["mean"] is not None


def test_answers_about_other_images_do_not_know_whether_it_is_there(folder):
    """A model that is always right: its answers about other images are as often none as things are missing."""
    summary = summarize(folder, [NONE if str(number) in ABSENT else INSIDE for number in range(6)])
    other = summary["absence"]["other images, m0"]
    assert summary["models"][0]["accuracy"][0]["mean"] == 1
    assert other["false_points"]["mean"] == pytest.approx(3 / 5) == other["false_none"]["mean"]


def test_without_such_questions_nothing_changes(folder):
    path = folder / "point_questions.jsonl"
    kept = [line for line in path.read_text().splitlines() if str(json.loads(line)["question_id"]) not in ABSENT]
    path.write_text("\n".join(kept) + "\n")
    write_jsonl(folder / "m.jsonl", [{"question_id": number, "text": INSIDE} for number in (0, 1, 4)])
    assert run(summarize_vqa.main, ["--answers", str(folder / "m.jsonl"), "--data", str(folder)]) == 0
    summary = read_json(folder / "summary.json")
    assert summary["absence"] == {} and "always none" not in summary["baselines"]


def test_a_summary_of_other_answers_is_not_replaced_silently(folder, capsys):
    summarize(folder, [INSIDE] * 6)
    summarize(folder, [INSIDE] * 6, [NONE] * 6)
    assert "replaced" not in capsys.readouterr().out  # the first model is still there
    summarize(folder, [INSIDE] * 6)
    assert "replaced a summary with other answers (m1.jsonl)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("absent", "mask", "message"), [(False, 0, 'meta["absent"]: true'), (True, 255, "must be empty")]
)
def test_mask_and_question_must_agree(folder, capsys, absent, mask, message):
    Image.fromarray(np.full((40, 60), mask, np.uint8)).save(folder / "masks" / "2.png")
    path = folder / "point_questions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2]["meta"]["absent"] = absent
    write_jsonl(path, records)
    summarize(folder, [INSIDE] * 6, status=2)
    assert message in capsys.readouterr().err


def test_a_chain_to_nothing_is_in_no_group_of_hops():
    metas = [{"hops": [{}, {}]}, {"hops": [{}], "absent": {"reason": "relation"}}, {}]
    questions = [Question(number, "a.png", "Where?", None, meta) for number, meta in enumerate(metas)]
    assert question_groups(questions) == {("all", "all"): [0, 1, 2], ("hops", "2"): [0]}
