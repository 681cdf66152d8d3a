"""The wording of instructions: frozen where a trained model depends on it, varied where a model is to be trained."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from trace_vlm.core.prompts import POINTS_SUFFIX, bare_instruction, question_text
from trace_vlm.data.scenes.questions import instructions, wording
from trace_vlm.data.scenes.questions.instructions import word
from trace_vlm.data.scenes.questions.rectangles import MARK_COLORS, draw_marks
from trace_vlm.data.scenes.questions.wording import ON_SURFACE

TOKENIZER = Path(__file__).parents[2] / "trace" / "assets" / "nano-tokenizer" / "tokenizer.json"
SIDES = ("left", "right", "front", "behind", "above", "below", "next to", "on", "inside", "between")
PARTS = ("left part", "right part", "front part", "back part")
NAMES = ("blue mug", "pot", "crate")  # target, first and second reference


def named(relation: str | None) -> tuple[str, ...]:
    """The references that a relation has."""
    return NAMES[1 : 1 + {None: 0, "between": 2}.get(relation, 0 if relation in (ON_SURFACE, *PARTS) else 1)]


QUESTIONS = [
    (kind, relation, marks)
    for kind in ("direct", "relational", "free", "part")
    for relation in (None, *SIDES, ON_SURFACE, *PARTS)
    for marks in ((), ("red",), ("red", "green"))
    if (kind == "direct") == (relation is None) and len(marks) <= len(named(relation))
    if kind == "relational" or (kind == "part") == (relation in PARTS)
    if kind != "free" or relation != ON_SURFACE
]


def asked(kind: str, relation: str | None, marks: tuple[str | None, ...] = (), draws: int = 700) -> list[str]:
    rng, references = np.random.default_rng(0), named(relation)
    relation = "on" if relation == ON_SURFACE else relation
    return [word(kind, relation, NAMES[0], references, rng, "rich", "worktop", marks) for _ in range(draws)]


@pytest.mark.parametrize("kind, relation, marks", QUESTIONS)
def test_twenty_phrasings_without_the_names(kind: str, relation: str | None, marks: tuple[str, ...]) -> None:
    texts = asked(kind, relation, marks)
    without = {" ".join(re.sub("|".join(NAMES), "", text).split()) for text in texts}
    assert len(without) >= 20
    # Not the same sentence with another word for the relation only: the words around it vary as much.
    frames = {re.sub(r"\W+", " ", _without_place(text, relation)) for text in texts} if not marks else without
    assert len(frames) >= 20
    for text in texts:
        assert text.count("{") == text.count("}") == 0 and text[-1] in ".?" and "  " not in text
        assert (NAMES[0] in text) == (kind not in ("free", "part"))
        for name in named(relation):
            assert (name in text) or marks
        assert ("worktop" in text) == (relation in (ON_SURFACE, *PARTS))
        for color in MARK_COLORS:
            assert (color in text) == (color in marks), text


def _without_place(text: str, relation: str | None) -> str:
    for place in wording.PLACES[relation] if relation else ():
        text = text.replace(place.format(first="the pot", second="the crate", surface="worktop"), "")
    return text


@pytest.mark.parametrize("relation", [*SIDES, *PARTS])
def test_a_relation_is_never_worded_like_another(relation: str) -> None:
    own = {place.split("{first}")[0] for place in wording.PLACES[relation]}
    for other in {*SIDES, *PARTS} - {relation}:
        assert not own & {place.split("{first}")[0] for place in wording.PLACES[other]}


def test_one_marked_reference_of_two() -> None:
    for text in asked("free", "between", (None, "green"), 100):
        assert "pot" in text and "green" in text and "red" not in text


def test_a_rectangle_with_two_objects_in_it_does_not_stand_for_a_name() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        for marks, crowded in ((("red",), (True,)), (("red", "green"), (False, True))):
            relation = "left" if len(marks) == 1 else "between"
            text = word("free", relation, "", NAMES[1 : 1 + len(marks)], rng, "rich", None, marks, crowded)
            assert NAMES[len(marks)] in text and all(color in text for color in marks), text


def test_the_format_sentence_follows_every_instruction_once() -> None:
    for text in asked("free", "left", ("red",), 50):
        whole = question_text(text, reasoning=False)
        assert whole.endswith(f" {POINTS_SUFFIX}") and whole.count(POINTS_SUFFIX) == 1
        assert bare_instruction(whole) == text


# --- the plain wording is part of the nano model --------------------------------------------------------------------


def test_the_plain_wording_is_frozen() -> None:
    rng = np.random.default_rng(11)
    relations = {"direct": (None,), "between": ("between",)}
    texts = []
    for _ in range(40):
        for kind in ("direct", "relational", "free", "between"):
            for relation in relations.get(kind, ("left", "right", "front", "behind", "next to")):
                names = [instructions.PLAIN_COLORS[rng.integers(6)] + " box" for _ in range(3)]
                texts.append(word(kind, relation, names[0], names[1:], rng))
    texts.append(str(rng.integers(1 << 30)))  # what the wording draws from the stream, the rest of a scene depends on
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == PLAIN_SHA256
    known = {token.strip("▁") for token in json.loads(TOKENIZER.read_text())["model"]["vocab"]}
    assert len(instructions.vocabulary()) == 38 and set(instructions.vocabulary()) <= known


PLAIN_SHA256 = "292b4eded2b72f1e82ceddba4d16ae51bb25863f76a340b6d6965e8dea9fdbde"


def test_the_plain_wording_knows_no_marks() -> None:
    with pytest.raises(ValueError, match="marks"):
        word("free", "left", "", ["red box"], np.random.default_rng(0), marks=("red",))
    with pytest.raises(ValueError, match="'terse' is unknown"):
        word("free", "left", "", ["red box"], np.random.default_rng(0), wording="terse")


# --- rectangles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (480, 640), (640, 360)])
def test_a_mark_frames_its_box_and_hides_nothing_of_it(size: tuple[int, int]) -> None:
    height, width = size
    image = np.full((height, width, 3), 90, np.uint8)
    box = (0.25, 0.5, 0.5, 0.75)
    marked = draw_marks(image, [box], ["red"])
    assert (image == 90).all(), "the picture itself was changed"
    red = (marked == MARK_COLORS["red"]).all(-1)
    rows, columns = np.nonzero(red)
    x0, y0, x1, y1 = np.array(box) * [width, height, width, height]
    assert not red[int(y0) : int(y1), int(x0) : int(x1)].any()
    assert columns.min() < x0 and columns.max() >= x1 and rows.min() < y0 and rows.max() >= y1
    assert columns.min() > x0 - 0.05 * width and rows.max() < y1 + 0.05 * height
    assert (marked[~red] == 90).all()


def test_marks_at_the_border_stay_visible() -> None:
    marked = draw_marks(np.zeros((96, 128, 3), np.uint8), [(0, 0, 1, 1), (0.5, 0.5, 0.6, 0.7)], ["red", "green"])
    assert (marked[0] == MARK_COLORS["red"]).all() and (marked[:, -1] == MARK_COLORS["red"]).all()
    assert (marked == MARK_COLORS["green"]).all(-1).sum() > 20
