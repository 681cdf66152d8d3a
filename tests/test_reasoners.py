"""The rules reasoner: every sentence true of its sample, the answer untouched, refusals recorded."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from trace_vlm import reasoning
from trace_vlm.data.reasoners import build, rules
from trace_vlm.prompts import REASONING_SUFFIX, question_text
from trace_vlm.records import Sample, Turn


def thing(name, x, y):
    color, category = name.split()
    return {"name": name, "color": color, "category": category, "center": [x, y]}


MUG, BALL, BOX = thing("red mug", 0.2, 0.3), thing("blue ball", 0.5, 0.6), thing("green box", 0.8, 0.4)


def sample(kind, relation=None, target=None, references=(), answer="[(0.21, 0.31), (0.19, 0.28)]"):
    task = "object_reference" if kind in ("direct", "relational") else "free_space"
    meta = {
        "task": task,
        "kind": kind,
        "relation": relation,
        "target": target,
        "references": list(references),
        "surface": "table",
    }
    turns = (Turn("human", "<image>\n" + question_text("Do it.", reasoning=False)), Turn("gpt", answer))
    return Sample(f"{kind}-1", "images/a.png", turns, meta)


SAMPLES = [
    sample("direct", target=MUG),
    sample("relational", "left", MUG, [BALL]),
    sample("free", "behind", None, [BALL]),
    sample("between", "between", None, [MUG, BOX]),
]


@pytest.mark.parametrize("given", SAMPLES, ids=lambda given: given.meta["kind"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_reasoning_has_four_steps_and_the_sample_s_own_answer(given, coordinates):
    made = build.with_reasoning(given, seed=0, coordinates=coordinates, decimals=2)
    response = reasoning.parse(made.conversations[1].text)
    assert [step.key for step in response.steps] == list(reasoning.STEPS)
    assert [(point.x, point.y) for point in response.points] == [(0.21, 0.31), (0.19, 0.28)]
    assert REASONING_SUFFIX in made.conversations[0].text
    assert made.meta == given.meta
    before_the_answer = made.conversations[1].text.split("**Final Answer:**")[0]
    assert bool(re.search(r"\d\.\d", before_the_answer)) == coordinates


def test_sentences_name_the_objects_and_the_relation():
    steps = rules.reason(SAMPLES[1], np.random.default_rng(0), coordinates=True, decimals=2)
    assert "blue ball at (0.50, 0.60)" in steps["reference"]
    assert "to the left of it at (0.20, 0.30)" in steps["target"] and "mug" in steps["target"]
    assert "object reference" in steps["subtype"]
    between = rules.reason(SAMPLES[3], np.random.default_rng(0))
    assert "red mug" in between["reference"] and "green box" in between["reference"]


def test_wording_varies_with_the_sample_and_not_with_the_run():
    texts = set()
    for number in range(40):
        one = Sample(f"s{number}", "a.png", SAMPLES[1].conversations, SAMPLES[1].meta)
        first, again = (build.with_reasoning(one, 3, False, 2).conversations[1].text for _ in range(2))
        assert first == again
        texts.add(first)
    assert len(texts) >= 10


def test_no_placeholder_is_left_open():
    for given in SAMPLES:
        for seed in range(30):
            steps = rules.reason(given, np.random.default_rng(seed), coordinates=True)
            assert not any("{" in text or "  " in text for text in steps.values())


def test_command_writes_what_it_can_and_records_the_rest(tmp_path, capsys):
    bare = Sample("no-meta", "a.png", SAMPLES[0].conversations, {})
    wordy = sample("direct", target=MUG, answer="somewhere")
    data = tmp_path / "data.json"
    data.write_text(json.dumps([one.as_json() for one in [*SAMPLES, bare, wordy]]))
    out = tmp_path / "cor.json"
    assert build.main(["--data", str(data), "--out", str(out), "--decimals", "2"]) == 0
    assert [one["id"] for one in json.loads(out.read_text())] == [one.id for one in SAMPLES]
    rejects = [json.loads(line) for line in (tmp_path / "cor.json.rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == ["no-meta", "direct-1"]
    assert "meta lacks task" in rejects[0]["reason"] and "no points" in rejects[1]["reason"]
    assert "4 samples with reasoning, 2 rejected" in capsys.readouterr().out
