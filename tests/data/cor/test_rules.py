"""Reasoning by rules: sentences that are true of their sample, the answer untouched, the recorded texts unchanged."""

import hashlib
import re

import numpy as np
import pytest
from generated_samples import ABSENT, BALL, BETWEEN_MARKED, FULL, MUG, PLAIN, bare, chain, generated

from trace_vlm.core import reasoning
from trace_vlm.core.prompts import REASONING_SUFFIX
from trace_vlm.data.cor import rules
from trace_vlm.data.cor.checks import ReasoningTask, check
from trace_vlm.data.cor.instruction_parser import facts_from_meta, facts_from_wording


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("sample,wording", [*((one, "plain") for one in PLAIN), *((one, "full") for one in FULL)])
def test_reasoning_has_four_steps_and_the_sample_s_own_answer(sample, wording, coordinates):
    made = rules.with_reasoning(sample, seed=0, coordinates=coordinates, decimals=2, wording=wording)
    response = reasoning.parse(made.conversations[1].text)
    assert [step.key for step in response.steps] == list(reasoning.STEPS)
    assert [(point.x, point.y) for point in response.points] == [(0.21, 0.31), (0.19, 0.28)]
    assert REASONING_SUFFIX in made.conversations[0].text and made.meta == sample.meta
    located = re.search(r"\d\.\d", made.conversations[1].text.split("**Final Answer:**")[0])
    assert bool(located) == (coordinates and bool(sample.meta["references"] or sample.meta["target"]))


@pytest.mark.parametrize("wording,samples,digest", [("plain", PLAIN, "92a49f8d046e"), ("full", FULL, "b4fd2b6ed394")])
def test_the_texts_are_the_recorded_ones(wording, samples, digest):
    """Published data sets are made again to the byte."""
    texts = [rules.with_reasoning(sample, seed, coordinates, 2, wording).conversations[1].text
             for sample in samples for coordinates in (False, True) for seed in range(20)]  # fmt: skip
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] == digest


@pytest.mark.parametrize("sample", FULL, ids=lambda sample: sample.id)
def test_the_full_wording_states_the_facts_and_leaves_no_placeholder(sample):
    meta = sample.meta
    names = [item["name"] for item in meta["references"]] or [meta["surface"]]
    if meta["kind"] == "direct":
        names = [meta["target"]["name"]]
    for seed in range(40):
        steps = rules.write_steps(facts_from_meta(meta), np.random.default_rng(seed), "full")
        assert not any("{" in text or "  " in text or text[0].islower() for text in steps.values())
        check(steps, ReasoningTask.of(sample))
        assert all(name in steps["reference"] for name in names)
        if meta["target"]:
            assert meta["target"]["name"] in steps["target"] + steps["reference"]
            assert meta["target"]["name"] in steps["output"] and "object reference" in steps["subtype"]
        else:
            assert "free space" in steps["subtype"]
        if meta["relation"]:
            places = rules.SENTENCES["full"]["where"][meta["relation"]]
            assert any(place.partition(" {")[0].removesuffix(" the") in steps["target"] for place in places)
            assert all(name in steps["target"] for name in names)


def test_a_chain_is_walked_in_the_first_step():
    sample = chain("chain 2", MUG)
    made = rules.with_reasoning(sample, 0, True, 2, "plain").conversations[1].text
    response = reasoning.parse(made)
    assert [hop.text for hop in response.hops] == ["What lies behind it at (0.80, 0.40) is the box."]
    assert f"the blue ball at (0.50, 0.60). {response.hops[0].text}" in made
    assert "to the left of it at (0.20, 0.30)" in response.step("target").text
    assert "0." not in rules.with_reasoning(sample, 0, False, 2, "plain").conversations[1].text.split("Final")[0]
    for seed in range(40):
        for asked in (sample, chain("free chain 2")):
            steps = rules.write_steps(facts_from_meta(asked.meta), np.random.default_rng(seed), "full", True)
            check(steps, ReasoningTask.of(asked), True)
            (hop,) = reasoning.parse(reasoning.render(steps, [])).hops
            assert {"blue ball", "green box"} <= set(re.findall("blue ball|green box", hop.text)), hop.text
            assert "green box" in steps["target"] and "blue ball" not in steps["target"] and "{" not in hop.text


@pytest.mark.parametrize("instruction,names,verb", [
    ("Locate several points on the mugs.", "mugs", "are"), ("Where are the books next to the lamp?", "lamp", "is"),
    ("Point to the free space behind the scissors.", "scissors", "are"), ("Point to the glass.", "glass", "is"),
    ("Point to the pair of scissors.", "pair of scissors", "is")])  # fmt: skip
def test_verbs_agree_with_what_an_instruction_names(instruction, names, verb):
    facts, other = facts_from_wording(instruction), {"is": "are", "are": "is"}[verb]
    texts = " ".join(rules.write_steps(facts, np.random.default_rng(n), "full")["reference"] for n in range(99))
    assert f"he {names} {verb} " in texts and f"he {names} {other} " not in texts


@pytest.mark.parametrize("sample", [
    generated("free", "on", None, [BALL]), BETWEEN_MARKED, generated("part", "left part"), bare("x")])  # fmt: skip
def test_the_plain_wording_refuses_what_it_has_no_words_for_and_coordinates_need_meta(sample):
    with pytest.raises(ValueError, match="--wording"):
        rules.with_reasoning(sample, 0, False, 2, "plain")
    with pytest.raises(ValueError, match="meta"):
        rules.with_reasoning(bare("Point to the red mug."), 0, True, 3)


@pytest.mark.parametrize("wording", ["plain", "full"])
@pytest.mark.parametrize("sample", ABSENT, ids=lambda sample: sample.id)
def test_what_is_not_there_is_looked_for_and_what_is_seen_instead_is_named(sample, wording):
    about = sample.meta["absent"]
    for seed in range(20):
        for coordinates in (False, True):
            made = rules.with_reasoning(sample, seed, coordinates, 2, wording).conversations[1].text
            response = reasoning.parse(made)
            steps = {step.key: step.text for step in response.steps}
            assert response.none and made.endswith(f"\nNone: {about['answer']}") and len(steps) == 4
            assert about["answer"][1:] in steps["target"] and not response.hops and "{" not in made and "  " not in made
            for item in about["instead"]:
                assert item["category"] in steps["reference"] + steps["target"]
                assert ("(0.20, 0.30)" in made) == coordinates
            task = {"object_reference": "object reference", "free_space": "free space"}[sample.meta["task"]]
            assert task in steps["subtype"]
    if wording == "plain":
        made = rules.with_reasoning(ABSENT[0], 1, True, 2, "plain").conversations[1].text
        assert "the blue mug. The mug at (0.20, 0.30) is red." in made and "There is no blue mug." in made
