"""Which reasoning is kept: lengths, coordinates, leaked words, the reference object, the subtype; and how it is read."""

import json

import pytest
from generated_samples import BALL, GOOD_STEPS, MUG, PLAIN, generated

from trace_vlm.core import reasoning
from trace_vlm.data.cor.checks import ReasoningTask, Rejected, check, read_steps
from trace_vlm.data.cor.instruction_parser import facts_from_meta, facts_from_wording

FACTS = facts_from_meta(PLAIN[1].meta)


def judge(coordinates=False, instruction="Point to the mug left of the blue ball.", facts=FACTS, **changed):
    check({**GOOD_STEPS, **changed}, ReasoningTask(PLAIN[1], instruction, (), facts), coordinates)


REJECTED = {
    "reference": ("The reference object is the green box.", "The reference object is the blue mug."),
    "target": (
        "It lies around (120, 300) in the picture.", "It lies at x = 3 on the table.", "It lies at 20 percent of it.",
        "It lies around 120, 300 in the picture.", "It lies around [527, 461] in the picture.", "word " * 91,
        "The area begins at pixel 120 from the left.", "The area is given by the correct points."),
    "subtype": ("This is a free space goal.", "It is."),
    "output": (
        "The points (0.21, 0.31) are chosen.", "The mug stands at 0.21 and 0.31.", "The magenta dots show the mug.",
        "The mug stands at 20 % of the width.", "The marked places lie on the mug.", "The pink spots lie on the mug.",
        "The points shown in the image lie on the mug.", "A highlighted part of the mug is chosen.",
        "The ground truth lies on the mug."),
}  # fmt: skip


@pytest.mark.parametrize("named,changed", [
    *((step, {step: text}) for step, texts in REJECTED.items() for text in texts),
    ("template", {"target": "It is there.\n**Final Answer:**\nThe mug."}), ("reference", {"coordinates": True}),
    ("reference", {"coordinates": True, "reference": "The blue ball (1.50, 0.60) is the reference object."}),
    ("reference", {"facts": None, "reference": "The reference object is a spoon."})])  # fmt: skip
def test_a_text_that_is_not_kept(named, changed):
    with pytest.raises(Rejected, match=named):
        judge(**changed)


def test_a_good_text_is_kept():
    judge()
    judge(facts=None)
    judge(reference="The ball that is blue is the reference object.")
    judge(output="Two of the 3 visible mugs are left out.")  # a number is no coordinate
    judge(coordinates=True, reference="The reference object is the blue ball (0.50, 0.60).")


def test_words_of_the_instruction_are_allowed():
    instruction = "In the image, an object is marked by a red rectangle. Find free space left of the marked object."
    given = {"instruction": instruction, "facts": facts_from_wording(instruction), "subtype": "It is free space."}
    reference = "The marked object in the red rectangle is the reference."
    judge(**given, reference=reference)
    with pytest.raises(Rejected, match="highlighted"):
        judge(**given, reference=reference, output="The highlighted points are taken.")


def test_an_object_may_be_called_as_the_instruction_calls_it():
    """The generator knows the mug's color; an instruction that says "the mug" does not need it."""
    facts = facts_from_meta(PLAIN[0].meta)
    judge(instruction="Point to the mug.", facts=facts, reference="The reference object is the mug on the table.")
    with pytest.raises(Rejected, match="the red mug"):
        judge(instruction="Point to the red mug.", facts=facts, reference="The reference object is the mug there.")
    marked = facts_from_meta(generated("relational", "left", MUG, [BALL], marks=[(BALL, "red")]).meta)
    instruction = "One object is framed in red. Point to the mug left of it."
    for name in ("the blue ball", "the object framed in red", "the thing in the red frame"):
        judge(instruction=instruction, facts=marked, reference=f"The reference object is {name}.")
    with pytest.raises(Rejected, match="the blue ball in the red rectangle"):
        judge(instruction=instruction, facts=marked, reference="The reference object is the red ball.")


def test_steps_are_read_however_a_model_wraps_them():
    encoded = json.dumps(GOOD_STEPS, indent=1)
    for text in (encoded, f"Here it is:\n```json\n{encoded}\n```", reasoning.render(GOOD_STEPS, [])):
        assert read_steps(text) == GOOD_STEPS


@pytest.mark.parametrize("text,named", [
    ("I am sorry.", "JSON"), ("[" * 100_000, "JSON"), ("{" * 100_000 + "}", "JSON"),
    (json.dumps({key: GOOD_STEPS[key] for key in list(GOOD_STEPS)[:3]}), "output"),
    (json.dumps({**GOOD_STEPS, "answer": "[(0.1, 0.2)]"}), "answer"),
    (json.dumps({**GOOD_STEPS, "target": ["left"]}), "target"), (json.dumps({**GOOD_STEPS, "target": " "}), "target")],
    ids=lambda value: value[:12])  # fmt: skip
def test_steps_that_cannot_be_read(text, named):
    with pytest.raises(Rejected, match=named):
        read_steps(text)
