"""Other models' coordinates: what is read from their texts, whole, broken or cut, and how pictures are sent."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from timing import assert_linear

from trace_vlm.core import conventions
from trace_vlm.core.conventions import CONVENTIONS, convention, convention_of, read
from trace_vlm.core.points import LIMIT, Box, Point, format_points
from trace_vlm.core.prompts import BOX_SUFFIX, POINTS_SUFFIX, question_text
from trace_vlm.core.reasoning import render
from trace_vlm.core.records import Turn
from trace_vlm.model.checkpoint import load, main, save
from trace_vlm.utils.command import InputError

SIZE, SENT = (640, 480), (280, 140)
HERE, BOTH = [(0.25, 0.5)], [(0.25, 0.5), (1.0, 0.0)]


def points(name, text):
    return [(round(item.x, 4), round(item.y, 4)) for item in read(text, SIZE, CONVENTIONS[name], SENT).points]


@pytest.mark.parametrize("name, text, expected", [
    ("unit", "[(0.25, 0.5)]", HERE), ("unit", "[(70, 70)]", HERE),  # pixels, of the picture as it was sent
    ("gemini", '```json\n[{"point": [500, 250], "label": "a"}, {"point": [0, 1000], "label": "b"}]\n```', BOTH),
    ("gemini", '[{"point": [500, 250], "label": "a"}, {"point": [500, 2', HERE),  # cut off
    ("gemini", "{'point': [500, 250],}", HERE),  # no JSON
    ("gemini", '{"points": [[500, 250], [100, 200]], "size": [9, 9]}', [(0.25, 0.5), (0.2, 0.1)]),
    ("gemini", "[[500, 250]]", HERE), ("gemini", '{"point": [1, 2, 3]} (500, 250)', HERE),
    ("molmo", '<point x="25.0" y="50" alt="a mug">a mug</point>', HERE),
    ("molmo", '<points x1="25" y1="50.0" x2="100" y2="0" alt="mugs">mugs</points>', BOTH),
    ("molmo", '<points x1="25" y1="50.0" x2="10', HERE), ("molmo", "There are none.", []),
    ("molmo", '<points x1="25" y2="50.0">', []), ("molmo2", '<points coords="">', []),  # no pair
    ("molmo2", '<points coords="1 1 250 500 2 999 003">mugs</points>', [(0.25, 0.5), (0.999, 0.003)]),
    ("molmo2", '<point coords="1 1 250 500"/>', HERE),
    ("molmo2", f'<point coords="1 1 250 {"9" * 400}"/>', [(0.25, LIMIT / 1000)]),
    ("molmo", f'<point x="25" y="{"9" * 400}">', [(0.25, LIMIT / 100)]),
    ("molmo2", '<points coords="1 250 500 2 999 3">', [(0.25, 0.5), (0.999, 0.003)]),  # without the image's number
    ("molmo2", '<points coords="1 1 250 500 2 99', HERE), ("qwen2.5-vl", '[{"point_2d": [70, 70], "label": "m"}]', HERE),
    ("qwen3-vl", '<think>maybe [1, 2]</think>\n[{"point_2d": [250, 500]}]', HERE),
    ("qwen3-vl", "**Final Answer:** [250, 500]\nThat is left of (1, 2).", HERE),
    ("qwen3-vl", "1. Identify the reference object: at [10, 20].\n**Final Answer:**\n[250, 500]", HERE),
    ("robobrain2", "[(70, 70), (280, 0)]", BOTH), ("robobrain2", "[(700, 70)]", [(2.5, 0.5)]),  # outside, not lost
    ("robobrain2.5", "[(250, 500, 1.08), (463, 599)]", [(0.25, 0.5), (0.463, 0.599)]),
    ("robobrain2.5", '[{"point": [250, 500, 0.9]}]', HERE),
    ("qwen3-vl", '[{"point_2d": [250, 500, 1.2]}, {"point_2d": [100, 200]}]', [(0.25, 0.5), (0.1, 0.2)]),
    ("qwen3-vl", '[{"x": 250, "y": 500}]', HERE), ("gemini", '[{"y": 500, "x": 250}]', HERE),  # named: not swapped
    ("gemini", "（500，250）", HERE), ("molmo", '<point x="25.0" alt="a mug" y="50">a mug</point>', HERE),
    ("molmo", '<point y="50" x="25.0"/><point y="0" alt="mug" x="100"/>', BOTH),
    ("molmo", '<points y2="0" x1="25" alt="mugs" y1="50.0" x2="100">', BOTH),
    ("molmo", '**Final Answer:** <point x="25" y="50">a mug</point> and the other <point x="100" y="0">b</point>', BOTH),
])  # fmt: skip
def test_what_is_read(name, text, expected):
    assert points(name, text) == expected


@pytest.mark.parametrize("name, text", [
    ("unit", "[(0.1, 0.2, 0.3, 0.4)]"), ("gemini", '[{"box_2d": [200, 100, 400, 300], "label": "a"}]'),
    ("qwen2.5-vl", '[{"bbox_2d": [28, 28, 84, 56]}]'), ("qwen3-vl", '[{"bbox_2d": [100, 200, 300, 400]}]'),
    ("robobrain2", "[28, 28, 84, 56]"),
])  # fmt: skip
def test_boxes(name, text):
    (box,) = read(text, SIZE, CONVENTIONS[name], SENT).points
    assert isinstance(box, Box)
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((0.1, 0.2, 0.3, 0.4))


@given(st.sampled_from(sorted(CONVENTIONS)), st.text(alphabet='[](){}<>"points coords xy1=:,. 0.5-e\n', max_size=80))
def test_any_text_is_read(name, text):
    read(text, SIZE, CONVENTIONS[name], SENT)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("piece", [
    '"point": [', '"points": [[1, 2],', "<points x1=", '<point coords="1 ', 'x="1" ', "[[1,", '{"x": 1, ',
    '"point_2d": [1, 2, 3], ', '<point x1="1" y1="2" ', 'x="', "(1, 2, ",
])  # fmt: skip
def test_long_texts_take_linear_time(name, piece):
    assert_linear(CONVENTIONS[name].read, piece * (200_000 // len(piece)))


FRACTION = st.integers(0, 1000).map(lambda value: value / 1000)
POINTS = st.lists(st.builds(Point, FRACTION, FRACTION), min_size=1, max_size=12)
BOXES = st.lists(st.builds(Box, FRACTION, FRACTION, FRACTION, FRACTION), min_size=1, max_size=5)


def values(item: Point | Box) -> tuple[float, ...]:
    return (item.x, item.y) if isinstance(item, Point) else (item.x0, item.y0, item.x1, item.y1)


def assert_close(found: Sequence[Point | Box], expected: Sequence[Point | Box], tolerance: float) -> None:
    assert [type(item) for item in found] == [type(item) for item in expected]
    for item, wanted in zip(found, expected, strict=True):
        assert values(item) == pytest.approx(values(wanted), rel=0, abs=tolerance)


@given(st.sampled_from(sorted(CONVENTIONS)), POINTS | BOXES, st.booleans())
def test_what_is_written_is_read_back(name: str, items: list[Point | Box], reasoning: bool) -> None:
    how, place = CONVENTIONS[name], format_points(items[:1])[1:-1]
    steps = {"reference": f"the mug, 2 m (1, 2) from {place}", "output": "is at y=0.25, x=0.5."}
    text = render(steps, items) if reasoning else format_points(items)
    written = conventions.write(text, how, SENT)
    response, sides = read(written, SIZE, how, SENT), how.units(SENT)
    tolerance = 0.0 if name == "unit" else 0.0005 if how.scale else 0.5 / min(SENT)
    assert_close(response.points, items if how.box else [item.center for item in items], tolerance + 1e-9)
    assert name != "unit" or written == text
    if not reasoning:
        return
    original = read(text, SIZE, CONVENTIONS["unit"])
    for step, before in zip(response.steps, original.steps, strict=True):  # the same words with other numbers
        assert re.sub(r"[\d.]+", "#", step.text) == re.sub(r"[\d.]+", "#", before.text)
    assert response.steps[0].text.startswith("the mug, 2 m (1, 2) from")
    near, named = how.read(response.steps[0].text)[-1].item, how.read(response.steps[1].text)[0].item
    for item, wanted in ((near, items[0]), (named, Point(0.5, 0.25))):
        fractions = [value / sides[axis % 2] for axis, value in enumerate(values(item))]
        assert_close([type(item)(*fractions)], [wanted], tolerance + 1e-9)


@pytest.mark.parametrize("name, points, box", [
    ("qwen3-vl", '[{"point_2d": [460, 520], "label": "target"}]', '[{"bbox_2d": [100, 200, 300, 400], "label": "target"}]'),
    ("gemini", '[{"point": [520, 460], "label": "target"}]', '[{"box_2d": [200, 100, 400, 300], "label": "target"}]'),
    ("molmo", '<point x="46.0" y="52.0" alt="target">target</point>',
     '<point x="20.0" y="30.0" alt="target">target</point>'),
    ("molmo2", '<points coords="1 1 460 520">target</points>', '<points coords="1 1 200 300">target</points>'),
    ("qwen2.5-vl", '[{"point_2d": [129, 73], "label": "target"}]', '[{"bbox_2d": [28, 28, 84, 56], "label": "target"}]'),
    ("robobrain2", "[(129, 73)]", "[28, 28, 84, 56]"), ("robobrain2.5", "[(460, 520)]", "[100, 200, 300, 400]"),
])  # fmt: skip
def test_a_conversation_in_the_convention(name: str, points: str, box: str) -> None:
    how, asked = CONVENTIONS[name], question_text("What is at (0.5, 0.5)?", reasoning=True)
    turns = [Turn("human", asked), Turn("gpt", "[(0.46, 0.52)]"), Turn("human", f"Boxes. {BOX_SUFFIX}"),
             Turn("gpt", "[(0.1, 0.2, 0.3, 0.4)]"), Turn("human", "Is it red?"), Turn("gpt", "No, (0, 1).")]  # fmt: skip
    written = conventions.write_turns(turns, how, SENT)
    assert written[0].text == asked.replace(POINTS_SUFFIX, how.points)
    assert [turn.text for turn in written[1:4]] == [points, f"Boxes. {how.box or how.points}", box]
    assert written[4:] == turns[4:] and conventions.write_turns(turns, CONVENTIONS["unit"], SENT) == turns


@given(*[st.integers(1, 5000)] * 2, st.integers(64, 2048), st.sampled_from(["qwen2.5-vl", "robobrain2", "unit"]))
def test_a_server_has_nothing_left_to_resize(width, height, most, name):
    how = convention(name)
    try:
        sent = conventions.sent_size((width, height), most, how)
    except InputError:
        assert max(width, height) > 200 * min(width, height)
        return
    assert min(sent) >= 1
    if how.scale is not None:
        assert max(sent) <= max(most, 1) and (max(width, height) > most or sent == (width, height))
    else:
        assert {side % 28 for side in sent} == {0}
        assert conventions.QWEN_LEAST <= sent[0] * sent[1] <= conventions.QWEN_MOST


def test_what_has_no_convention_is_refused():
    with pytest.raises(InputError, match=r"'klingon'.*gemini"):
        convention("klingon")
    with pytest.raises(ValueError, match="robobrain2"):
        read("[(1, 2)]", SIZE, CONVENTIONS["robobrain2"])
    for model in ("allenai/MolmoPoint-8B", "MolmoAct2-7B"):  # they point by special tokens
        with pytest.raises(InputError, match="Molmo"):
            convention_of(model)


FAMILIES = {
    "gemini-2.5-flash": "gemini", "google/gemini-2.5-pro": "gemini",
    "models/gemini-robotics-er-1.5-preview": "gemini", "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2.5-vl",
    "qwen2.5vl:7b": "qwen2.5-vl", "Qwen/Qwen3-VL-4B-Thinking": "qwen3-vl", "Qwen/Qwen3.5-35B-A3B": "qwen3-vl",
    "IffYuan/Embodied-R1.5": "qwen3-vl", "unitreerobotics/UnifoLM-ER-1-4B": "qwen3-vl", "ABot-ER-8B": "qwen3-vl",
    "allenai/Molmo-7B-D-0924": "molmo", "allenai/Molmo2-8B": "molmo2", "BAAI/RoboBrain2.0-7B": "robobrain2",
    "BAAI/RoboBrain2.5-8B-NV": "robobrain2.5", "gpt-4o": "unit", "trace-13b": "unit", "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl", "qwen3_vl_moe": "qwen3-vl", "qwen3_5": "qwen3-vl", "molmo2": "molmo2",
}  # fmt: skip


@pytest.mark.parametrize("model", FAMILIES)
def test_a_models_family_names_its_convention_and_an_unknown_one_is_not_guessed(model):
    found = convention_of(model)
    assert (found and found.name) == FAMILIES[model]


@pytest.mark.parametrize("text, shown", [
    ('[{"point_2d": [400, 600]}]', "JSON keys"), ('{"box_2d": [0.1, 0.2, 0.3, 0.4]}', "JSON keys"),
    ('<point x="46.1" y="52.7">', "XML tags"), ("[(400, 300)]", "numbers above 1"), ("(0.5, 1.5)", "numbers above 1"),
    ('[{"x": 400, "y": 600}]', "numbers above 1"), ("[(0.4, 0.3), (1, 1), (-0.2, 0)]", None),
    ('[{"x": 0.4, "y": 0.6}]', None), ("1. 2 mugs of 300 ml.\n**Final Answer:** none", None),
])  # fmt: skip
def test_what_may_not_be_in_fractions(text, shown):
    assert conventions.foreign_syntax(text) == shown


@pytest.mark.parametrize("name, text, named", [
    ("qwen3-vl", "[0.46, 0.53], [0.2, 0.9], [500, 500]", "2 of 3 points .*qwen3-vl"),
    ("qwen2.5-vl", "[0.46, 0.53]", "1 of 1 points"), ("molmo", '<point x="0.46" y="0.53">', "1 of 1 points"),
    ("unit", "[(463.5, 599.2)]", "1 of 1 points"), ("unit", "[(0.001, 0.002)]", None),
    ("unit", '[{"point_2d": [40, 30]}]', "1 of 1 answers"), ("unit", "[(0.4, 0.3), (1, 0)]", None),
    ("qwen3-vl", "[460, 530], [5, 5]", None), ("qwen3-vl", "none", None),
])  # fmt: skip
def test_points_that_look_like_another_convention_are_reported(name, text, named):
    for sent in (SENT, (64, 48)):  # a pixel of a small picture is more than a hundredth of it
        check = conventions.ConventionCheck()
        check.add(read(text, SIZE, CONVENTIONS[name], sent), CONVENTIONS[name], sent)
        warning = check.warning(name)
        assert warning is None if named is None else warning is not None and re.search(named, warning)


def test_a_checkpoint_records_its_coordinates(family_folder, tmp_path, capsys) -> None:
    base = family_folder("qwen3_vl")
    checkpoint = load(base)
    assert checkpoint.coordinates == checkpoint.native_coordinates() == "qwen3-vl"  # of the type of its architecture
    for kind, coordinates in (("whole", "unit"), ("adapter", "qwen3-vl")):
        if kind == "adapter":
            checkpoint = load(tmp_path / "whole")
            checkpoint.model = get_peft_model(checkpoint.model, LoraConfig(target_modules=["q_proj"]))
        checkpoint.coordinates = coordinates
        save(checkpoint, tmp_path / kind)
        assert load(tmp_path / kind).coordinates == coordinates
        main(["inspect", str(tmp_path / kind)])
        assert f" {coordinates}: " in capsys.readouterr().out
    for name in ("nano", family_folder("gemma3")):
        assert load(name).coordinates == "unit"
        with pytest.raises(InputError, match="^coordinates: .*unit"):
            load(name).native_coordinates()
