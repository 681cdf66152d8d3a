"""Score rules beside the share of points: what is read and what is right, and what a summary shows of them."""

import numpy as np
import pytest

from trace_vlm.core.prompts import POINTS_SUFFIX, asks_yes_no, question_text
from trace_vlm.core.reasoning import parse, render
from trace_vlm.core.records import Question
from trace_vlm.eval import summarize_vqa
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.eval.rules import ALL_POINTS, FIRST_POINT, YES_NO, read_yes_no
from trace_vlm.eval.scoring import score_response
from trace_vlm.report.comparison import compare, write_question
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json, write_jsonl

MASK = np.zeros((4, 10), bool)
MASK[:, :5] = True
IN, OUT = "(0.1, 0.1)", "(0.9, 0.1)"


def asked(rule, **meta):
    return Question(1, "a.png", "Is it? Answer yes or no.", meta={"rule": rule, **meta})


@pytest.mark.parametrize(("text", "word"), [
    ("Yes", "yes"), ("no.", "no"), ("**No**, it is not.", "no"), ("Answer: yes", "yes"), ("The answer is **Yes**.", "yes"),
    ("**Reasoning Process:**\n1. **Identify the reference object:** No cup.\n\n**Final Answer:**\nYes", "yes"),
    (render({"reference": "the desk is there. No."}, []).removesuffix("[]") + "yes, it is", "yes"),
    ("<think>No. The cup is small.</think>\nYes, it fits", "yes"), ("<think>Yes. Maybe.", None),
    ("<answer>no</answer>", "no"), ("The cup is small. It fits. Yes.", "yes"), ("It fits, so the answer is yes", "yes"),
    ("There is no room for it", None), ("Nothing fits", None), ("", None), ("[(0.1, 0.2)]", None),
    ("Yes. No.", "yes"), ("Noon", None), ("It is left of it. No other object is. So yes.", None), ("'yes'", "yes"),
])  # fmt: skip
def test_yes_or_no_is_read_from_the_final_answer(text, word):
    assert read_yes_no(parse(text)) == word
    assert score_response(parse(text), asked(YES_NO, answer="yes"), None) == (word == "yes")


@pytest.mark.parametrize(("text", "first", "two"), [
    (f"[{IN}]", 1, 0), (f"[{IN}, {OUT}]", 1, 0), (f"[{OUT}, {IN}]", 0, 0), (f"[{IN}, {IN}]", 1, 1), ("none", 0, 0),
    (f"[{IN}, {IN}, {IN}]", 1, 0), ("(0.0, 0.0, 0.4, 1.0)", 1, 0), ("(1.5, 0.5)", 0, 0), (f"{OUT}\nAnswer: [{IN}]", 1, 0),
])  # fmt: skip
def test_first_point_and_all_points(text, first, two):
    assert score_response(parse(text), asked(FIRST_POINT), MASK) == first
    assert score_response(parse(text), asked(ALL_POINTS, count=2), MASK) == two


def test_question_is_asked_in_its_own_words():
    text = "Can the cup fit above the counter? Answer yes or no."
    assert asks_yes_no(text) and question_text(text, True) == question_text(f"<image>\n{text}", False) == text
    assert question_text("Point to it.", False) == f"Point to it. {POINTS_SUFFIX}"


@pytest.fixture
def mixed(bench):
    """Questions 3 and 4 are answered by yes and no without a mask, 5 scores its first point, 6 asks for two points."""
    lines = []
    for question in open_benchmark(bench).questions:
        number = question.question_id
        meta = {3: {"rule": YES_NO, "answer": "yes"}, 4: {"rule": YES_NO, "answer": "no"}, 5: {"rule": FIRST_POINT},
                6: {"rule": ALL_POINTS, "count": 2}}.get(number, {})  # fmt: skip
        if number < 5:
            (bench / "masks" / f"{number}.png").unlink()
        text = f"Is it {number}? Answer yes or no." if number < 5 else question.text
        lines.append(question.as_json() | {"text": text, "meta": meta})
    write_jsonl(bench / "point_questions.jsonl", lines)
    write_json(bench / "suite.json", {"masks": "question"})
    return bench


def test_summary_names_the_rules_and_scores_by_them(mixed, write_answers, tmp_path, capsys):
    answers = {3: "Yes", 4: "no idea", 5: "[(0.2, 0.2), (0.9, 0.9)]", 6: "[(0.2, 0.2)]", 7: "[(0.2, 0.2), (0.9, 0.9)]",
               8: "[(0.9, 0.5)]"}  # fmt: skip
    first, second = write_answers(answers), write_answers({**answers, 3: "no", 4: "I see"}, "b.jsonl")
    words = ["--data", mixed, "--resamples", 50, "--out", tmp_path / "out", "--compat", "robopoint", "--answers"]
    assert summarize_vqa.main([str(word) for word in (*words, first, second)]) == 0
    summary = read_json(tmp_path / "out" / "summary.json")
    model, other = summary["models"]
    rules = {YES_NO: 2, FIRST_POINT: 1, ALL_POINTS: 1, "share of points": 2}
    assert summary["benchmark"]["rules"] == rules
    shown = capsys.readouterr().out, (tmp_path / "out" / "summary.md").read_text()
    assert all(f"{rule} ({count} questions)" in text for text in shown for rule, count in rules.items())
    assert model["scores"] == {"3": 1, "4": 1, "5": 1, "6": 0, "7": 0.5, "8": 0}
    assert other["scores"]["3"] == other["scores"]["4"] == 0 and other["unread"]["reasons"] == {"neither yes nor no": 1}
    assert model["first_point"] == pytest.approx(3 / 4) and model["mean_points"] == pytest.approx(6 / 4)
    for one in (model, other):
        assert sum(one["failures"].values()) + one["accuracy"][0]["mean"] == pytest.approx(1)
    assert model["failures"]["another number of points"] == pytest.approx(1 / 6)
    means = {name: (groups[0]["mean"], groups[0]["questions"]) for name, groups in summary["baselines"].items()}
    assert means["always yes"] == means["always no"] == (0.5, 2) and means["image centre"] == (0, 4)
    assert means["uniform points"] == (pytest.approx(np.mean([18 / 37, (30 / 61) ** 2, 16 / 33, 18 / 37])), 4)
    comparison = compare(open_benchmark(mixed), {"a": first, "b": second})
    assert comparison.outcomes["3"] == ("right", "no instead of yes, or yes instead of no")
    assert write_question(tmp_path / "figures", comparison, comparison.questions[0]).outline == ()


@pytest.mark.parametrize(("meta", "named"), [
    ({"rule": "best"}, "'best'. Known: share of points"), ({"rule": ALL_POINTS}, "count"),
    ({"rule": YES_NO, "answer": "Yes"}, "answer"), ({"rule": YES_NO, "answer": "yes"}, "a text that asks for it"),
])  # fmt: skip
def test_rule_that_cannot_be_used_is_named(bench, meta, named):
    lines = [question.as_json() | {"meta": meta} for question in open_benchmark(bench).questions]
    write_jsonl(bench / "point_questions.jsonl", lines)
    with pytest.raises(InputError, match=f"question 3 of .*{named}"):
        open_benchmark(bench)
