"""Chains of relations: every link checked from the poses in views.jsonl, and no shorter reading of the words is right."""

from collections import Counter
from copy import copy
from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
from nano_tokenizer import vocabulary
from rendering import needs_gl
from scene_geometry import footprint, gap
from scene_questions import TOLERANCE, holds, read_questions_of, related, standing

from trace_vlm.core.prompts import bare_instruction
from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import as_dict, load_scene_config
from trace_vlm.data.scenes.questions import baselines
from trace_vlm.data.scenes.wording import PLAIN
from trace_vlm.eval.scoring import question_groups

NANO_CHAIN = Path(__file__).parents[2] / "configs" / "scenes" / "nano_chain.yaml"
SHORTER = ("no_first_hop", "no_last_hop", "no_middle_hop", "one_hop", "other_middle")

pytestmark = needs_gl


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("chains")
    (out / "rooms.yaml").write_text("questions: {chain: {2: 1, 3: 1}, direct: 0, between: 0, part: 0, marks: 0.5}")
    for name, config, more in (("nano", NANO_CHAIN, "16"), ("rooms", out / "rooms.yaml", "4")):
        flags = f"--config {config} --out {out / name} --size 128 --seed 5 --benchmark --scenes {more}"
        assert generate.main(flags.split()) == 0
    return {name: out / name for name in ("nano", "rooms")}


@pytest.fixture(scope="module")
def chains(folders):
    return [one for folder in folders.values() for one in read_questions_of(folder) if "chain" in one.meta["kind"]]


def asked_of(one, relation, reference):
    other = copy(one)
    other.meta, other.references = {**one.meta, "relation": relation}, [reference]
    return other


def follow(one, at, steps):
    """Where relations lead: to the nearest object of each noun that has its relation; None where none has."""
    for relation, noun in steps:
        link = asked_of(one, relation, at)
        fits = [item for item in one.objects.values()
                if item["category"] == noun and item is not at and holds(link, item, sure=True)]  # fmt: skip
        if not fits:
            return None
        centers = np.array([item["position"][:2] for item in fits])
        at = fits[int((gap(centers, footprint(at)) - [item["radius"] for item in fits]).argmin())]
    return at


def objects_of(one):
    return [*one.references, *(one.objects[hop["instance"]] for hop in one.meta["hops"] if hop["instance"] is not None)]


def test_every_link_leads_to_one_object_without_doubt_and_the_last_one_to_the_mask(chains):
    for one in chains:
        objects = objects_of(one)
        assert len({item["instance"] for item in objects}) == len(objects), one.where
        assert [item["name"] for item in one.objects.values()].count(objects[0]["name"]) == 1, one.where
        for (start, end), hop in zip(pairwise(objects), one.meta["hops"], strict=False):
            link = asked_of(one, hop["relation"], start)
            alike = [item for item in one.objects.values() if item["category"] == hop["noun"] and item is not start]
            assert len(alike) >= 2 and all(item["pixels"] for item in alike), one.where
            for item in alike:
                assert holds(link, item, sure=item is end) == (item is end), (one.where, item["name"])
            x, y = hop["center"]
            height, width = one.mask.shape
            assert one.instances[int(y * height), int(x * width)] == end["instance"] == hop["instance"]
            assert hop["name"] == end["name"]
        if one.meta["task"] == "object_reference":
            assert (one.mask == (one.instances == objects[-1]["instance"])).all(), one.where
        else:
            beside = asked_of(one, one.meta["relation"], objects[-1])
            points = one.sight.on_plane(one.rows, one.columns, one.support()[0]["center"][2])
            assert standing(one, points, TOLERANCE).all() and related(beside, points, TOLERANCE).all(), one.where


def test_no_shorter_reading_leads_to_the_answer(chains):
    for one in chains:
        hops, objects = [(hop["relation"], hop["noun"]) for hop in one.meta["hops"]], objects_of(one)
        links = range(len(objects) - 1)
        for kept in (kept for count in links for kept in combinations(links, count) if kept):
            for middle in product(*(range(*ends) for ends in pairwise(kept))):
                steps = [(hops[at][0], hops[noun][1]) for at, noun in zip(kept, (*middle, links[-1]), strict=True)]
                assert follow(one, objects[0], steps) is not objects[-1], (one.where, steps)
        for number, item in product(links[1:], one.objects.values()):
            if item["category"] == objects[number]["category"] and item is not objects[number]:
                assert follow(one, item, hops[number : len(links)]) is not objects[-1], (one.where, item["name"])


def test_baselines_know_the_shorter_readings_and_the_last_link_is_balanced(folders, chains):
    for folder in folders.values():
        rows = [row for kind, row in baselines.measure(folder)["kinds"].items() if "chain" in kind]
        shown = [[row[name] for name in SHORTER if name in row] for row in rows]
        assert len(rows) == 4 and all(shown) and not any(map(any, shown)), rows
    for hops in (2, 3):
        flags = [(one.meta["extreme_correct"], one.meta["nearest_correct"]) for one in chains
                 if len(one.meta["hops"]) == hops and one.folder == folders["nano"]]  # fmt: skip
        assert set(Counter(flags).values()) == {4}


def test_words_and_groups(folders):
    nano, known = read_questions_of(folders["nano"]), set(vocabulary())
    for one in nano:
        text = bare_instruction(one.question.text)
        assert set(text.replace(".", " .").replace("?", " ?").split()) <= known, text
        hops = one.meta.get("hops", [])
        assert len(hops) == {"relational": 1, "free": 1}.get(one.meta["kind"], len(hops))
        phrase = f"the {one.references[0]['name']}" if hops else ""
        for hop in hops[:-1]:
            phrases = [f"the {hop['noun']} {place.format(first=phrase)}" for place in PLAIN.places[hop["relation"]]]
            (phrase,) = [phrase for phrase in phrases if phrase in text]
    assert "chain" not in as_dict(load_scene_config(None))["questions"]  # existing sets keep their generate.json
    groups = question_groups([one.question for one in nano])
    assert len(groups["hops", "1"]) == 48 and len(groups["hops", "2"]) == len(groups["hops", "3"]) == 16
