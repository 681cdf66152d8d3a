"""scripts/experiment_nano.py: the page's numbers are those of the scores."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from shell import ROOT

from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import render

IMAGES, SEEDS = 12, 3
KINDS = ["direct", "relational", "chain 2", "free"]


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """A finished experiment of made-up scores, those of later arms higher; the module, the experiment, the scores."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = importlib.import_module("experiment_nano")
    made = module.Experiment(tmp_path, module.QUICK)
    made.size = module.Size(seeds=SEEDS)
    (tmp_path / "bench").mkdir()
    questions = [
        {"question_id": number, "image": f"{number // len(KINDS)}.png", "meta": {"kind": KINDS[number % len(KINDS)]}}
        for number in range(IMAGES * len(KINDS))
    ]
    (tmp_path / "bench" / "point_questions.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    rng, scores = np.random.default_rng(0), {}
    for place, name in enumerate(module.SECTIONS["dose"][1]):
        for seed in range(SEEDS):
            scores[name, seed] = (rng.random(len(questions)) < 0.3 + 0.15 * place).astype(float)
            path = made.scores(name, seed)
            path.parent.mkdir(exist_ok=True)
            record = {"cpu_seconds": 100.0 + seed, "ece": 0.2, "aurc": None, "scores": scores[name, seed].tolist()}
            path.write_text(json.dumps(record))
    return module, made, scores


def test_a_section_is_the_mean_over_seeds_the_deviation_and_the_paired_difference(experiment, tmp_path):
    module, made, scores = experiment
    rows = [line.split(" | ") for line in made.section("dose").splitlines() if line.startswith("| ")]
    header = rows[0]
    assert header[2:6] == ["all", "named", "1 hop", "2 hops"] and "3 hops" not in header  # what was asked
    none = next(row for row in rows if row[0] == "| none")
    runs = np.array([scores["none", seed] for seed in range(SEEDS)])
    assert none[1] == "101" and none[-2] == "0.200" and none[-1] == "- |"
    assert none[2] == f"{100 * runs.mean():.1f} ± {100 * runs.mean(1).std(ddof=1):.1f}"
    hops = runs[:, 2 :: len(KINDS)]
    assert none[5] == f"{100 * hops.mean():.1f} ± {100 * hops.mean(1).std(ddof=1):.1f}"
    gap = next(row for row in rows if row[0] == "| reasoning minus none")
    other = np.array([scores["reasoning", seed] for seed in range(SEEDS)])
    assert gap[2].startswith(f"{100 * (other - runs).mean():+.1f} [")
    assert (tmp_path / "images" / "nano_dose.png").exists()


def test_the_trend_over_the_dose_is_pages_test(experiment):
    module, made, scores = experiment
    names = module.SECTIONS["dose"][1][1:]  # the first arm is not asked to reason
    means = [[scores[name, seed].mean() for name in names] for seed in range(SEEDS)]
    assert f"growing p = {stats.page_trend_test(means).pvalue:.2g}," in made.section("dose")


def test_a_section_waits_for_all_its_arms_and_equal_time_is_that_of_the_first_seed(experiment):
    module, made, _ = experiment
    assert made.finished("dose") == [0, 1, 2] and made.finished("hops") == []
    made.scores("50 %", 1).unlink()
    assert made.finished("dose") == [0, 2]
    for name, seconds in (("reasoning", 300.0), ("none", 150.0)):
        made.scores(name, 0).write_text(json.dumps({"cpu_seconds": seconds}))
    assert made.equal_time_steps(module.ARMS["none, equal time"]) == 2 * made.size.steps
    long = made.equal_time_steps(module.ARMS["long, none, equal time"])
    assert long == 1.5 * made.size.long  # half of the answers of the arm it is compared with are longer
    assert made.equal_time_steps(module.ARMS["long, reasoning, equal time"]) == 0.75 * made.size.long
    for name, seconds in (("reasoning, RL", 480.0), ("none, RL", 120.0)):
        made.scores(name, 0).write_text(json.dumps({"cpu_seconds": seconds}))
    assert made.equal_time_steps(module.ARMS["none, RL, equal time"]) == 4 * made.size.rl_steps


def test_the_middle_of_free_space_is_placed_and_nothing_else_changes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    wordings = importlib.import_module("experiment_wordings")
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[10:31, 20:41] = 255  # its middle is the pixel (30, 20)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    answer = render({"reference": "The red mug.", "target": "Left of it.", "output": "On it."}, [Point(0.3, 0.4)], 2)
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answer}]
    sample = {"id": "a", "conversations": turns, "meta": {"task": "free_space", "mask": "mask.png"}}
    placed = wordings.area_placed(sample, tmp_path)["conversations"][1]["value"]
    assert placed == answer.replace("Left of it.", "Left of it. Its middle is at (0.38, 0.51).")
    other = {**sample, "meta": {"task": "object_reference"}}
    assert wordings.area_placed(other, tmp_path) == other
