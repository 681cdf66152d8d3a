"""The report in Chromium: it filters, sorts and opens a panel; nothing acts, nothing is loaded from elsewhere."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from report_by_hand import COR, EVIL, make_run
from small_benchmark import left_half, picture

from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import Question
from trace_vlm.drawing.figures import AnswerPanel
from trace_vlm.drawing.overlay import dot_style
from trace_vlm.report import page as report
from trace_vlm.report.comparison import ModelScore, write_comparison, write_panels
from trace_vlm.utils.command import run


@pytest.fixture
def open_page(browser):
    """Opens a file at a width; whatever it asks for or complains about is refused at the end."""
    troubles, pages = [], []

    def open_file(file, width=1300):
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        allowed = (file.as_uri(), "data:")
        page.on("request", lambda request: request.url.startswith(allowed) or troubles.append(request.url))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()
    assert troubles == []


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"))
    assert run(report.main, ["--run", str(folder), "--title", f"Nano {EVIL}"]) == 0
    return folder / "report.html"


def page_of(folder, panels, scores=None):
    """The page of a comparison: category -> the panels of one question."""
    items = [
        write_panels(folder, Question(number, f"{number}.png", f"Point at thing {number}.", category),
                     picture(number), left_half(), of_question, drawn=False)
        for number, (category, of_question) in enumerate(panels.items())
    ]  # fmt: skip
    write_comparison(folder, scores or [ModelScore(panel.label, 1, None) for panel in panels["seen"]], items)
    (folder / "report.html").write_text(report.render("Compared", comparison=folder))
    return folder / "report.html"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    panels = {
        category: [AnswerPanel("a", parse(COR), first, outcome="right" if first else "wrong direction"),
                   AnswerPanel("b", parse("(0.2, 0.5)"), second, outcome="right" if second else "unparsable")]
        for category, first, second in (("seen", 1, 1), ("unseen", 0, 1), ("other", 0, 0))
    }  # fmt: skip
    scores = [ModelScore("a", 3, 1 / 3, (("right", 1),), 0.3, 10, 7), ModelScore("b", 3, 2 / 3, (), 0.2, 10)]
    return page_of(tmp_path_factory.mktemp("compared"), panels, scores)


def styles(where, name="backgroundColor"):
    """The different values of a computed style."""
    return list(dict.fromkeys(where.evaluate_all(f"all => all.map(one => getComputedStyle(one).{name})")))


@pytest.mark.parametrize("width", [1300, 700, 390])
def test_the_page_shows_what_was_written_and_nothing_acts(open_page, run_page, width):
    page = open_page(run_page, width)
    assert page.title() == f"Nano {EVIL}"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tile").first.click()
    panels = page.locator("dialog .answer")
    assert panels.count() == 3 and page.locator("dialog .strip figure").count() == 5
    assert EVIL in panels.nth(1).inner_text() and "step missing" in page.locator("dialog .strip").inner_text()
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_markup_in_the_page_would_still_not_run(browser, run_page):
    page = browser.new_page()  # its requests and errors are expected
    page.goto(run_page.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.evaluate("""() => { const s = document.createElement('script');
                     s.textContent = "document.title = 'harmed'";
                     document.body.append(s); }""")
    page.wait_for_timeout(200)
    assert page.title() == f"Nano {EVIL}"
    page.close()


def test_questions_are_filtered_and_sorted(open_page, compared):
    page = open_page(compared)

    def shown():
        texts = page.locator(".tile > p").all_inner_texts()
        return "".join(text.removeprefix("Point at thing ").rstrip(".") for text in texts)

    assert shown() == "012"
    assert not page.locator("#more").is_visible()  # all of them are shown
    for filtered, choice, every, expected in [
        ("category", "unseen", "all", "1"),
        ("outcome", "wrong direction", "all", "12"),
        ("accuracy", "models disagree", "any accuracy", "1"),
        ("order", "worst first", "as given", "210"),
        ("order", "best first", "as given", "012"),
        ("order", "most disagreement", "as given", "102"),
    ]:
        page.get_by_label(filtered).select_option(choice)
        assert shown() == expected and f"{len(expected)} of 3" in page.locator("#filters").inner_text()
        page.get_by_label(filtered).select_option(every)
    page.get_by_label("search").fill("thing 2")
    assert shown() == "2"
    page.evaluate("location.hash = '#q=1'")  # opens its question though the search hides it
    page.wait_for_function("document.querySelector('#panel h3')?.textContent === 'Point at thing 1.'")


def test_a_click_opens_the_panel_and_the_arrow_keys_move_on(open_page, compared):
    page = open_page(compared)
    page.locator(".tile").nth(1).click()
    panel = page.locator("dialog")
    for text in ("Point at thing 1.", "1. Identify the reference object", "0% in the target", "wrong direction"):
        assert text in panel.inner_text()
    shot = Image.open(BytesIO(panel.locator("svg.picture").first.screenshot())).convert("RGB")
    pixels = np.asarray(shot).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    rows, columns = np.nonzero(red[:, : shot.width // 2])
    assert columns.mean() / shot.width == pytest.approx(0.2, abs=0.02)  # the point (0.2, 0.5)
    assert rows.mean() / shot.height == pytest.approx(0.5, abs=0.03)
    for _ in range(2):  # the second finds no further question
        page.keyboard.press("ArrowRight")
        assert "Point at thing 2." in panel.inner_text() and page.evaluate("location.hash") == "#q=2"
    page.keyboard.press("Escape")
    assert not panel.is_visible() and page.evaluate("location.hash") == ""


def test_heat_is_where_the_model_looked_under_points_of_its_color(open_page, run_page):
    page = open_page(run_page)
    page.locator(".tile").first.click()
    canvas = page.locator("dialog .strip figure").nth(2).locator("canvas")
    alpha = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3)"
    opacity = canvas.evaluate(alpha)
    assert opacity[0] > 1.5 * opacity[-1] > 0  # the hot cell is the square's top left one
    model = styles(page.locator("#attention .key i").first)
    assert styles(page.locator("dialog .over .dot"), "fill") == model
    assert styles(page.locator("dialog .answer").nth(0).locator(".dot"), "fill") == model


def test_a_box_that_leaves_the_image_stays_open_at_its_edge(open_page, tmp_path):
    page = open_page(page_of(tmp_path, {"seen": [AnswerPanel("box", parse("(0.5, 0.5, 1.5, 0.8)"))]}))
    box = page.locator(".tile rect.box")
    assert (box.get_attribute("x"), box.get_attribute("width")) == ("200", "400")  # its right side is beyond 400
    cut = "box => getComputedStyle(box.parentNode).overflow + ' ' + box.parentNode.getAttribute('width')"
    assert box.evaluate(cut) == "hidden 400"


INSIDE = """(all) => all.map((one) => {
    const {left, right, width} = one.getBoundingClientRect();
    let scrolled = false;
    for (let box = one; box; box = box.parentElement) {
        scrolled ||= getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth;
    }
    return !scrolled && width > 0 && left >= 0 && right <= document.documentElement.clientWidth;
})"""
CENTERS = """(all) => all.map((one) => {
    const [{x, width}, whole] = [one, document.querySelector(".track")].map((each) => each.getBoundingClientRect());
    return 100 * (x + width / 2 - whole.x) / whole.width;
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_charts_show_every_model_without_scrolling(open_page, run_page, width):
    page = open_page(run_page, width)
    chart = page.get_by_label("Accuracy by part of the benchmark")
    assert chart.locator(".point").count() == chart.locator(".values > div").count() == 6  # 2 models, 3 parts
    for part in (".point", ".values > div", ".name", ".ticks span", ".guess"):
        assert all(chart.locator(part).evaluate_all(INSIDE)), part
    for part, expected in ((".point", [50, 50, 50, 100, 50, 0]), (".ticks span", [0, 20, 40, 60, 80, 100])):
        assert chart.locator(part).evaluate_all(CENTERS) == pytest.approx(expected, abs=1.0)  # in percent
    charts = page.locator(".panels img")
    assert charts.count() == 8 and all(charts.evaluate_all(INSIDE))


def test_a_comparison_gives_each_model_its_mean_accuracy_and_color(open_page, compared):
    page = open_page(compared)
    cards = [text.split("\n") for text in page.locator("#means .card").all_inner_texts()]
    benchmark, here = "of all 10 questions of the benchmark", "of the 3 questions on this page"
    assert [[line for line in card if line] for card in cards] == [
        ["a", "30.0 %", f"{benchmark} (7 not answered)", "33.3 %", here],
        ["b", "20.0 %", benchmark, "66.7 %", here],
    ]
    colors = styles(page.locator("#answers .key i"))[1:]
    assert len(colors) == 2 and styles(page.locator("#means .card"), "borderTopColor") == colors
    tile, panel = page.locator(".tile").first, page.locator("dialog")
    tile.click()
    assert styles(tile.locator(".swatch")) == styles(panel.locator("h4 .swatch")) == colors
    assert styles(tile.locator(".dot"), "fill") == styles(panel.locator(".answer .dot"), "fill") == colors
    (fonts,) = {*styles(page.locator("body"), "fontFamily"), *styles(panel, "fontFamily")}
    assert "Noto Sans CJK" in fonts and "WenQuanYi" in fonts


def test_a_thousand_points_are_small_and_faint(open_page, tmp_path):
    many = ", ".join(f"({x:.3f}, {y:.3f})" for x, y in np.random.default_rng(0).random((1000, 2)))
    panels = [AnswerPanel("many", parse(f"[{many}]")), AnswerPanel("one", parse("(0.5, 0.5)"))]
    page = open_page(page_of(tmp_path, {"seen": panels}))
    page.locator(".tile").first.click()
    look = """one => [one.getAttribute("r"), ...["strokeWidth", "fillOpacity", "strokeOpacity"].map(
              name => getComputedStyle(one)[name])].map(parseFloat)"""
    many_look, one_look = (page.locator("dialog .answer").nth(at).locator(".dot").first.evaluate(look) for at in (0, 1))
    assert one_look == [7, 2.2, 1, 1]
    size, alpha = dot_style(1000)
    assert many_look == pytest.approx([7 * size, 2.2 * size, alpha, alpha], rel=1e-3) and size < 0.4 and alpha < 0.6
