"""Questions about what is not there: absent by the poses in views.jsonl alone, and nothing else of the data changes."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nano_tokenizer import vocabulary
from rendering import needs_gl
from scene_geometry import distance, footprint
from scene_questions import read_questions_of

from trace_vlm.core.prompts import bare_instruction
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import read_samples, write_samples
from trace_vlm.data.cor import build, rules
from trace_vlm.data.mix import without_reasoning
from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import SceneConfig, load_scene_config
from trace_vlm.data.scenes.questions import baselines
from trace_vlm.data.sources.check import check_set
from trace_vlm.data.sources.sample_checks import part_of
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.utils.files import read_json

ROOT = Path(__file__).parents[2]
NANO_CHAIN = ROOT / "configs" / "scenes" / "nano_chain.yaml"
COMMITTED = ROOT / "data_samples" / "tabletop_absent"
REASONS = {"color", "category", "relation", "full", "hidden", "impossible"}

pytestmark = needs_gl


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("absent")
    (out / "nano.yaml").write_text(NANO_CHAIN.read_text().replace("absent: 0.0", "absent: 0.3"))
    (out / "rooms.yaml").write_text("questions: {absent: 0.3}")
    for name, config, more in (
        ("nano", out / "nano.yaml", "--scenes 16 --benchmark"), ("rooms", out / "rooms.yaml", "--scenes 12 --benchmark"),
        ("off", NANO_CHAIN, "--scenes 6"), ("on", out / "nano.yaml", "--scenes 6"),
    ):  # fmt: skip
        flags = f"--config {config} --out {out / name} --size 128 --seed 5 {more}"
        assert generate.main(flags.split()) == 0
    return out


@pytest.fixture(scope="module")
def absent(folders):
    questions = [one for name in ("nano", "rooms") for one in read_questions_of(folders / name)]
    return [one for one in questions if "absent" in one.meta]


def test_pictures_and_all_other_questions_are_the_same_with_and_without(folders):
    off, on = (folders / name for name in ("off", "on"))
    for folder in ("images", "masks", "instances"):
        for path in (off / folder).iterdir():
            assert path.read_bytes() == (on / folder / path.name).read_bytes()
    kept = [sample for sample in read_samples(on / "data.json") if "absent" not in sample.meta]
    assert (
        kept == list(read_samples(off / "data.json"))
        and (off / "views.jsonl").read_bytes() == (on / "views.jsonl").read_bytes()
    )
    rows = baselines.measure(on)
    assert rows == baselines.measure(off) and not any("absent" in kind for kind in rows["kinds"])
    assert read_json(on / "generate.json")["settings"]["config"]["questions"]["absent"] == 0.3
    assert "absent" not in read_json(off / "generate.json")["settings"]["config"]["questions"]
    assert SceneConfig().absent == 0.15 and load_scene_config(NANO_CHAIN).absent == 0


def test_the_questions_do_not_depend_on_the_order_of_sets(folders, tmp_path):
    made = []
    for seed in ("1", "2"):
        flags = f"--config {folders / 'rooms.yaml'} --out {tmp_path / seed} --size 128 --seed 6 --scenes 4".split()
        command = [sys.executable, "-m", "trace_vlm.data.scenes.generate", *flags]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
        made.append((tmp_path / seed / "data.json").read_bytes())
    assert made[0] == made[1]


def test_share_reasons_and_one_word(folders, absent):
    for name in ("nano", "rooms"):
        summary = read_json(folders / name / "generate.json")
        counts = Counter(summary["absent"])
        words = counts.pop("one word")
        total = counts.total()
        assert set(counts) <= REASONS and 0.24 < total / summary["samples"] < 0.34 and words >= total / 2
    kinds = Counter((one.meta["kind"], one.meta["task"]) for one in absent)
    assert {kind for kind, _ in kinds} == {"absent object", "absent relation", "absent free"}
    assert kinds["absent object", "free_space"] and kinds["absent object", "object_reference"]
    by_folder = {folder: {one.question.question_id: one for one in read_questions_of(folder)} for folder in
                 {one.folder for one in absent}}  # fmt: skip
    for one in absent:
        assert one.meta["points"] == [] and not one.mask.any()
        if one.meta["absent"]["near"] is None:
            continue
        true = by_folder[one.folder][one.meta["absent"]["near"]]
        assert true.meta["view"] == one.meta["view"] and true.mask.any() and true.meta["task"] == one.meta["task"]
        changed = set(true.question.text.split()) ^ set(one.question.text.split())
        assert 1 <= len(changed) <= (9 if one.meta["absent"]["word"] == "relation" else 6), changed  # "roll of tape"


def test_the_thing_is_absent_by_the_poses_of_all_objects(absent):
    for one in absent:
        about, objects = one.meta["absent"], one.objects.values()
        if about["reason"] in ("color", "category"):
            assert about["looked_for"] in one.question.text
            nouns = {item["category"] for item in objects}
            assert not any(about["looked_for"] in (item["name"], item["category"]) for item in objects), one.where
            noun = next((noun for noun in nouns if about["looked_for"].endswith(noun)), None)
            assert (noun is not None) == (about["reason"] == "color"), one.where
        elif about["reason"] == "relation":
            (reference,), relation = one.references, one.meta["relation"]
            alike = [item for item in objects if item["category"] == about["looked_for"] and item is not reference]
            assert {item["name"] for item in alike} >= {item["name"] for item in about["instead"]} and about["instead"]
            for item in alike:
                if relation == "next to":
                    assert distance(footprint(item), footprint(reference)) > 0.34, one.where
                else:
                    offset = np.array(item["position"][:2]) - reference["position"][:2]
                    assert offset @ one.sight.way(relation) < -0.0199, one.where
            for item in about["instead"]:
                if item["lies"]:
                    offset = np.array(item["position"][:2]) - reference["position"][:2]
                    way = one.sight.way(item["lies"])
                    angle = math.atan2(abs(offset @ [way[1], -way[0]]), offset @ way)
                    assert math.degrees(angle) <= one.relations["cone"], one.where


def test_free_space_is_absent_by_the_poses_of_all_objects(absent):
    free = [one for one in absent if one.meta["kind"] == "absent free"]
    assert free
    for one in free:
        reason, relation, first = one.meta["absent"]["reason"], one.meta["relation"], one.references[0]
        if relation == "between":
            assert reason == "impossible" and distance(footprint(first), footprint(one.references[1])) <= 0.0302
        elif reason == "impossible":
            assert first["top"] is None and first["interior"] is None, one.where
        elif reason == "full":
            held = [item for item in one.objects.values() if item["support"].get("object") == first["instance"]]
            assert held and {item["instance"] for item in held} >= {
                item["instance"] for item in one.meta["absent"]["instead"]
            }
        else:  # hidden: no pixel without an object shows ground in the cone, near the reference
            rows, columns = np.nonzero(~np.isin(one.instances, list(one.objects)))
            points = one.sight.on_plane(rows, columns, first["position"][2])
            offset = points - np.array(first["position"][:2])
            way = one.sight.way(relation)
            inside = (offset @ way > first["radius"] + 0.02) & (np.abs(offset @ [way[1], -way[0]]) < 0.5 * offset @ way)
            far = np.hypot(*offset.T) > 0.3
            gaps = [np.hypot(*(points - np.array(item["position"][:2])).T) < item["radius"] + 0.02
                    for item in one.objects.values()]  # fmt: skip
            assert not (inside & ~far & ~np.any(gaps, 0)).any(), one.where


def test_words_and_reasoning(folders):
    known = set(vocabulary())
    for sample in read_samples(folders / "on" / "data.json"):
        if "absent" not in sample.meta:
            continue
        text, about = bare_instruction(sample.conversations[0].text), sample.meta["absent"]
        assert set(text.replace(".", " .").replace("?", " ?").split()) <= known, text
        assert sample.conversations[1].text == f"None: {about['answer']}"
        for coordinates in (False, True):
            made = rules.with_reasoning(sample, 0, coordinates, 2, "plain").conversations[1].text
            response = parse(made)
            assert response.none and len(response.steps) == 4 and not response.hops
            assert made.endswith(f"None: {about['answer']}") and ("(0." in made) >= (
                coordinates and bool(about["instead"])
            )
            assert about["looked_for"] in made and all(item["category"] in made for item in about["instead"][:2])


def test_such_samples_pass_the_checks_and_lose_their_reasoning_as_others_do(folders, tmp_path):
    data, cor = folders / "on" / "data.json", folders / "on" / "cor.json"
    flags = ["--data", str(data), "--out", str(cor), "--reasoner", "rules", "--coordinates", "--decimals", "2"]
    assert build.main(flags) == 0 and read_json(Path(f"{cor}.run.json"))["rejected"] == 0
    for file in (data, cor):
        assert not check_set(file, folders / "on", tmp_path / f"{file.name}.jsonl", 1, strict=True).bad
    for sample, reasoned in zip(read_samples(data), read_samples(cor), strict=True):
        assert part_of(reasoned) == sample.meta["task"] and without_reasoning(reasoned) == sample
    wrong = [replace(sample, meta=sample.meta | {"mask": "masks/000000_0_0.png"}) for sample in read_samples(data)
             if "absent" in sample.meta]  # fmt: skip
    write_samples(tmp_path / "wrong.json", wrong)
    assert len(check_set(tmp_path / "wrong.json", folders / "on", tmp_path / "w.jsonl", 1, False).bad) == len(wrong) > 0


def test_committed_benchmark():
    suite, tabletop = open_benchmark(COMMITTED), open_benchmark(COMMITTED.with_name("tabletop"))
    assert len(suite.questions) == 100 == len({question.image for question in suite.questions})
    assert (COMMITTED / "images").resolve() == (COMMITTED.with_name("tabletop") / "images").resolve()
    reasons = Counter(question.meta["absent"]["reason"] for question in suite.questions)
    assert set(reasons) == REASONS and max(reasons.values()) <= 25
    assert sum(bool(question.meta["absent"]["word"]) for question in suite.questions) >= 60
    texts = {question.question_id: question.text for question in tabletop.questions}
    for question in suite.questions:
        assert not suite.mask(question).any()
        near = question.meta["absent"]["near"]
        assert near is None or texts[near] == question.meta["absent"]["near_text"]
    assert len(json.dumps([question.meta for question in suite.questions])) < 400_000
