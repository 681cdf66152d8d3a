"""Samples as our generator writes them, by hand: objects, relations, surfaces and marks in `meta`."""

from dataclasses import replace

from trace_vlm.core.prompts import question_text
from trace_vlm.core.records import Sample, Turn

PARTS = ("left part", "right part", "front part", "back part")
NEAR = ("left", "right", "front", "behind", "above", "below", "next to", "on", "inside")
ANSWER = "[(0.21, 0.31), (0.19, 0.28)]"


def generated_object(name, x, y, instance=2):
    color, category = name.split()
    return {"instance": instance, "name": name, "color": color, "category": category, "center": [x, y]}


MUG = generated_object("red mug", 0.2, 0.3)
BALL = generated_object("blue ball", 0.5, 0.6, 3)
BOX = generated_object("green box", 0.8, 0.4, 4)


def generated(kind, relation=None, target=None, references=(), answer=ANSWER, surface="table", marks=(), asked="Point"):
    task = "object_reference" if kind in ("direct", "relational") else "free_space"
    marks = [{"instance": item["instance"], "color": color} for item, color in marks]
    meta = {"task": task, "kind": kind, "relation": relation, "target": target, "references": list(references)}
    meta |= {"surface": surface, "marks": marks}
    turns = (Turn("human", "<image>\n" + question_text(asked, reasoning=False)), Turn("gpt", answer))
    return Sample(f"{kind}-{relation}", "images/a.png", turns, meta)


def bare(instruction, identifier="a"):
    """A sample without `meta`."""
    return Sample(identifier, "a.png", generated("direct", asked=instruction).conversations, {})


def chain(kind, target=None):
    """Two hops: from the blue ball to the green box, and on to the target or to free space."""
    sample, links = generated(kind, "left", target, [BALL]), [("behind", BOX), ("left", target or dict.fromkeys(BOX))]
    hops = [{"relation": relation, "noun": item["category"], **item} for relation, item in links]
    return replace(sample, meta=sample.meta | {"hops": hops, "task": "object_reference" if target else "free_space"})


PLAIN = [
    generated("direct", target=MUG), generated("relational", "left", MUG, [BALL]),
    generated("free", "behind", None, [BALL]), generated("between", "between", None, [MUG, BOX])]  # fmt: skip
BETWEEN_MARKED = generated("between", "between", None, [BALL, BOX], marks=[(BALL, "red"), (BOX, "green")])
FULL = [
    *PLAIN, *(generated("relational", relation, MUG, [BALL]) for relation in NEAR),
    *(generated("free", relation, None, [BALL]) for relation in NEAR),
    *(generated("part", part, surface="lower shelf") for part in PARTS),
    *(generated("relational", part, MUG, surface="counter") for part in PARTS),
    generated("relational", "on", MUG, surface="upper shelf"), generated("relational", "between", MUG, [BALL, BOX]),
    generated("free", "left", None, [BALL], marks=[(BALL, "red")]), BETWEEN_MARKED]  # fmt: skip


def absent(kind, reason, looked_for, instead, relation=None, references=(), task="object_reference"):
    """A question about what is not there, as the generator writes it."""
    where = f" {relation} of the {references[0]['name']}" if references else ""
    about = {
        "reason": reason,
        "looked_for": looked_for,
        "answer": f"there is no {looked_for}{where}.",
        "instead": instead,
    }
    sample = generated(
        "direct", relation, None, references, f"None: {about['answer']}", asked=f"Find the {looked_for}."
    )
    return replace(sample, id=reason, meta=sample.meta | {"kind": kind, "task": task, "absent": about, "points": []})


ABSENT = [
    absent("absent object", "color", "blue mug", [MUG | {"lies": None}]),
    absent("absent object", "category", "red cone", [MUG | {"lies": None}], task="free_space"),
    absent("absent relation", "relation", "mug", [MUG | {"lies": "right"}], "left", [BALL]),
    absent("absent free", "hidden", "free space", [], "left", [BALL], "free_space"),
]
# Kept reasoning of PLAIN[1].
GOOD_STEPS = {
    "reference": "The reference object is the blue ball near the front edge.",
    "target": "The target area lies to the left of it, where the red mug stands.",
    "subtype": "This is an object reference goal.", "output": "Several spots on the mug are chosen.",
}  # fmt: skip
