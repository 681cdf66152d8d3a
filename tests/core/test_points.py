"""The point grammar: what is read, what is refused, and that writing and reading are inverse."""

from dataclasses import astuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from timing import assert_linear

from trace_vlm.core.points import LIMIT, Box, Point, find_points, format_points, parse_points, scored_indices

coordinates = st.floats(-1e6, 1e6)
fractions = st.floats(0, 1)
items = st.lists(st.builds(Point, coordinates, coordinates) | st.builds(Box, *[coordinates] * 4), max_size=12)


def rounded(item, decimals):
    return type(item)(*(round(value, decimals) for value in astuple(item)))


@given(items, st.integers(1, 9))
def test_parse_reads_what_format_wrote(written, decimals):
    expected = [rounded(item, decimals) for item in written]
    text = format_points(written, decimals)
    assert parse_points(text) == expected and format_points(expected, decimals) == text
    assert parse_points(format_points(written, decimals), size=(640, 480)) == expected  # never mistaken for pixels


def test_format_writes_the_published_form():
    assert format_points([Point(0.4612, 0.527), Point(0.498, 0.521)]) == "[(0.461, 0.527), (0.498, 0.521)]"
    assert format_points([Box(0.2, 0.3, 0.6, 0.7)], decimals=2) == "[(0.20, 0.30, 0.60, 0.70)]"
    assert format_points([]) == "[]"
    assert format_points([Point(-0.0001, -0.0)]) == "[(0.000, 0.000)]"
    with pytest.raises(ValueError, match="decimal"):  # it would be read as pixels
        format_points([Point(2.0, 3.0)], decimals=0)


READ = {
    **dict.fromkeys([
        "(0.5, 0.25)", "[0.5, 0.25]", "((0.5, 0.25))", "(.5,.25)", "( 0.5 , 0.25 )", "(0.5\x1c, 0.25\x1f)",
        "(0.5,\n\t0.25\n)", "(0.5, 0.25,)",
        "(5e-1, 2.5E-1)", "(.5e+0, 25e-2)", "(٠.5, ٠.25)", "[(0.5, 0.25), (0.3, ",
    ], [Point(0.5, 0.25)]),
    **dict.fromkeys([
        "[(0.5, 0.25), [0.1, 0.1]]", "(0.5,0.25)(0.1,0.1)", "**(0.5, 0.25)**, `[(0.1, 0.1)]`",
    ], [Point(0.5, 0.25), Point(0.1, 0.1)]),
    **dict.fromkeys([
        "（0.46，0.53）", "［（0．46， ０．５３）］", "x=0.46, y=0.53", "(x=0.46, y=0.53)", "X: 0.46; Y: 0.53.",
        "y = 0.53 and x = 0.46", "{'point': {'x': 0.46, 'y': 0.53}, 'label': 'x'}", r"\(0.46, 0.53\)",
        "(**0.46**, **0.53**)", "**(*0.46*, `0.53`)**",
    ], [Point(0.46, 0.53)]),
    "[[0.5, 0.25], [0.4, 0.4]]": [Point(0.5, 0.25), Point(0.4, 0.4)], "(5., 5.)": [Point(5.0, 5.0)],
    "(00.50, 1.00)": [Point(0.5, 1.0)], "(+0.5, -0.25)": [Point(0.5, -0.25)], "(1e-400, 0.5)": [Point(0.0, 0.5)],
    "[(0.5, 0.25), (0.3, 0.6), (0.2": [Point(0.5, 0.25), Point(0.3, 0.6)],
    "(0.1, 0.2, 0.3, 0.4)": [Box(0.1, 0.2, 0.3, 0.4)], "[0.1, 0.2, 0.3, 0.4]": [Box(0.1, 0.2, 0.3, 0.4)],
    "(0.9, 0.2, 0.1, 0.4)": [Box(0.1, 0.2, 0.9, 0.4)],
    "point 1 (0.5, 0.5) and box (0.1, 0.1, 0.2, 0.2)": [Point(0.5, 0.5), Box(0.1, 0.1, 0.2, 0.2)],
    "((0.1, 0.2), (0.3, 0.4))": [Point(0.1, 0.2), Point(0.3, 0.4)],
    '[{"x": 0.46, "y": 0.53}, {"y": 0.2, "x": 0.1}]': [Point(0.46, 0.53), Point(0.1, 0.2)],
    r"$\left(0.46,\,0.53\right)$ and \[0.1, 0.2\]": [Point(0.46, 0.53), Point(0.1, 0.2)],
    '[{"x": 400, "y": 600}]': [Point(400, 600)], '{"point_2d": [400, 600, 1.2]}': [Point(400, 600)],
    "(−0.1, 0.53)": [Point(-0.1, 0.53)], "{'point_2d' : [[0.4, 0.6, 1.2]]}": [Point(0.4, 0.6)],
}  # fmt: skip

REFUSED = [
    "", " ", "no answer", "()", "[]", "[[]]", "(,)", "(0.5)", "(0.5,)", "(0.5, )", "(, 0.5)", "(0.5,, 0.5)",
    "(0.1, 0.2, 0.3)", "(0.1, 0.2, 0.3, 0.4, 0.5)", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]", "0.5, 0.5", "{0.5, 0.5}",
    "<point>0.5, 0.5</point>", "（0.5；0.5）", "(0.5; 0.5)", "(0.5 0.5)", "(0.5, 0.5]", "[0.5, 0.5)", "(0.45, 0.5",
    "0.45, 0.5)", "(x=0.5, x=0.5)", "x=0.5", "x=50%, y=50%", "x=50, y=50%", "x=0,5, y=0,5", "x=0.5px, y=0.5px",
    "x=0.3, y=-0.2, z=0.1",  # a place in space
    '{"x": 0.3, "y": 0.2, "z": 0.1}', '{"x": 0.3, "y": 0.2, "width": 0.1, "height": 0.1}', "max=0.5, y=0.5",
    "（50％，50％）", r"(50\%, 50\%)", "(**50%**, **50%**)", "<loc0512><loc0512>", '("0.5", "0.5")', "(0.5px, 0.5px)",
    "(0,5; 0,5)", "(0.5.1, 0.5)", "(--0.5, 0.5)", "(+-0.5, 0.5)", "(- 0.5, 0.5)", "(0. 5, 0.5)", "(., .)",
    "(1e, 0.5)", "(e5, 0.5)", "(0x1, 0.5)", "(1_0, 20)", "(nan, nan)", "(inf, 0.5)", "(½, ½)", "(50%, 50%)",
    "(50 %, 50 %)", "(0.5%, 50)", "(50, 50)%", "(50, 50) %", "(50, 50)   %", "[50, 50] percent",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_read(text):
    assert parse_points(text) == READ[text]


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    assert parse_points(text, size=(640, 480)) == []
    assert parse_points(f"{text} (0.5, 0.25)")[-1:] == [Point(0.5, 0.25)]  # and it swallows nothing behind it


@given(st.text() | st.text(alphabet="()[]0123456789.,+-eE% \n"), st.none() | st.just((640, 480)))
def test_any_text_is_read(text, size):
    for item in parse_points(text, size):
        format_points([item])


@given(st.text(alphabet="()[]xyXYz=:,;.0123456789 \"'*`$\\（），．leftrigh\n", max_size=60))
def test_a_mention_is_read_alone_as_in_its_text(text):
    for mention in find_points(text):
        assert find_points(text[mention.start : mention.end])[0].item == mention.item


def test_a_depth_and_swapped_numbers_are_read_where_they_are_known():
    assert [one.item for one in find_points("[(463, 599, 1.08)]", depth=True)] == [Point(463, 599)]
    assert [one.item for one in find_points("[(463, 599, 1.08)]", (1000, 1000), depth=True)] == [Point(0.463, 0.599)]
    found = find_points('[600, 400] [1, 2, 3, 4] {"x": 400, "y": 600}', swapped=True)
    assert [one.item for one in found] == [Point(400, 600), Box(2, 1, 4, 3), Point(400, 600)]


def test_boxes_count_where_there_are_no_points():
    assert scored_indices([Point(0.1, 0.1), Box(0, 0, 1, 1), Point(0.2, 0.2)]) == [0, 2]
    assert scored_indices([Box(0, 0, 1, 1), Box(0, 0, 0.5, 0.5)]) == [0, 1]


PIXELS = {
    "(320, 240)": Point(0.5, 0.5), "x=320, y=240": Point(0.5, 0.5), '{"y": 240, "x": 320}': Point(0.5, 0.5),
    '{"point_2d": [320, 240, 1.2]}': Point(0.5, 0.5), "[320, 240]": Point(0.5, 0.5),
    "(2, 2)": Point(2 / 640, 2 / 480), "(640, 480)": Point(1.0, 1.0), "(700, 20)": Point(700 / 640, 20 / 480),
    # not pixels: both must be integers above 1
    "(1, 1)": Point(1.0, 1.0), "(0, 0)": Point(0.0, 0.0), "(0, 1)": Point(0.0, 1.0), "(0, 300)": Point(0.0, 300.0),
    "(100, 0)": Point(100.0, 0.0), "(1, 300)": Point(1.0, 300.0), "(-5, 20)": Point(-5.0, 20.0),
    "(0.5, 240)": Point(0.5, 240.0), "(320, 0.5)": Point(320.0, 0.5), "(320.0, 240.0)": Point(320.0, 240.0),
    "(320., 240)": Point(320.0, 240.0), "(3e2, 2e2)": Point(300.0, 200.0),
    # boxes: the far corner decides
    "(64, 48, 320, 240)": Box(0.1, 0.1, 0.5, 0.5), "(320, 240, 64, 48)": Box(0.1, 0.1, 0.5, 0.5),
    "(0, 0, 320, 240)": Box(0.0, 0.0, 0.5, 0.5), "(0, 0, 1, 1)": Box(0.0, 0.0, 1.0, 1.0),
    "(0, 0, 320, 1)": Box(0.0, 0.0, 320.0, 1.0), "(0.1, 0, 320, 240)": Box(0.1, 0.0, 320.0, 240.0),
}  # fmt: skip


@pytest.mark.parametrize("text", PIXELS)
def test_pixels_with_a_size(text):
    assert parse_points(text, size=(640, 480)) == [PIXELS[text]]


@pytest.mark.parametrize("text", ["(320, 240)", "(0, 300)", "(-5, 20)", "(1e400, 0.5)", f"(0.5, {'9' * 5000})"])
def test_outside_points_are_kept_as_misses(text):
    (point,) = parse_points(text, None if text == "(320, 240)" else (640, 480))
    assert isinstance(point, Point) and not point.inside
    assert max(abs(point.x), abs(point.y)) <= LIMIT


@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_a_pixel_read_is_the_pixel_found_again(width, height, data):
    column, row = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    point = Point(column / width, row / height)
    assert point.to_pixel(width, height) == (column, row)
    if column > 1 and row > 1:
        assert parse_points(f"({column}, {row})", (width, height)) == [point]


@given(fractions, fractions, st.integers(1, 5000), st.integers(1, 5000))
def test_to_pixel_stays_in_the_image(x, y, width, height):
    column, row = Point(x, y).to_pixel(width, height)
    assert 0 <= column < width and 0 <= row < height


def test_pixels_and_center():
    assert Box(0.2, 0.3, 0.6, 0.5).center == Point(0.4, 0.4)
    assert Point(0.5, 0.25).to_pixels(640, 480) == (320, 120)
    assert Box(0.5, 0.25, 1.0, 1.5).to_pixels(640, 480) == (320, 120, 640, 720)
    assert Point(1.0, 1.0).to_pixel(640, 480) == (639, 479)
    for outside in (Point(-1e-9, 0.5), Point(0.5, 1.0000001)):
        assert not outside.inside and outside.to_pixel(640, 480) is None


@given(*[coordinates] * 4)
@example(5e-324, 5e-324, 5e-324, 5e-324)
def test_reversed_corners_are_put_right(x0, y0, x1, y1):
    box = Box(x0, y0, x1, y1)
    assert box == Box(x1, y1, x0, y0) == Box(x0, y1, x1, y0)
    assert box.x0 <= box.center.x <= box.x1 and box.y0 <= box.center.y <= box.y1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind, others", [(Point, [0.5]), (Box, [0.1, 0.1, 0.2])])
def test_coordinates_are_finite(kind, others, value):
    with pytest.raises(ValueError, match="finite"):
        kind(*others, value)


# What is repeated, and what stands before it: nested and unfinished tuples, and numbers and blanks without an end.
ADVERSARIAL = [
    ("", "("), ("", "( "), ("", "(1, "), ("", "(1, 1, 1, 1, 1, "), ("", "((-.5e1,"), ("", "(0.5, 0.5)"),
    ("", "(0.5, 0.5)  %"), ("(", "1"), ("(0.5, 0.", "1"), ("(1e", "9"), ("(0.5,", " "), ("(0.5, 0.5)", " "),
    ("(", "1,"), ("[", "0.5 , "), ("", "x=1, "), ("", "x=0.5, y=0.5"), ("", '"x": 0.5 , "y" : 0.5 , "z"'),
    ("x=", " "), ("x=0.5, y=0.5", " "), ("x=0.", "5"), ("", "'\"x"), ("", "\\left("), ("", "(**0.5**, "),
    ("", '"point_2d": [1, 2, 3]'), ("", "（0.5，"),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "pattern"), ADVERSARIAL)
def test_reading_is_linear(prefix, pattern):
    assert_linear(lambda text: parse_points(text, (640, 480)), prefix + pattern * (1_000_000 // len(pattern)))
