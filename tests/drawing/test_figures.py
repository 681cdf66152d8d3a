"""What the pictures show: marks at the right pixels, one colour scale, words that are all there and do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from trace_vlm.core.points import Box, Point
from trace_vlm.core.reasoning import parse, render
from trace_vlm.drawing import canvas, figures, overlay

STEPS = {
    "reference": "The reference object is the blue mug at (0.41, 0.53).",
    "target": "The target area is the free table to the left of the mug, seen from the camera.",
    "subtype": "This is a free-space placement.",
    "output": "I choose two points.",
}
ANSWER = parse(render(STEPS, [Point(0.3, 0.5), Point(1.2, 0.4)]))
SIZES = {"wide": (320, 120), "tall": (90, 260), "one pixel": (1, 1)}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def grey(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (128, 128, 128))


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(canvas.figure_to_image(figure)).astype(int)


def words(figure: Figure) -> str:
    """All text of a figure in one line, without the places where lines were broken."""
    return " ".join(text.get_text() for text in figure.texts)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """The texts that overlap; every text lies inside the figure."""
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text().strip()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
    return [(one[0], other[0]) for one, other in combinations(boxes, 2) if one[1].shrunk(0.9, 0.6).overlaps(other[1])]


# --- marks ---------------------------------------------------------------------------------------------------------


def test_outlines_follow_pixel_edges() -> None:
    mask = np.zeros((10, 20), bool)
    mask[3, 7] = True
    (line,) = overlay.mask_outline(mask)
    low, high = np.min(line, axis=0) * (20, 10), np.max(line, axis=0) * (20, 10)
    assert np.allclose(low, (7, 3), atol=0.26) and np.allclose(high, (8, 4), atol=0.26) and line[0] == line[-1]
    (full,) = overlay.mask_outline(np.ones((4, 6), bool))
    assert np.min(full) == pytest.approx(0, abs=0.07) and np.max(full) == pytest.approx(1, abs=0.07)
    assert len(full) < 12  # no points on straight runs
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = True
    mask[5:7, 5:7] = False  # a hole
    mask[15:18, 15:18] = True
    assert len(overlay.mask_outline(mask)) == 3
    assert overlay.mask_outline(np.zeros((5, 5), bool)) == overlay.mask_outline(None) == ()


def test_equal_attention_has_one_colour_under_a_shared_scale() -> None:
    first = overlay.blend(grey((4, 1)), np.array([[0.0, 0.1, 0.2, 0.4]]), vmax=0.4)
    second = overlay.blend(grey((4, 1)), np.array([[0.2, 0.0, 0.0, 0.0]]), vmax=0.4)
    assert np.array_equal(first[0, 2], second[0, 0]) and np.array_equal(first[0, 0], second[0, 1])
    assert np.ptp(first[0, 0]) == 0  # no attention: the grey image, dimmed
    assert len({tuple(color) for color in first[0].tolist()}) == 4
    assert np.ptp(overlay.blend(grey((3, 3)), np.zeros((3, 3)), vmax=0.0)) == 0


@sizes
def test_points_are_drawn_in_place_and_outside_ones_at_the_edge(size: tuple[int, int]) -> None:
    page = canvas.Canvas(400, 300)
    axes = page.axes(50, 40, 300, 200)
    shown = overlay.draw_image(axes, grey(size))
    items = [Point(0.25, 0.75), Point(5.0, 0.5), Point(-3, -3), Box(0.1, 0.1, 0.2, 0.2)]
    assert overlay.draw_answer(axes, items, shown) == 2
    assert axes.get_xlim() == (0, size[0]) and axes.get_ylim() == (size[1], 0)
    picture = pixels(page.figure)
    red = (picture[..., 0] > 200) & (picture[..., 1] < 90)
    assert red[135:146, 345:356].any() and red[35:46, 45:56].any()
    rows, columns = np.nonzero(red[180:201, 115:136])
    assert (columns.mean() + 115, rows.mean() + 180) == pytest.approx((50 + 0.25 * 300, 40 + 0.75 * 200), abs=1.0)


def test_truth_is_drawn_along_the_mask() -> None:
    page = canvas.Canvas(200, 100)
    axes = page.axes(0, 0, 200, 100)
    mask = np.zeros((10, 20), bool)
    mask[2:8, 5:15] = True
    overlay.draw_truth(axes, mask, overlay.draw_image(axes, grey((20, 10))))
    picture = pixels(page.figure)
    rows, columns = np.nonzero((picture[..., 0] < 60) & (picture[..., 1] > 200) & (picture[..., 2] > 220))
    assert (columns.min(), columns.max()) == pytest.approx((50, 150), abs=3)
    assert (rows.min(), rows.max()) == pytest.approx((20, 80), abs=3)


def test_many_points_are_small_and_faint_and_have_no_labels() -> None:
    rng = np.random.default_rng(0)

    def look(count: int) -> tuple[float, float, float]:
        axes = canvas.Canvas(400, 300).axes(50, 40, 300, 200)
        items = [Point(float(x), float(y)) for x, y in rng.random((count, 2))]
        overlay.draw_answer(axes, items, overlay.draw_image(axes, grey((30, 20))))
        (line,) = axes.lines
        return line.get_markersize(), line.get_markeredgewidth(), line.get_alpha()

    assert look(1) == look(overlay.FEW_DOTS) == (7.0, 1.3, 1.0)
    sizes, rims, alphas = zip(*map(look, (20, 100, 1000, 10_000)), strict=True)
    for values in (sizes, rims, alphas):
        assert list(values) == sorted(values, reverse=True) and len(set(values)) == 4
    assert sizes[2] < 0.4 * 7 and alphas[2] < 0.6  # at a thousand
    (axes,) = figures.draw_overlay(grey((60, 40)), [Box(0.1, 0.1, 0.4, 0.4)] * 100).axes
    assert axes.patches[0].get_alpha() < 1 and axes.patches[0].get_linewidth() < 2
    for count in (overlay.FEW_DOTS, overlay.FEW_DOTS + 1):
        items = [Point(place / 30, 0.5) for place in range(count)]
        (axes,) = figures.draw_overlay(grey((600, 40)), items, labels=list(map(str, range(count)))).axes
        assert bool(axes.texts) == (count <= overlay.FEW_DOTS)


def test_labels_of_points_at_one_place_are_lines_of_one_label() -> None:
    items = [Point(0.5, 0.5), Point(0.1, 0.1), Point(0.505, 0.5), Box(0.4, 0.4, 0.6, 0.6)]
    labels = [f"{number}: 50%" for number in range(1, 5)]
    (axes,) = figures.draw_overlay(grey((60, 40)), items, labels=labels).axes
    assert sorted(text.get_text() for text in axes.texts) == ["1: 50%\n3: 50%\n4: 50%", "2: 50%"]
    (axes,) = figures.draw_overlay(grey((60, 40)), items[:1] * 9, labels=labels * 3).axes
    assert [text.get_text() for text in axes.texts] == ["1: 50%\n2: 50%\n3: 50%\nand 6 more"]


# --- answers -------------------------------------------------------------------------------------------------------


def test_each_model_has_its_color_on_pictures_and_in_the_counts() -> None:
    labels = ["one", "two", "three"]
    colors = list(overlay.model_colors(labels).values())
    assert len(set(colors)) == 3 and colors[0] == overlay.RED
    panels = [figures.AnswerPanel(label, parse("(0.5, 0.5)"), 0.5) for label in labels]
    figure = figures.draw_comparison(grey((40, 30)), "Point.", panels, np.ones((30, 40), bool))
    faces = [line.get_markerfacecolor() for axes in figure.axes for line in axes.lines]
    assert [face for face in faces if face in colors] == [color for color in colors for _ in "dp"]  # legend, picture
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["ground truth"]
    counts = figures.draw_outcome_counts({label: {"right": 1} for label in labels})
    assert [to_hex(bar.get_facecolor()) for bar in counts.axes[0].patches] == colors


def test_every_model_has_its_own_look_and_label_in_the_outcome_counts() -> None:
    counts = {f"model {index}": {"right": 3, "unparsable": index} for index in range(13)}
    figure = figures.draw_outcome_counts(counts)
    assert set(counts) <= {text.get_text() for text in figure.texts} and overlapping(figure) == []
    bars = figure.axes[0].patches[: len(counts)]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == len(counts)


def panels(count: int) -> list[figures.AnswerPanel]:
    plain = parse("[(0.3, 0.7), (0.1, 0.2, 0.3, 0.4)]")
    broken = parse("Define the target area: $\\frac{ <script> " + "x" * 300 + "\nFinal answer: nothing here")
    every = [("CoR", ANSWER, 0.5), ("no CoR", plain, 1.0), ("broken", broken, 0.0), ("again", ANSWER, None)]
    return [figures.AnswerPanel(*fields, "all 200 questions: 61.2%") for fields in every][:count]


@sizes
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_comparison_shows_every_word_and_nothing_overlaps(size: tuple[int, int], count: int) -> None:
    instruction = "Locate several points within the vacant area to the left of the blue mug, please. " * 3
    mask = np.ones(size[::-1], bool)
    figure = figures.draw_comparison(grey(size), instruction, panels(count), mask, "question 7 \u00b7 unseen")
    assert overlapping(figure) == []
    shown = words(figure)
    for text in ["question 7", "50% of its points", "1 of 2 points", *STEPS.values(), *instruction.split()]:
        assert text in shown
    assert ("no reasoning" in shown) == (count > 1)
    assert ("No point could be read" in shown) == (count > 2)


def test_a_comparison_without_ground_truth_does_not_name_it() -> None:
    figure = figures.draw_comparison(grey((40, 30)), "Point.", [figures.AnswerPanel("m", ANSWER)])
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["prediction"]
    assert "%" not in words(figure)


# --- attention -----------------------------------------------------------------------------------------------------


def steps(size: tuple[int, int], missing: Sequence[int] = ()) -> list[figures.StepMap]:
    maps = []
    for index in range(5):
        heat = np.zeros(size[::-1], np.float32)
        heat[size[1] // 2 :, size[0] // 2 :] = 0.01 * (index + 1)
        text = f"Some words of step {index}. " * 4
        maps.append(figures.StepMap(f"Step {index}", text, heat, 0.2, (index, index + 4)))
    return [figures.StepMap(step.title, "", None) if place in missing else step for place, step in enumerate(maps)]


@sizes
def test_a_strip_shows_missing_steps_and_nothing_overlaps(size: tuple[int, int]) -> None:
    figure = figures.draw_steps(grey(size), "Point at the mug.", steps(size, missing=[1]), ANSWER.points, None, "q")
    assert overlapping(figure) == []
    assert words(figure).count("missing from this answer") == 1 and words(figure).count("image share 20.0%") == 4
    assert [text.get_text() for axes in figure.axes for text in axes.texts].count("step missing") == 1


def readable(figure: Figure, axes: Any, width: float) -> None:
    """No letter is lower than 9 pixels where the figure is `width` pixels wide, and the labels lie inside it."""
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.yaxis.label, *figure.texts]:
        assert text.get_fontsize() * canvas.DPI / 72 * min(1, width / figure.bbox.width) >= 9, text
        edges = text.get_window_extent()
        assert edges.x1 <= figure.bbox.width + 1 and 0 <= edges.y0 and edges.y1 <= figure.bbox.height


@pytest.mark.parametrize("size", [(320, 240), (320, 120), (90, 260)])
def test_a_strip_can_be_read_at_the_width_of_a_page(size: tuple[int, int]) -> None:
    figure = figures.draw_steps(grey(size), "Point at the mug.", steps(size), ANSWER.points, np.ones(size[::-1], bool))
    figure.canvas.draw()
    bars = [axes for axes in figure.axes if axes.get_ylabel()]
    assert len(bars) == 2  # one a row
    for axes in bars:
        assert "attention" in axes.get_ylabel() and "%" in axes.get_ylabel()
        readable(figure, axes, 830)
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 6
    assert not any(one.bbox.overlaps(other.bbox) for one, other in combinations(pictures, 2))


def test_a_measure_can_be_read_on_a_phone_and_names_its_unit() -> None:
    names, intervals = ["reference", "target", "subtype"], [(0.3, 0.2, 0.4), None, (0.9, 0.8, 1.0)]
    controls = {"spread evenly": [0.5, None, 0.5], "shuffled images": [None, None, 0.1]}
    figure = figures.draw_measure("attention on the image", "share of attention", names, intervals, controls, "red")
    figure.canvas.draw()
    (axes,) = figure.axes
    readable(figure, axes, 358)
    assert "share of attention" in words(figure)
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert [line.get_xdata().tolist() for line in axes.lines[:2]] == [[0, 2], [2]]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 1


def test_the_scale_of_a_strip_is_that_of_its_hottest_step() -> None:
    assert figures.shared_vmax(steps((8, 8))) == pytest.approx(0.05)
    assert figures.shared_vmax(steps((8, 8), missing=[3, 4])) == pytest.approx(0.03)
    assert figures.shared_vmax(steps((8, 8), missing=range(5))) == 0.0
    figures.draw_steps(grey((8, 8)), "Point.", steps((8, 8), missing=range(5)), ())  # nothing to draw is no error


def test_the_two_halves_of_a_map_keep_their_places_in_the_picture_of_a_step() -> None:
    step = figures.StepMap("Step", "Words.", np.repeat([[0.0, 0.4]], 100, axis=0).repeat(100, axis=1), 0.4, (0, 3))
    figure = figures.draw_step(grey((200, 100)), step, 3, 0.4, [])
    left, bottom, width, height = figure.axes[0].get_position().bounds
    picture = pixels(figure)
    row = int((1 - bottom - height / 2) * picture.shape[0])
    cold, hot = (picture[row, int((left + part * width) * picture.shape[1])] for part in (0.25, 0.75))
    assert np.ptp(cold) < 3 and np.ptp(hot) > 60
    assert overlapping(figure) == []


def test_curves_leave_out_what_a_run_did_not_log() -> None:
    logs = {
        "a": [{"step": step, "loss": 1 / (step + 1), "grounding_loss": 1.0, "reward": -1.0} for step in range(100)],
        "b": [{"step": 0, "loss": 2.0}],
        "c": [],
    }
    figure = figures.draw_training_curves(logs, ("loss", "grounding_loss", "reward", "learning_rate"))
    assert [len(axes.lines) for axes in figure.axes] == [4, 2, 2, 0]
    assert figure.axes[0].lines[1].get_ydata()[0] == 1.0  # the smooth curve starts at the data
    assert [axes.get_ylim()[0] for axes in figure.axes[:3]] == [0, 0, -1]
