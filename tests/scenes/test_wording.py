"""The wording of instructions: frozen where a trained model depends on it, varied where a model is to be trained."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from nano_tokenizer import vocabulary

from trace_vlm.data.scenes.scene_files import draw_marks
from trace_vlm.data.scenes.wording import MARK_COLORS, ON_SURFACE, PARTS, RELATIONS, RICH, write_instruction

TOKENIZER = Path(__file__).parents[2] / "trace" / "assets" / "nano-tokenizer" / "tokenizer.json"
SHA256 = "292b4eded2b72f1e82ceddba4d16ae51bb25863f76a340b6d6965e8dea9fdbde"  # of the plain wording's texts
NAMES = ("blue mug", "pot", "crate")  # target, first and second reference


def references_of(relation):
    count = {None: 0, "between": 2}.get(relation, 0 if relation in (ON_SURFACE, *PARTS) else 1)
    return NAMES[1 : 1 + count]


def instructions(relation, free, marks=(), crowded=(), count=700):
    given = "on" if relation == ON_SURFACE else relation, free, NAMES[0], references_of(relation)
    given = *given, np.random.default_rng(0), "rich", "worktop", marks, crowded
    return [write_instruction(*given) for _ in range(count)]


@pytest.mark.parametrize("relation, free, marks", [
    (relation, free, marks) for relation in (None, *RELATIONS, ON_SURFACE) for free in (False, True)
    for marks in ((), ("red",), ("red", "green"))
    if len(marks) <= len(references_of(relation)) and not (free and relation in (None, ON_SURFACE))])  # fmt: skip
def test_rich_wording_has_twenty_phrasings(relation, free, marks):
    texts = instructions(relation, free, marks)
    assert len({" ".join(re.sub("|".join(NAMES), "", text).split()) for text in texts}) >= 20
    if not marks:  # not the same sentence with other words for the relation only
        places = RICH.places[relation] if relation else ()
        words = [place.format(first="the pot", second="the crate", surface="worktop") for place in places]
        assert len({re.sub("|".join(map(re.escape, words)) or "^$", "", text) for text in texts}) >= 20
    for text in texts:
        assert not set("{}") & set(text) and text[-1] in ".?" and "  " not in text
        assert (NAMES[0] in text) == (not free)
        assert marks or all(name in text for name in references_of(relation))
        assert ("worktop" in text) == (relation in (ON_SURFACE, *PARTS))
        assert all((color in text) == (color in marks) for color in MARK_COLORS), text


@pytest.mark.parametrize("relation", RELATIONS)
def test_no_two_relations_share_words(relation):
    own = {place.split("{first}")[0] for place in RICH.places[relation]}
    for other in {*RELATIONS} - {relation}:
        assert not own & {place.split("{first}")[0] for place in RICH.places[other]}


@pytest.mark.parametrize("relation, marks, crowded, stated", [
    ("between", (None, "green"), (), {"pot", "green"}), ("left", ("red",), (True,), {"pot", "red"}),
    ("between", ("red", "green"), (False, True), {"crate", "red", "green"})])  # fmt: skip
def test_references_without_a_mark_or_in_a_crowded_one_keep_their_names(relation, marks, crowded, stated):
    for text in instructions(relation, True, marks, crowded, count=100):
        assert {word for word in ("red", "green", *stated) if word in text} == stated, text


def test_plain_wording_is_frozen():  # it is part of the nano model
    rng, texts = np.random.default_rng(11), []
    relations = {"direct": (None,), "between": ("between",)}
    colors = ("red", "green", "blue", "yellow", "purple", "orange")
    for _ in range(40):
        for kind in ("direct", "relational", "free", "between"):
            for relation in relations.get(kind, ("left", "right", "front", "behind", "next to")):
                names = [colors[rng.integers(6)] + " box" for _ in range(3)]
                texts.append(write_instruction(relation, kind in ("free", "between"), names[0], names[1:], rng))
    texts.append(str(rng.integers(1 << 30)))  # what the wording draws from the stream, the rest of a scene depends on
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == SHA256
    known = {token.strip("▁") for token in json.loads(TOKENIZER.read_text())["model"]["vocab"]}
    assert len(vocabulary()) == 38 and set(vocabulary()) <= known


@pytest.mark.parametrize("wording, marks", [("plain", ("red",)), ("terse", ())])
def test_wordings_without_the_needed_words_are_refused(wording, marks):
    with pytest.raises(ValueError, match=wording):
        write_instruction("left", True, "", ["red box"], np.random.default_rng(0), wording, marks=marks)


@pytest.mark.parametrize("size", [(48, 64), (480, 640), (640, 360)])
def test_mark_frames_its_box_and_hides_nothing_of_it(size):
    (height, width), box = size, (0.25, 0.5, 0.5, 0.75)
    image = np.full((height, width, 3), 90, np.uint8)
    marked = draw_marks(image, [box], ["red"])
    assert (image == 90).all(), "the picture itself was changed"
    rows, columns = np.nonzero(red := (marked == MARK_COLORS["red"]).all(-1))
    x0, y0, x1, y1 = np.array(box) * [width, height, width, height]
    assert not red[int(y0) : int(y1), int(x0) : int(x1)].any()
    assert columns.min() < x0 and columns.max() >= x1 and rows.min() < y0 and rows.max() >= y1
    assert columns.min() > x0 - 0.05 * width and rows.max() < y1 + 0.05 * height
    assert (marked[~red] == 90).all()


def test_marks_at_the_border_stay_visible():
    marked = draw_marks(np.zeros((96, 128, 3), np.uint8), [(0, 0, 1, 1), (0.5, 0.5, 0.6, 0.7)], ["red", "green"])
    assert (marked[0] == MARK_COLORS["red"]).all() and (marked[:, -1] == MARK_COLORS["red"]).all()
    assert (marked == MARK_COLORS["green"]).all(-1).sum() > 20
