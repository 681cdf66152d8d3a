"""What the pictures show: marks at the right pixels, one colour scale, words that are all there and do not overlap."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from trace_vlm.core.points import Box, Point
from trace_vlm.core.reasoning import parse, render
from trace_vlm.drawing import canvas, figures, overlay

STEPS = {
    "reference": "The reference object is the blue mug at (0.41, 0.53).",
    "target": "The target area is the free table to the left of the mug, seen from the camera.",
    "subtype": "This is a free-space placement.", "output": "I choose two points.",
}  # fmt: skip
ANSWER = parse(render(STEPS, [Point(0.3, 0.5), Point(1.2, 0.4)]))
SIZES = {"wide": (320, 120), "tall": (90, 260), "one pixel": (1, 1)}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def grey(*size):
    return Image.new("RGB", size, (128, 128, 128))


def pixels(figure):
    return np.asarray(canvas.figure_to_image(figure)).astype(int)


def words(figure):
    """All text of a figure in one line, without the places where lines were broken."""
    return " ".join(text.get_text() for text in figure.texts)


def labels(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def assert_no_overlap(figure):
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text().strip()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
    for (text, box), (other_text, other) in combinations(boxes, 2):
        assert not box.shrunk(0.9, 0.6).overlaps(other), (text, other_text)


def test_outlines_follow_pixel_edges():
    mask = np.zeros((10, 20), bool)
    mask[3, 7] = True
    (line,) = overlay.mask_outline(mask)
    low, high = np.min(line, axis=0) * (20, 10), np.max(line, axis=0) * (20, 10)
    assert np.allclose(low, (7, 3), atol=0.26) and np.allclose(high, (8, 4), atol=0.26) and line[0] == line[-1]
    (full,) = overlay.mask_outline(np.ones((4, 6), bool))
    assert np.min(full) == pytest.approx(0, abs=0.07) and np.max(full) == pytest.approx(1, abs=0.07)
    assert len(full) < 12  # no points on straight runs
    mask = np.kron(np.eye(4), np.ones((5, 5))) > 0
    mask[2, 2] = False  # a hole
    mask[10:] = False
    assert len(overlay.mask_outline(mask)) == 3
    assert overlay.mask_outline(np.zeros((5, 5), bool)) == overlay.mask_outline(None) == ()


def test_equal_attention_has_one_colour_under_a_shared_scale():
    first = overlay.blend(grey(4, 1), np.array([[0.0, 0.1, 0.2, 0.4]]), vmax=0.4)
    second = overlay.blend(grey(4, 1), np.array([[0.2, 0.0, 0.0, 0.0]]), vmax=0.4)
    assert np.array_equal(first[0, 2], second[0, 0]) and np.array_equal(first[0, 0], second[0, 1])
    assert np.ptp(first[0, 0]) == 0  # no attention: the grey image, dimmed
    assert len({tuple(color) for color in first[0].tolist()}) == 4
    assert np.ptp(overlay.blend(grey(3, 3), np.zeros((3, 3)), vmax=0.0)) == 0


@sizes
def test_points_and_ground_truth_are_drawn_in_place_and_points_outside_at_the_edge(size):
    page = canvas.Canvas(400, 300)
    axes = page.axes(50, 40, 300, 200)
    shown = overlay.draw_image(axes, grey(*size))
    overlay.draw_truth(axes, np.ones(size[::-1], bool), shown)
    items = [Point(0.25, 0.75), Point(5.0, 0.5), Point(-3, -3), Box(0.1, 0.1, 0.2, 0.2)]
    overlay.draw_answer(axes, items, shown)
    picture = pixels(page.figure)
    red = (picture[..., 0] > 200) & (picture[..., 1] < 90)
    assert red[135:146, 345:356].any() and red[35:46, 45:56].any()
    rows, columns = np.nonzero(red[180:201, 115:136])
    assert (columns.mean() + 115, rows.mean() + 180) == pytest.approx((50 + 0.25 * 300, 40 + 0.75 * 200), abs=1.0)
    cyan = np.nonzero((picture[..., 0] < 60) & (picture[..., 1] > 200) & (picture[..., 2] > 220))
    assert [end for axis in cyan for end in (axis.min(), axis.max())] == pytest.approx([40, 240, 50, 350], abs=4)


def test_many_points_are_small_and_faint_and_have_no_labels():
    def look(count):
        axes = canvas.Canvas(400, 300).axes(50, 40, 300, 200)
        items = [Point(float(x), float(y)) for x, y in np.random.default_rng(0).random((count, 2))]
        overlay.draw_answer(axes, items, overlay.draw_image(axes, grey(30, 20)))
        (line,) = axes.lines
        return line.get_markersize(), line.get_markeredgewidth(), line.get_alpha()

    looks = np.array([look(count) for count in (1, 20, 100, 1000, 10_000)])
    assert looks[0].tolist() == looks[1].tolist() == [7.0, 1.3, 1.0] and (np.diff(looks[1:], axis=0) < 0).all()
    assert looks[3, 0] < 0.4 * 7 and looks[3, 2] < 0.6  # at a thousand
    (axes,) = figures.draw_overlay(grey(60, 40), [Box(0.1, 0.1, 0.4, 0.4)] * 100).axes
    assert axes.patches[0].get_alpha() < 1 and axes.patches[0].get_linewidth() < 2
    apart = [Point(place / 30, 0.5) for place in range(21)]
    shown = (labels(figures.draw_overlay(grey(600, 40), apart[:n], labels=["1"] * n)) for n in (20, 21))
    assert list(map(bool, shown)) == [True, False]


def test_labels_of_points_at_one_place_are_lines_of_one_label():
    items = [Point(0.5, 0.5), Point(0.1, 0.1), Point(0.505, 0.5), Box(0.4, 0.4, 0.6, 0.6)]
    four = [f"{number}: 50%" for number in range(1, 5)]
    shown = labels(figures.draw_overlay(grey(60, 40), items, labels=four))
    assert sorted(shown) == ["1: 50%\n3: 50%\n4: 50%", "2: 50%"]
    many = figures.draw_overlay(grey(60, 40), items[:1] * 4 + items[3:] * 5, labels=four * 3)
    assert labels(many) == ["1: 50%\n2: 50%\n3: 50%\nand 6 more"]


def test_each_model_has_its_color_on_pictures_and_in_the_counts():
    names = ["one", "two", "three"]
    colors = list(overlay.model_colors(names).values())
    assert len(set(colors)) == 3 and colors[0] == overlay.RED
    panels = [figures.AnswerPanel(name, parse("(0.5, 0.5)"), 0.5) for name in names]
    figure = figures.draw_comparison(grey(40, 30), "Point.", panels, np.ones((30, 40), bool))
    faces = [line.get_markerfacecolor() for axes in figure.axes for line in axes.lines]
    assert [face for face in faces if face in colors] == [color for color in colors for _ in "dp"]  # legend, picture
    assert labels(figure) == ["ground truth"]
    plain = figures.draw_comparison(grey(40, 30), "Point.", [figures.AnswerPanel("m", ANSWER)])
    assert labels(plain) == ["prediction"] and "%" not in words(plain)
    names += [f"model {number}" for number in range(10)]  # more models than colours
    figure = figures.draw_outcome_counts({name: {"right": 1, "unparsable": 2} for name in names})
    assert_no_overlap(figure)
    assert set(names) <= {text.get_text() for text in figure.texts}
    bars = figure.axes[0].patches[:13]
    assert [to_hex(bar.get_facecolor()) for bar in bars[:3]] == colors
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 13


@sizes
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_comparison_shows_every_word_and_nothing_overlaps(size, count):
    instruction = "Locate several points within the vacant area to the left of the blue mug, please. " * 3
    plain = parse("[(0.3, 0.7), (0.1, 0.2, 0.3, 0.4)]")
    broken = parse("Define the target area: $\\frac{ <script> " + "x" * 300 + "\nFinal answer: nothing here")
    every = [("CoR", ANSWER, 0.5), ("no CoR", plain, 1.0), ("broken", broken, 0.0), ("again", ANSWER, None)]
    panels = [figures.AnswerPanel(*fields, "all 200 questions: 61.2%") for fields in every[:count]]
    mask = np.ones(size[::-1], bool)
    figure = figures.draw_comparison(grey(*size), instruction, panels, mask, "question 7 \u00b7 unseen")
    assert_no_overlap(figure)
    shown = words(figure)
    expected = ["question 7", "score of this answer: 50%", "1 of 2 points", *STEPS.values(), *instruction.split()]
    assert [text for text in expected if text not in shown] == []
    assert ("no reasoning" in shown, "No point could be read" in shown) == (count > 1, count > 2)


def steps(size, missing=()):
    heat = np.zeros(size[::-1], np.float32)
    heat[size[1] // 2 :, size[0] // 2 :] = 0.01
    known = [(f"Some words of step {n}. " * 4, heat * (n + 1), 0.2, (n, n + 4)) for n in range(5)]
    return [figures.StepMap(f"Step {n}", *(("", None) if n in missing else known[n])) for n in range(5)]


@sizes
def test_a_strip_shows_missing_steps_and_nothing_overlaps(size):
    figure = figures.draw_steps(grey(*size), "Point at the mug.", steps(size, missing=[1]), ANSWER.points, None, "q")
    assert_no_overlap(figure)
    assert words(figure).count("missing from this answer") == 1 and words(figure).count("image share 20.0%") == 4
    assert labels(figure).count("step missing") == 1
    for number in (1, 2):  # the second is missing
        assert_no_overlap(figures.draw_step(grey(*size), steps(size, missing=[1])[number - 1], number, 0.05, ()))


def assert_readable(figure, axes, width):
    """No letter is lower than 9 pixels where the figure is `width` pixels wide, and the labels lie inside it."""
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.yaxis.label, *figure.texts]:
        assert text.get_fontsize() * canvas.DPI / 72 * min(1, width / figure.bbox.width) >= 9, text
        edges = text.get_window_extent()
        assert edges.x1 <= figure.bbox.width + 1 and 0 <= edges.y0 and edges.y1 <= figure.bbox.height


@pytest.mark.parametrize("size", [(320, 240), (320, 120), (90, 260)])
def test_a_strip_can_be_read_at_the_width_of_a_page(size):
    figure = figures.draw_steps(grey(*size), "Point at the mug.", steps(size), ANSWER.points, np.ones(size[::-1], bool))
    figure.canvas.draw()
    bars = [axes for axes in figure.axes if axes.get_ylabel()]
    assert len(bars) == 2  # one a row
    for axes in bars:
        assert "attention" in axes.get_ylabel() and "%" in axes.get_ylabel()
        assert_readable(figure, axes, 830)
    pictures = [axes.bbox for axes in figure.axes if axes.images]
    assert len(pictures) == 6 and not any(first.overlaps(second) for first, second in combinations(pictures, 2))


def test_a_measure_can_be_read_on_a_phone_and_names_its_unit():
    names, intervals = ["reference", "target", "subtype"], [(0.3, 0.2, 0.4), None, (0.9, 0.8, 1.0)]
    controls = {"spread evenly": [0.5, None, 0.5], "shuffled images": [None, None, 0.1]}
    figure = figures.draw_measure("attention on the image", "share of attention", names, intervals, controls, "red")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert_readable(figure, axes, 358)
    assert "share of attention" in words(figure)
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert [line.get_xdata().tolist() for line in axes.lines[:2]] == [[0, 2], [2]]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 1


@pytest.mark.parametrize("models", [["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_names_of_parts_do_not_overlap(models):
    names = ["all", "free, 2 hops", "free, 3 hops", "a part with a longer name", "1 hop"]
    figure = figures.draw_groups({model: [(50.0, 40.0, 60.0)] * len(names) for model in models}, names, "accuracy")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_the_scale_of_a_strip_is_that_of_its_hottest_step():
    for missing, vmax in (((), 0.05), ((3, 4), 0.03), (range(5), 0.0)):
        assert figures.shared_vmax(steps((8, 8), missing)) == pytest.approx(vmax)
    figures.draw_steps(grey(8, 8), "Point.", steps((8, 8), missing=range(5)), ())  # nothing to draw is no error


def test_curves_leave_out_what_a_run_did_not_log():
    log = [{"step": step, "loss": 1 / (step + 1), "grounding_loss": 1.0, "reward": -1.0} for step in range(100)]
    logs = {"a": log, "b": [{"step": 0, "loss": 2.0}], "c": []}
    figure = figures.draw_training_curves(logs, ("loss", "grounding_loss", "reward", "learning_rate"))
    assert [len(axes.lines) for axes in figure.axes] == [4, 2, 2, 0]
    assert figure.axes[0].lines[1].get_ydata()[0] == 1.0  # the smooth curve starts at the data
    assert [axes.get_ylim()[0] for axes in figure.axes[:3]] == [0, 0, -1]
