"""The report in Chromium: it filters, sorts and opens a panel; nothing acts, nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_by_hand import COR, EVIL, make_run, write_compared

from trace_vlm.core.reasoning import parse
from trace_vlm.drawing.figures import AnswerPanel
from trace_vlm.drawing.overlay import dot_style
from trace_vlm.report import page as report
from trace_vlm.report.comparison import ModelScore
from trace_vlm.utils.command import run


class Opened:
    """A page with what it asked for and what went wrong on it."""

    def __init__(self, browser: Any, file: Path, width: int = 1300) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.requests: list[str] = []
        self.troubles: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.goto(file.as_uri())


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"))
    assert run(report.main, ["--run", str(folder), "--title", f"Nano {EVIL}"]) == 0
    return folder / "report.html"


def page_of(folder: Path, panels: dict[str, list[AnswerPanel]], scores: list[ModelScore]) -> Path:
    write_compared(folder, panels, scores)
    (folder / "report.html").write_text(report.render("Compared", comparison=folder))
    return folder / "report.html"


def answers(first: float, second: float) -> list[AnswerPanel]:
    return [
        AnswerPanel("a", parse(COR), first, outcome="right" if first else "wrong direction"),
        AnswerPanel("b", parse("(0.2, 0.5)"), second, outcome="right" if second else "unparsable"),
    ]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    panels = {"seen": answers(1, 1), "unseen": answers(0, 1), "other": answers(0, 0)}
    scores = [
        ModelScore("a", 3, 1 / 3, (("right", 1),), 0.3, 10, 7),
        ModelScore("b", 3, 2 / 3, (("right", 2),), 0.2, 10),
    ]
    return page_of(tmp_path_factory.mktemp("compared"), panels, scores)


@pytest.fixture
def opened(browser: Any, compared: Path) -> Iterator[Any]:
    found = Opened(browser, compared)
    yield found.page
    assert found.troubles == []
    found.page.close()


def instructions(page: Any) -> list[str]:
    return [text.removeprefix("Point at thing ") for text in page.locator(".tile > p").all_inner_texts()]


@pytest.mark.parametrize("width", [1300, 700, 390])
def test_the_page_shows_what_was_written_and_nothing_acts(browser: Any, run_page: Path, width: int) -> None:
    found = Opened(browser, run_page, width)
    page = found.page
    assert page.title() == f"Nano {EVIL}"
    assert [url for url in found.requests if not url.startswith("data:")] == [run_page.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tile").first.click()
    answers = page.locator("dialog .answer")
    assert answers.count() == 3 and page.locator("dialog .strip figure").count() == 5
    assert EVIL in answers.nth(1).inner_text() and "step missing" in page.locator("dialog .strip").inner_text()
    assert page.evaluate("document.images.length === 0 || [...document.images].every(i => i.naturalWidth > 0)")
    assert found.troubles == []
    page.close()


def test_a_text_that_got_into_the_page_as_markup_would_still_not_run(browser: Any, run_page: Path) -> None:
    found = Opened(browser, run_page)
    found.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    found.page.evaluate("""() => { const s = document.createElement('script');
                           s.textContent = "document.title = 'harmed'";
                           document.body.append(s); }""")
    found.page.wait_for_timeout(200)
    assert found.page.title() == f"Nano {EVIL}"
    found.page.close()


def test_questions_are_filtered_and_sorted(opened: Any) -> None:
    assert instructions(opened) == ["0.", "1.", "2."]
    assert not opened.locator("#more").is_visible()  # all of them are shown
    opened.get_by_label("category").select_option("unseen")
    assert instructions(opened) == ["1."] and "1 of 3 questions" in opened.locator("#filters").inner_text()
    opened.get_by_label("category").select_option("all")
    opened.get_by_label("outcome").select_option("wrong direction")
    assert instructions(opened) == ["1.", "2."]
    opened.get_by_label("outcome").select_option("all")
    opened.get_by_label("accuracy").select_option("models disagree")
    assert instructions(opened) == ["1."]
    opened.get_by_label("accuracy").select_option("any accuracy")
    for order, expected in [("worst first", "210"), ("best first", "012"), ("most disagreement", "102")]:
        opened.get_by_label("order").select_option(order)
        assert [text[0] for text in instructions(opened)] == list(expected)
    opened.get_by_label("search").fill("thing 2")
    assert instructions(opened) == ["2."]


def test_a_click_opens_the_panel_and_the_arrow_keys_lead_on(opened: Any) -> None:
    opened.locator(".tile").nth(1).click()
    panel = opened.locator("dialog")
    assert "Point at thing 1." in panel.inner_text() and "1. Identify the reference object" in panel.inner_text()
    assert "0% in the target" in panel.inner_text() and "wrong direction" in panel.inner_text()
    shot = Image.open(BytesIO(panel.locator("svg.picture").first.screenshot())).convert("RGB")
    pixels = np.asarray(shot).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    rows, columns = np.nonzero(red[:, : shot.width // 2])
    assert columns.mean() / shot.width == pytest.approx(0.2, abs=0.02)  # the point (0.2, 0.5)
    assert rows.mean() / shot.height == pytest.approx(0.5, abs=0.03)
    opened.keyboard.press("ArrowRight")
    assert "Point at thing 2." in panel.inner_text() and opened.evaluate("location.hash") == "#q=2"
    opened.keyboard.press("ArrowRight")  # the last one
    assert "Point at thing 2." in panel.inner_text()
    opened.keyboard.press("Escape")
    assert not panel.is_visible() and opened.evaluate("location.hash") == ""


def test_heat_lies_where_the_model_looked(browser: Any, run_page: Path) -> None:
    found = Opened(browser, run_page)
    found.page.locator(".tile").first.click()
    canvas = found.page.locator("dialog .strip figure").nth(2).locator("canvas")
    alpha = canvas.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3)"
    )
    size = canvas.evaluate("c => [c.width, c.height]")
    opacity = np.array(alpha).reshape(size[1], size[0])
    assert opacity[0, 0] > 1.5 * opacity[-1, -1] > 0  # the hot cell is the square's top left one
    found.page.close()


def test_a_new_address_opens_its_question_whatever_the_filters_hide(opened: Any) -> None:
    opened.evaluate("location.hash = '#q=0'")
    opened.wait_for_function("document.querySelector('#panel h3')?.textContent === 'Point at thing 0.'")
    opened.keyboard.press("Escape")
    opened.locator("#filters input").fill("thing 2")
    opened.evaluate("location.hash = '#q=1'")
    opened.wait_for_function("document.querySelector('#panel h3')?.textContent === 'Point at thing 1.'")


def test_a_box_that_leaves_the_image_stays_open_at_its_edge(browser: Any, tmp_path: Path) -> None:
    panel = AnswerPanel("box", parse("(0.5, 0.5, 1.5, 0.8)"))
    page = Opened(browser, page_of(tmp_path, {"seen": [panel]}, [ModelScore("box", 1, None)])).page
    box = page.locator(".tile rect.box")
    assert (box.get_attribute("x"), box.get_attribute("width")) == ("200", "400")  # its right side is beyond 400
    cut = "box => getComputedStyle(box.parentNode).overflow + ' ' + box.parentNode.getAttribute('width')"
    assert box.evaluate(cut) == "hidden 400"
    page.close()


INSIDE = """(all) => all.map((one) => {
    const {left, right, width} = one.getBoundingClientRect();
    let scrolled = false;
    for (let box = one; box; box = box.parentElement) {
        scrolled ||= getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth;
    }
    return !scrolled && width > 0 && left >= 0 && right <= document.documentElement.clientWidth;
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_charts_show_every_model_without_scrolling(browser: Any, run_page: Path, width: int) -> None:
    found = Opened(browser, run_page, width)
    chart = found.page.get_by_label("Accuracy by part of the benchmark")
    assert chart.locator(".point").count() == chart.locator(".values > div").count() == 6  # 2 models, 3 parts
    for one in (".point", ".values > div", ".name", ".ticks span", ".guess"):
        assert all(chart.locator(one).evaluate_all(INSIDE)), one
    charts = found.page.locator(".panels img")
    assert charts.count() == 8 and all(charts.evaluate_all(INSIDE))
    (track, *_), places, ticks = (
        chart.locator(one).evaluate_all(
            "all => all.map(one => [one.getBoundingClientRect()].map(r => [r.x, r.width])[0])"
        )
        for one in (".track", ".point", ".ticks span")
    )
    shown, axis = ([100 * (x + wide / 2 - track[0]) / track[1] for x, wide in some] for some in (places, ticks))
    assert shown == pytest.approx([50, 50, 50, 100, 50, 0], abs=1.0)  # as in the table
    assert axis == pytest.approx([0, 20, 40, 60, 80, 100], abs=1.0)
    found.page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_attention_panels_can_be_read_and_units_are_named(browser: Any, run_page: Path, width: int) -> None:
    found = Opened(browser, run_page, width)
    panels = found.page.locator("#attention .panels figure")
    assert panels.count() == 5
    for place in range(5):
        high = (
            panels.nth(place).locator("text").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
        )
        assert min(high) >= 12 * (830 / 1280 if width == 390 else 1)
        boxes = (
            panels.nth(place)
            .locator("text")
            .evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        )
        names = [box for box in boxes if box["y"] > max(one["y"] for one in boxes) - 3]
        assert len(names) == 5 and all(one["right"] < other["left"] for one, other in pairwise(names))
        assert re.search("share|fraction|longer sides", panels.nth(place).locator("figcaption span").inner_text())
    found.page.close()


def test_the_page_of_a_comparison_gives_each_models_mean_accuracy(opened: Any) -> None:
    cards = [text.split("\n") for text in opened.locator("#means .card").all_inner_texts()]
    benchmark, here = "of all 10 questions of the benchmark", "of the 3 questions on this page"
    assert [[line for line in card if line] for card in cards] == [
        ["a", "30.0 %", f"{benchmark} (7 not answered)", "33.3 %", here],
        ["b", "20.0 %", benchmark, "66.7 %", here],
    ]


def test_a_model_has_one_color_in_legend_cards_tiles_and_panels(opened: Any) -> None:
    def colors(where: str, style: str = "backgroundColor") -> list[str]:
        return opened.locator(where).evaluate_all(f"all => all.map(one => getComputedStyle(one).{style})")

    first, second = colors("#answers .key i")[1:]
    assert first != second
    assert colors("#means .card", "borderTopColor") == [first, second]
    tile = ".tile:first-child"
    assert colors(f"{tile} .swatch") == [first, second] == colors(f"{tile} .dot", "fill")
    opened.locator(".tile").first.click()
    assert colors("dialog h4 .swatch") == [first, second] == colors("dialog .answer .dot", "fill")


def test_points_over_attention_have_the_color_of_their_model(browser: Any, run_page: Path) -> None:
    found = Opened(browser, run_page)
    found.page.locator(".tile").first.click()
    color = "all => [...new Set(all.map(one => getComputedStyle(one).{}))]"
    (model,) = found.page.locator("#attention .key i").first.evaluate_all(color.format("backgroundColor"))
    assert found.page.locator("dialog .over .dot").evaluate_all(color.format("fill")) == [model]
    assert found.page.locator("dialog .answer").nth(0).locator(".dot").evaluate_all(color.format("fill")) == [model]
    found.page.close()


def test_a_thousand_points_are_small_and_faint(browser: Any, tmp_path: Path) -> None:
    many = ", ".join(f"({x:.3f}, {y:.3f})" for x, y in np.random.default_rng(0).random((1000, 2)))
    panels = [AnswerPanel("many", parse(f"[{many}]")), AnswerPanel("one", parse("(0.5, 0.5)"))]
    scores = [ModelScore("many", 1, None), ModelScore("one", 1, None)]
    page = Opened(browser, page_of(tmp_path, {"seen": panels}, scores)).page
    page.locator(".tile").first.click()
    look = """one => [one.getAttribute("r"), ...["strokeWidth", "fillOpacity", "strokeOpacity"].map(
              name => getComputedStyle(one)[name])].map(parseFloat)"""
    many_look, one_look = (page.locator("dialog .answer").nth(at).locator(".dot").first.evaluate(look) for at in (0, 1))
    assert one_look == [7, 2.2, 1, 1]
    size, alpha = dot_style(1000)
    assert many_look == pytest.approx([7 * size, 2.2 * size, alpha, alpha], rel=1e-3) and size < 0.4 and alpha < 0.6
    page.close()


def test_chinese_has_fonts_of_its_own_in_the_style(opened: Any) -> None:
    used = opened.evaluate(
        "[document.body, document.querySelector('dialog')].map(one => getComputedStyle(one).fontFamily)"
    )
    assert all("Noto Sans CJK" in one and "WenQuanYi" in one for one in used)
