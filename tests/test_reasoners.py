"""The local reasoners: sentences true of their sample, every text checked, the answer untouched, refusals recorded."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from trace_vlm.core import reasoning
from trace_vlm.core.prompts import REASONING_SUFFIX, question_text
from trace_vlm.core.records import Sample, Turn
from trace_vlm.data.cor import build, rules, rules_wording
from trace_vlm.data.cor.checks import Rejected, Rules, check, read_steps
from trace_vlm.data.cor.instruction_parser import PARTS, RELATIONS, asks_for_room, from_meta, from_wording
from trace_vlm.data.cor.tasks import task_of
from trace_vlm.data.scenes.questions.wording import write_instruction
from trace_vlm.utils.command import InputError, run


def thing(name, x, y, instance=2):
    color, category = name.split()
    return {"instance": instance, "name": name, "color": color, "category": category, "center": [x, y]}


MUG, BALL, BOX = thing("red mug", 0.2, 0.3), thing("blue ball", 0.5, 0.6, 3), thing("green box", 0.8, 0.4, 4)
ANSWER = "[(0.21, 0.31), (0.19, 0.28)]"


def sample(kind, relation=None, target=None, references=(), answer=ANSWER, surface="table", marks=(), said="Do it."):
    task = "object_reference" if kind in ("direct", "relational") else "free_space"
    meta = {
        "task": task,
        "kind": kind,
        "relation": relation,
        "target": target,
        "references": list(references),
        "surface": surface,
        "marks": [{"instance": item["instance"], "color": color} for item, color in marks],
    }
    turns = (Turn("human", "<image>\n" + question_text(said, reasoning=False)), Turn("gpt", answer))
    return Sample(f"{kind}-{relation}", "images/a.png", turns, meta)


PLAIN = [
    sample("direct", target=MUG),
    sample("relational", "left", MUG, [BALL]),
    sample("free", "behind", None, [BALL]),
    sample("between", "between", None, [MUG, BOX]),
]
FULL = [
    *PLAIN,
    *(sample("relational", relation, MUG, [BALL]) for relation in RELATIONS if relation not in (*PARTS, "between")),
    *(sample("free", relation, None, [BALL]) for relation in RELATIONS if relation not in (*PARTS, "between")),
    *(sample("part", part, surface="lower shelf") for part in PARTS),
    *(sample("relational", part, MUG, surface="counter") for part in PARTS),
    sample("relational", "on", MUG, surface="upper shelf"),
    sample("relational", "between", MUG, [BALL, BOX]),
    sample("free", "left", None, [BALL], marks=[(BALL, "red")]),
    sample("between", "between", None, [BALL, BOX], marks=[(BALL, "red"), (BOX, "green")]),
]


def without_answer(made):
    return made.conversations[1].text.split("**Final Answer:**")[0]


# --- both wordings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize(
    "given,wording", [*((one, "plain") for one in PLAIN), *((one, "full") for one in FULL)],
    ids=lambda value: value if isinstance(value, str) else value.id,
)  # fmt: skip
def test_reasoning_has_four_steps_and_the_sample_s_own_answer(given, wording, coordinates):
    made = build.with_reasoning(given, seed=0, coordinates=coordinates, decimals=2, wording=wording)
    response = reasoning.parse(made.conversations[1].text)
    assert [step.key for step in response.steps] == list(reasoning.STEPS)
    assert [(point.x, point.y) for point in response.points] == [(0.21, 0.31), (0.19, 0.28)]
    assert REASONING_SUFFIX in made.conversations[0].text
    assert made.meta == given.meta
    located = bool(re.search(r"\d\.\d", without_answer(made)))
    assert located == (coordinates and bool(given.meta["references"] or given.meta["target"]))


@pytest.mark.parametrize("wording", ["plain", "full"])
def test_wording_varies_with_the_sample_and_not_with_the_run(wording):
    texts = set()
    for number in range(40):
        one = Sample(f"s{number}", "a.png", PLAIN[1].conversations, PLAIN[1].meta)
        first, again = (build.with_reasoning(one, 3, False, 2, wording).conversations[1].text for _ in range(2))
        assert first == again
        texts.add(first)
    assert len(texts) >= (10 if wording == "plain" else 39)


@pytest.mark.parametrize("given", FULL, ids=lambda given: given.id)
def test_the_full_wording_states_the_facts_and_leaves_no_placeholder(given):
    facts = from_meta(given.meta)
    for seed in range(40):
        steps = rules_wording.reason(facts, np.random.default_rng(seed), False, 2)
        assert not any("{" in text or "  " in text or text[0].islower() for text in steps.values())
        check(steps, "Do it.", facts, Rules())
        names = [item["name"] for item in given.meta["references"]] or [given.meta["surface"]]
        if given.meta["kind"] == "direct":
            names = [given.meta["target"]["name"]]
        assert all(name in steps["reference"] for name in names)
        if given.meta["target"]:
            assert given.meta["target"]["name"] in steps["target"] + steps["reference"]
            assert given.meta["target"]["name"] in steps["output"] and "object reference" in steps["subtype"]
        else:
            assert "free space" in steps["subtype"]
        if given.meta["relation"]:
            said = [words.partition("{")[0] for words in rules_wording.WHERE[given.meta["relation"]]]
            assert any(words in steps["target"] for words in said), "the relation is stated"
            assert all(name in steps["target"] for name in names)


def test_every_table_has_twelve_phrasings_that_differ():
    for table in rules_wording.tables():
        assert len(set(table)) == len(table) >= 12
    assert set(rules_wording.WHERE) == set(RELATIONS)


@pytest.mark.parametrize(
    "said,names,verb",
    [
        ("Locate several points on the mugs.", "mugs", "are"),
        ("Where are the books next to the lamp?", "lamp", "is"),
        ("Point to the free space behind the scissors.", "scissors", "are"),
        ("Point to the pair of scissors.", "pair of scissors", "is"),
        ("Point to the glass.", "glass", "is"),
    ],
)
def test_verbs_agree_with_what_an_instruction_names(said, names, verb):
    facts = from_wording(said)
    other = {"is": "are", "are": "is"}[verb]
    said = " ".join(
        rules_wording.reason(facts, np.random.default_rng(seed), False, 3)["reference"] for seed in range(99)
    )
    assert f"he {names} {verb} " in said and f"he {names} {other} " not in said


def test_the_item_of_an_instruction_is_told_from_the_reference():
    facts = from_wording("Locate several points on an item left of the item outlined by a red rectangle.")
    assert facts.target.phrase == "the item that is asked for" and facts.references[0].phrase != facts.target.phrase


def test_marked_references_are_called_by_their_rectangle():
    facts = from_meta(FULL[-1].meta)
    steps = rules_wording.reason(facts, np.random.default_rng(0), False, 2)
    assert "he blue ball in the red rectangle and the green box in the green rectangle" in steps["reference"]


def test_the_plain_sentences_name_the_objects_and_the_relation():
    steps = rules.reason(PLAIN[1], np.random.default_rng(0), coordinates=True, decimals=2)
    assert "blue ball at (0.50, 0.60)" in steps["reference"]
    assert "to the left of it at (0.20, 0.30)" in steps["target"] and "mug" in steps["target"]
    assert "object reference" in steps["subtype"]
    between = rules.reason(PLAIN[3], np.random.default_rng(0))
    assert "red mug" in between["reference"] and "green box" in between["reference"]


@pytest.mark.parametrize("given", [sample("free", "on", None, [BALL]), FULL[-1], FULL[-6]], ids=lambda one: one.id)
def test_the_plain_wording_refuses_what_it_has_no_words_for(given):
    with pytest.raises(ValueError, match="--wording full"):
        build.with_reasoning(given, 0, False, 2, "plain")


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"task": "cooking"}, "task 'cooking'"),
        ({"relation": "nearby"}, "relation 'nearby'"),
        ({"references": []}, "without the objects"),
        ({"references": [{"name": "ball"}]}, "without a name and a center"),
        ({"target": None}, "without the objects"),
    ],
)
def test_broken_meta_is_rejected_with_its_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        from_meta({**PLAIN[1].meta, **change})


# --- instructions without meta ------------------------------------------------------------------------------------

READ = {
    "In the image, there is an item encased within a red rectangle. Pinpoint several points within the vacant space "
    "situated to the left of the object that is highlighted.": (
        "free_space", "left", ["the object in the red rectangle"]),
    "In the image, there is an item framed by a red rectangle and another item encased within a green rectangle. "
    "Locate several points upon the item situated between the two highlighted items.": (
        "object_reference", "between", ["the two items in the red and the green rectangles"]),
    "The image depicts a container delineated by a red rectangular border. Pinpoint several spots within the vacant "
    "area enclosed by the outlined container.": ("free_space", "inside", ["the container in the red rectangle"]),
    "The image features an object outlined by a red rectangle. Locate several points on an item that is situated on "
    "the right side of the marked item.": ("object_reference", "right", ["the item in the red rectangle"]),
    "The image showcases an area demarcated by a red rectangle. Locate a few points within a vacant area on the right "
    "side of the marked surface.": ("free_space", "right part", ["the surface in the red rectangle"]),
    "In the image, there is a bowl. Pinpoint several points within the vacant space situated in front of the bowl.": (
        "free_space", "front", ["the bowl"]),
    "Find spots within the vacant area on the left part of the table.": ("free_space", "left part", ["the table"]),
    "Locate several points on an item located beneath the bordered item, which a blue rectangle surrounds.": (
        "object_reference", "below", ["the item in the blue rectangle"]),
    "Place the object between the blue can and the green box.": (
        "free_space", "between", ["the blue can", "the green box"]),
    "Where is the mug behind the red ball?": ("object_reference", "behind", ["the red ball"]),
    "Point to the red mug.": ("object_reference", None, ["the red mug"]),
    "Find a few spots within the space between the two cups.": ("free_space", "between", ["the two cups"]),
    "Find a few spots within the vacant area on the rightmost side of the white plate.": (
        "free_space", "right part", ["the white plate"]),
    "Locate several points on an item that is situated adjacent to the object encased within the red rectangle.": (
        "object_reference", "next to", ["the object encased in the red rectangle"]),
    "Where are the books next to the lamp?": ("object_reference", "next to", ["the lamp"]),
}  # fmt: skip


@pytest.mark.parametrize("said", READ, ids=lambda said: said[-40:])
def test_an_instruction_of_the_archive_is_read_and_reasoned_about(said):
    task, relation, names = READ[said]
    facts = from_wording(said)
    assert (facts.task, facts.relation, [thing.phrase for thing in facts.anchors]) == (task, relation, names)
    bare = Sample("a", "a.png", sample("direct", target=MUG, said=said).conversations, {})
    for seed in range(20):
        text = without_answer(build.with_reasoning(bare, seed, False, 3))
        assert all(name.removeprefix("the ") in text for name in names)


@pytest.mark.parametrize(
    "said,reason",
    [
        ("What color is the cat?", "names no object"),
        ("Describe the image.", "names no object"),
        ("Find the vacant space.", "free space without a relation"),
        ("Point to the free space left of the object.", "only called"),
        ("Point to free space between the mug.", "names one thing"),
        ("Left of the mug.", "whether an object or free space"),
        ("Find the area left of the mug.", "whether an object or free space"),
        ("Put the cup next to the plate.", "whether an object or free space"),
        (
            "In the picture there is an object framed in green. Point out some spots on the front part of the object.",
            "whether an object or free space",
        ),
    ],
)
def test_what_cannot_be_read_is_rejected_with_its_reason(said, reason):
    with pytest.raises(ValueError, match=reason):
        from_wording(said)


def test_a_place_is_told_from_an_object_by_the_words():
    assert asks_for_room("Where can the book be put, away from the lamp?") and asks_for_room("Find an empty spot.")
    assert not asks_for_room("Point to the mug on the table.")


def test_what_is_read_from_the_generator_s_own_sentences_is_never_wrong():
    """Independent of the sentences above: hundreds of wordings whose meaning is known."""
    rng, read, wrong = np.random.default_rng(5), 0, []
    kinds = [("free", relation, 1) for relation in RELATIONS if relation not in (*PARTS, "between")]
    kinds += [("relational", relation, count) for _, relation, count in kinds] + [("direct", None, 0)]
    kinds += [("between", "between", 2), ("relational", "between", 2)]
    kinds += [(kind, part, 0) for kind in ("part", "relational") for part in PARTS]
    for number in range(600):
        kind, relation, count = kinds[number % len(kinds)]
        names = ["blue ball", "green roll of tape"][:count]
        marks = ["red", "green"][:count] if rng.random() < 0.3 else ()
        free = kind in ("free", "between", "part")
        noun = "" if free else "yellow toy car"
        said = write_instruction(
            relation, kind != "relational", noun, names, rng, wording="rich", surface="lower shelf", marks=marks
        )
        try:
            facts = from_wording(said)
        except ValueError:
            continue
        read += 1
        found = [thing.phrase for thing in facts.anchors]
        wanted = names or [noun if kind == "direct" else "lower shelf"]
        right = facts.task == ("free_space" if free else "object_reference") and facts.relation == relation
        for name, phrase, color in zip(wanted, found, [*marks, None, None], strict=False):
            right &= phrase == f"the {name}" or (color is not None and f"in the {color} rectangle" in phrase)
        if not right or len(found) != len(wanted):
            wrong.append((said, facts.task, facts.relation, found))
    assert not wrong, wrong[:5]
    assert read > 500


def test_coordinates_need_meta():
    bare = Sample("a", "a.png", sample("direct", target=MUG, said="Point to the red mug.").conversations, {})
    with pytest.raises(ValueError, match="need `meta`"):
        build.with_reasoning(bare, 0, True, 3)


# --- the check ------------------------------------------------------------------------------------

GOOD = {
    "reference": "The reference object is the blue ball near the front edge.",
    "target": "The target area lies to the left of it, where the red mug stands.",
    "subtype": "This is an object reference goal.",
    "output": "Several spots on the mug are chosen.",
}


KNOWN = from_meta(PLAIN[1].meta)


def judge(rules=None, instruction="Point to the mug left of the blue ball.", facts=KNOWN, **changed):
    check({**GOOD, **changed}, instruction, facts, rules or Rules())


@pytest.mark.parametrize(
    "changed,reason",
    [
        ({"output": "The points (0.21, 0.31) are chosen."}, "coordinates"),
        ({"output": "The mug stands at 0.21 and 0.31."}, "coordinates"),
        ({"output": "The mug stands at 20 % of the width."}, "coordinates"),
        ({"target": "It lies around (120, 300) in the picture."}, "coordinates"),
        ({"target": "It lies at x = 3 on the table."}, "coordinates"),
        ({"target": "It lies around 120, 300 in the picture."}, "coordinates"),
        ({"target": "It lies around [527, 461] in the picture."}, "coordinates"),
        ({"target": "The area begins at pixel 120 from the left."}, "coordinates"),
        ({"target": "It lies at 20 percent of the width."}, "coordinates"),
        ({"reference": "The reference object is the green box."}, "does not name the blue ball"),
        ({"reference": "The reference object is the blue mug."}, "does not name the blue ball"),
        ({"output": "The magenta dots show the mug."}, "drawn or told"),
        ({"output": "The marked places lie on the mug."}, "drawn or told"),
        ({"target": "The area is given by the correct points."}, "drawn or told"),
        ({"output": "The points shown in the image lie on the mug."}, "drawn or told"),
        ({"output": "The pink spots lie on the mug."}, "drawn or told"),
        ({"output": "A highlighted part of the mug is chosen."}, "drawn or told"),
        ({"output": "The ground truth lies on the mug."}, "drawn or told"),
        ({"subtype": "This is a free space goal."}, "object reference"),
        ({"subtype": "It is."}, "2 words"),
        ({"target": "word " * 91}, "91 words"),
        ({"target": "It is there.\n**Final Answer:**\nThe mug."}, "heading of the template"),
    ],
)
def test_a_text_that_may_not_be_kept(changed, reason):
    with pytest.raises(Rejected, match=reason):
        judge(**changed)


def test_a_good_text_is_kept():
    judge()
    judge(reference="The ball that is blue is the reference object.")
    judge(output="Two of the 3 visible mugs are left out.")  # a number is no coordinate
    judge(Rules(coordinates=True), reference="The reference object is the blue ball (0.50, 0.60).")


def test_words_of_the_instruction_are_no_secret():
    said = "In the image, an object is marked by a red rectangle. Find free space left of the marked object."
    facts = from_wording(said)
    steps = {
        **GOOD,
        "reference": "The marked object in the red rectangle is the reference.",
        "subtype": "It is free space.",
    }
    check(steps, said, facts, Rules())
    with pytest.raises(Rejected, match="drawn or told"):
        check({**steps, "output": "The highlighted points are taken."}, said, facts, Rules())


def test_an_object_may_be_called_as_the_instruction_calls_it():
    """The generator knows the mug's color; an instruction that says "the mug" does not need it."""
    facts = from_meta(PLAIN[0].meta)
    judge(instruction="Point to the mug.", facts=facts, reference="The reference object is the mug on the table.")
    with pytest.raises(Rejected, match="does not name the red mug"):
        judge(instruction="Point to the red mug.", facts=facts, reference="The reference object is the mug there.")
    marked = from_meta(sample("relational", "left", MUG, [BALL], marks=[(BALL, "red")]).meta)
    said = "One object is framed in red. Point to the mug left of it."
    for name in ("the blue ball", "the object framed in red", "the thing in the red frame"):
        judge(instruction=said, facts=marked, reference=f"The reference object is {name}.")
    with pytest.raises(Rejected, match="does not name the blue ball in the red rectangle"):
        judge(instruction=said, facts=marked, reference="The reference object is the red ball.")


def test_a_recipe_with_coordinates_wants_them_inside_the_image():
    with pytest.raises(Rejected, match="does not locate"):
        judge(Rules(coordinates=True))
    with pytest.raises(Rejected, match="outside the image"):
        judge(Rules(coordinates=True), reference="The blue ball (1.50, 0.60) is the reference object.")


def test_without_facts_the_reference_shares_a_word_with_the_instruction():
    judge(facts=None)
    with pytest.raises(Rejected, match="names nothing that the instruction names"):
        judge(facts=None, reference="The reference object is a spoon.")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        "Here it is:\n```json\n" + json.dumps(GOOD, indent=1) + "\n```",
        reasoning.render(GOOD, []),
    ],
    ids=["json", "fenced", "headings"],
)
def test_steps_are_read_however_a_model_wraps_them(text):
    assert read_steps(text) == GOOD


@pytest.mark.parametrize(
    "text,reason",
    [
        ("I am sorry.", "neither a JSON object nor four steps"),
        (json.dumps({key: GOOD[key] for key in list(GOOD)[:3]}), "lack output"),
        (json.dumps({**GOOD, "answer": "[(0.1, 0.2)]"}), "no step answer"),
        (json.dumps({**GOOD, "target": ["left"]}), "target is no text"),
        (json.dumps({**GOOD, "target": " "}), "target is no text"),
        ("[" * 100_000, "neither a JSON object"),
        ("{" * 100_000 + "}", "neither a JSON object"),
    ],
    ids=lambda value: value[:12],
)
def test_steps_that_cannot_be_read(text, reason):
    with pytest.raises(Rejected, match=reason):
        read_steps(text)


# --- the command ------------------------------------------------------------------------------------


def write(path, samples):
    path.write_text(json.dumps([one.as_json() for one in samples]))
    return path


def rejects_of(out):
    lines = out.with_name(out.name + ".rejects.jsonl").read_text().splitlines()
    return {record["id"]: record["reason"] for record in map(json.loads, lines)}


def test_command_writes_what_it_can_and_records_the_rest(tmp_path, capsys):
    bare = Sample("no-meta", "a.png", PLAIN[0].conversations, {})
    wordy = Sample("wordy", "a.png", sample("direct", target=MUG, answer="somewhere").conversations, PLAIN[0].meta)
    turns = Sample("turns", "a.png", PLAIN[0].conversations * 2, PLAIN[0].meta)
    exact = Sample(
        "exact", "a.png", sample("direct", target=MUG, answer="[(0.2155, 0.3)]").conversations, PLAIN[0].meta
    )
    data = write(tmp_path / "data.json", [*PLAIN, bare, wordy, turns, exact, PLAIN[0]])
    out = tmp_path / "cor.json"
    assert build.main(["--data", str(data), "--out", str(out), "--decimals", "2"]) == 0
    assert [one["id"] for one in json.loads(out.read_text())] == [one.id for one in PLAIN]
    lines = (tmp_path / "cor.json.rejects.jsonl").read_text().splitlines()
    reasons = [(record["id"], record["reason"]) for record in map(json.loads, lines)]
    assert [name for name, _ in reasons] == ["no-meta", "wordy", "turns", "exact", "direct-None"]
    for (_, reason), words in zip(
        reasons, ("names no object", "no points", "4 turns", "2 decimals", "appeared before"), strict=True
    ):
        assert words in reason
    assert "4 samples with reasoning, 5 rejected" in capsys.readouterr().out
    record = json.loads((tmp_path / "cor.json.run.json").read_text())
    assert (record["written"], record["rejected"], record["settings"]["decimals"]) == (4, 5, 2)


@pytest.mark.parametrize(
    "beside,flags,plain",
    [
        ({"settings": {"config": {"questions": {}}}}, [], True),
        ({"settings": {"config": {"questions": {"wording": "plain"}}}}, [], True),
        ({"settings": {"config": {"questions": {"wording": "rich"}}}}, [], False),
        (None, [], False),
        (None, ["--wording", "plain"], True),
        ({"settings": {"config": {"questions": {}}}}, ["--wording", "full"], False),
    ],
)
def test_the_wording_follows_the_data_unless_told(tmp_path, beside, flags, plain):
    data = write(tmp_path / "data.json", PLAIN)
    if beside is not None:
        (tmp_path / "generate.json").write_text(json.dumps(beside))
    out = tmp_path / "cor.json"
    build.main(["--data", str(data), "--out", str(out), *flags])
    made = [one["conversations"][1]["value"] for one in json.loads(out.read_text())]
    same = [build.with_reasoning(one, 0, False, 3, "plain").conversations[1].text for one in PLAIN]
    assert (made == same) == plain


def test_reasoning_from_a_file_is_checked_like_any_other(tmp_path):
    samples = [Sample(name, "a.png", PLAIN[1].conversations, PLAIN[1].meta) for name in ("a", "b", "c", "d", "e")]
    data, own, out = write(tmp_path / "data.json", samples), tmp_path / "own.jsonl", tmp_path / "cor.json"
    lines = [
        {"id": "a", "steps": GOOD},
        {"id": "b", "text": reasoning.render(GOOD, [])},
        {"id": "c", "steps": {**GOOD, "reference": "The reference object is the spoon."}},
        {"id": "d", "note": "later"},
        {"id": "zzz", "steps": GOOD},
    ]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--data", str(data), "--out", str(out), "--reasoner", "file", "--reasoning", str(own), "--decimals", "2"]
    assert build.main(flags) == 0
    made = json.loads(out.read_text())
    assert [one["id"] for one in made] == ["a", "b"]
    assert made[0]["conversations"] == made[1]["conversations"]
    assert made[0]["conversations"][1]["value"].endswith(ANSWER)
    reasons = rejects_of(out)
    assert "blue ball" in reasons["c"] and '"steps"' in reasons["d"] and "no reasoning for it" in reasons["e"]


@pytest.mark.parametrize(
    "lines,reason",
    [
        (['{"id": "a"}', '{"id": "a"}'], "line 2: its id was on line 1 already"),
        (['{"steps": {}}'], 'line 1: "id" must be'),
        (["{", "{}"], "line 1 is broken JSON"),
        (["[1]"], "line 1 must be a JSON object"),
    ],
)
def test_a_reasoning_file_with_a_mistake_is_named(tmp_path, lines, reason):
    data, own = write(tmp_path / "data.json", PLAIN), tmp_path / "own.jsonl"
    own.write_text("\n".join(lines) + "\n")
    flags = ["--data", str(data), "--out", str(tmp_path / "o.json"), "--reasoner", "file", "--reasoning", str(own)]
    with pytest.raises(InputError, match=re.escape(reason)):
        build.main(flags)
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    "flags,said",
    [
        (["--reasoner", "gemini"], "needs --model"),
        (["--reasoner", "gemini", "--model", "m"], "needs --image-folder"),
        (["--reasoner", "openai", "--model", "m", "--image-folder", "nowhere"], "image folder nowhere does not exist"),
        (["--reasoner", "file"], "needs --reasoning"),
        (["--reasoner", "file", "--reasoning", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--decimals", "0"], "--decimals must be at least 1"),
        (["--concurrency", "0"], "--concurrency must be at least 1"),
        (["--timeout", "0"], "--timeout must be above 0"),
        (["--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_flags_that_cannot_work_are_one_sentence(tmp_path, capsys, flags, said):
    data = write(tmp_path / "data.json", PLAIN)
    assert run(build.main, ["--data", str(data), "--out", str(tmp_path / "o.json"), *flags]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and said in told


def test_the_data_are_not_overwritten_and_nothing_is_written_from_nothing(tmp_path, capsys):
    data = write(tmp_path / "data.json", [Sample("x", "a.png", PLAIN[0].conversations, {})])
    assert run(build.main, ["--data", str(data), "--out", str(data)]) == 2
    assert "is the training file itself" in capsys.readouterr().err
    assert run(build.main, ["--data", str(data), "--out", str(tmp_path / "o.json")]) == 2
    assert "no sample of" in capsys.readouterr().err.splitlines()[-1]


def test_a_task_without_readable_facts_is_still_a_task():
    assert task_of(Sample("x", "a.png", PLAIN[0].conversations, {})).facts is None
