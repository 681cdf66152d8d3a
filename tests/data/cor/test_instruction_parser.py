"""What is known of a sample, from its `meta` or from the words of its instruction: read rightly, or refused."""

import numpy as np
import pytest
from generated_samples import NEAR, PARTS, PLAIN, bare

from trace_vlm.data.cor.checks import ReasoningTask
from trace_vlm.data.cor.instruction_parser import asks_for_free_space, facts_from_meta, facts_from_wording
from trace_vlm.data.cor.rules import with_reasoning
from trace_vlm.data.scenes.wording import write_instruction


@pytest.mark.parametrize("change,named", [
    ({"task": "cooking"}, "cooking"), ({"relation": "nearby"}, "nearby"), ({"references": []}, "relational"),
    ({"references": [{"name": "ball"}]}, "center"), ({"target": None}, "relational")])  # fmt: skip
def test_broken_meta_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        facts_from_meta({**PLAIN[1].meta, **change})


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


@pytest.mark.parametrize("instruction", READ, ids=lambda text: text[-40:])
def test_an_instruction_of_the_archive_is_read_and_reasoned_about(instruction):
    facts = facts_from_wording(instruction)
    assert (facts.task, facts.relation, [anchor.phrase for anchor in facts.anchors]) == READ[instruction]
    for seed in range(20):
        text = with_reasoning(bare(instruction), seed, False, 3).conversations[1].text.split("**Final Answer:**")[0]
        assert all(name.removeprefix("the ") in text for name in READ[instruction][2])


UNCLEAR = {
    **dict.fromkeys(["What color is the cat?", "Describe the image."], "no object, relation or free space"),
    **dict.fromkeys([
        "Left of the mug.", "Find the area left of the mug.", "Put the cup next to the plate.",
        "In the picture there is an object framed in green. Point out some spots on the front part of the object.",
    ], "whether an object or free space"), "Find the vacant space.": "without a relation",
    "Point to the free space left of the object.": "'the object'", "Point to free space between the mug.": "between",
}  # fmt: skip


@pytest.mark.parametrize("instruction", UNCLEAR)
def test_an_instruction_that_does_not_say_enough_is_refused(instruction):
    with pytest.raises(ValueError, match=UNCLEAR[instruction]):
        facts_from_wording(instruction)
    assert ReasoningTask.of(bare(instruction)).facts is None


def test_the_item_is_told_from_the_reference_and_free_space_from_an_object():
    facts = facts_from_wording("Locate several points on an item left of the item outlined by a red rectangle.")
    assert facts.target.phrase == "the item that is asked for" and facts.references[0].phrase != facts.target.phrase
    texts = ("Where can the book be put, away from the lamp?", "Find an empty spot.", "Point to the mug on the table.")
    assert list(map(asks_for_free_space, texts)) == [True, True, False]


def test_what_is_read_from_the_generator_s_own_sentences_is_never_wrong():
    """Independent of the sentences above: hundreds of wordings whose meaning is known."""
    rng, read = np.random.default_rng(5), 0
    kinds = [(kind, relation, 1) for kind in ("free", "relational") for relation in NEAR]
    kinds += [("direct", None, 0), ("between", "between", 2), ("relational", "between", 2)]
    kinds += [(kind, part, 0) for kind in ("part", "relational") for part in PARTS]
    for kind, relation, count in kinds * 20:
        names, free = ["blue ball", "green roll of tape"][:count], kind in ("free", "between", "part")
        marks, noun = ["red", "green"][:count] if rng.random() < 0.3 else (), "" if free else "yellow toy car"
        text = write_instruction(relation, free, noun, names, rng, "rich", "lower shelf", marks)
        try:
            facts = facts_from_wording(text)
        except ValueError:
            continue
        read += 1
        assert (facts.task, facts.relation) == ("free_space" if free else "object_reference", relation), text
        wanted = names or [noun if kind == "direct" else "lower shelf"]
        for name, anchor, color in zip(wanted, facts.anchors, [*marks, None, None][: len(wanted)], strict=True):
            phrase = anchor.phrase
            assert phrase == f"the {name}" or (color is not None and f"in the {color} rectangle" in phrase), text
    assert read > 500
