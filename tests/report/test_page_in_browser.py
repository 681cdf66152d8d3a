"""The report in Chromium: it filters, sorts and opens a panel; nothing acts, nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
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


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file at a width; whatever it asks for or complains about is refused at the end."""
    troubles: list[str] = []
    pages: list[Any] = []

    def open_file(file: Path, width: int = 1300) -> Any:
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


@pytest.mark.parametrize("width", [1300, 700, 390])
def test_the_page_shows_what_was_written_and_nothing_acts(open_page: Any, run_page: Path, width: int) -> None:
    page = open_page(run_page, width)
    assert page.title() == f"Nano {EVIL}"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tile").first.click()
    panels = page.locator("dialog .answer")
    assert panels.count() == 3 and page.locator("dialog .strip figure").count() == 5
    assert EVIL in panels.nth(1).inner_text() and "step missing" in page.locator("dialog .strip").inner_text()
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_markup_in_the_page_would_still_not_run(browser: Any, run_page: Path) -> None:
    page = browser.new_page()  # its requests and errors are expected
    page.goto(run_page.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.evaluate("""() => { const s = document.createElement('script');
                     s.textContent = "document.title = 'harmed'";
                     document.body.append(s); }""")
    page.wait_for_timeout(200)
    assert page.title() == f"Nano {EVIL}"
    page.close()


def test_questions_are_filtered_and_sorted(open_page: Any, compared: Path) -> None:
    page = open_page(compared)

    def shown() -> list[str]:
        texts = page.locator(".tile > p").all_inner_texts()
        return [text.removeprefix("Point at thing ").rstrip(".") for text in texts]

    assert shown() == ["0", "1", "2"]
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
        assert shown() == list(expected) and f"{len(expected)} of 3" in page.locator("#filters").inner_text()
        page.get_by_label(filtered).select_option(every)
    page.get_by_label("search").fill("thing 2")
    assert shown() == ["2"]
    page.evaluate("location.hash = '#q=1'")  # opens its question though the search hides it
    page.wait_for_function("document.querySelector('#panel h3')?.textContent === 'Point at thing 1.'")


def test_a_click_opens_the_panel_and_the_arrow_keys_move_on(open_page: Any, compared: Path) -> None:
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


def test_heat_is_where_the_model_looked_under_points_of_its_color(open_page: Any, run_page: Path) -> None:
    page = open_page(run_page)
    page.locator(".tile").first.click()
    canvas = page.locator("dialog .strip figure").nth(2).locator("canvas")
    alpha = canvas.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3)"
    )
    width, height = canvas.evaluate("c => [c.width, c.height]")
    opacity = np.array(alpha).reshape(height, width)
    assert opacity[0, 0] > 1.5 * opacity[-1, -1] > 0  # the hot cell is the square's top left one
    color = "all => [...new Set(all.map(one => getComputedStyle(one).{}))]"
    (model,) = page.locator("#attention .key i").first.evaluate_all(color.format("backgroundColor"))
    assert page.locator("dialog .over .dot").evaluate_all(color.format("fill")) == [model]
    assert page.locator("dialog .answer").nth(0).locator(".dot").evaluate_all(color.format("fill")) == [model]


def test_a_box_that_leaves_the_image_stays_open_at_its_edge(open_page: Any, tmp_path: Path) -> None:
    panel = AnswerPanel("box", parse("(0.5, 0.5, 1.5, 0.8)"))
    page = open_page(page_of(tmp_path, {"seen": [panel]}, [ModelScore("box", 1, None)]))
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


@pytest.mark.parametrize("width", [1280, 390])
def test_the_charts_show_every_model_without_scrolling(open_page: Any, run_page: Path, width: int) -> None:
    page = open_page(run_page, width)
    chart = page.get_by_label("Accuracy by part of the benchmark")
    assert chart.locator(".point").count() == chart.locator(".values > div").count() == 6  # 2 models, 3 parts
    for one in (".point", ".values > div", ".name", ".ticks span", ".guess"):
        assert all(chart.locator(one).evaluate_all(INSIDE)), one
    (track, *_), places, ticks = (
        chart.locator(one).evaluate_all(
            "all => all.map(one => [one.getBoundingClientRect()].map(r => [r.x, r.width])[0])"
        )
        for one in (".track", ".point", ".ticks span")
    )
    shown, axis = ([100 * (x + wide / 2 - track[0]) / track[1] for x, wide in some] for some in (places, ticks))
    assert shown == pytest.approx([50, 50, 50, 100, 50, 0], abs=1.0)  # as in the table
    assert axis == pytest.approx([0, 20, 40, 60, 80, 100], abs=1.0)
    charts = page.locator(".panels img")
    assert charts.count() == 8 and all(charts.evaluate_all(INSIDE))


def test_a_comparison_gives_each_model_its_mean_accuracy_and_color(open_page: Any, compared: Path) -> None:
    page = open_page(compared)
    cards = [text.split("\n") for text in page.locator("#means .card").all_inner_texts()]
    benchmark, here = "of all 10 questions of the benchmark", "of the 3 questions on this page"
    assert [[line for line in card if line] for card in cards] == [
        ["a", "30.0 %", f"{benchmark} (7 not answered)", "33.3 %", here],
        ["b", "20.0 %", benchmark, "66.7 %", here],
    ]

    def colors(where: str, style: str = "backgroundColor") -> list[str]:
        return page.locator(where).evaluate_all(f"all => all.map(one => getComputedStyle(one).{style})")

    first, second = colors("#answers .key i")[1:]
    assert first != second
    assert colors("#means .card", "borderTopColor") == [first, second]
    tile = ".tile:first-child"
    assert colors(f"{tile} .swatch") == [first, second] == colors(f"{tile} .dot", "fill")
    page.locator(".tile").first.click()
    assert colors("dialog h4 .swatch") == [first, second] == colors("dialog .answer .dot", "fill")
    used = page.evaluate(
        "[document.body, document.querySelector('dialog')].map(one => getComputedStyle(one).fontFamily)"
    )
    assert all("Noto Sans CJK" in one and "WenQuanYi" in one for one in used)


def test_a_thousand_points_are_small_and_faint(open_page: Any, tmp_path: Path) -> None:
    many = ", ".join(f"({x:.3f}, {y:.3f})" for x, y in np.random.default_rng(0).random((1000, 2)))
    panels = [AnswerPanel("many", parse(f"[{many}]")), AnswerPanel("one", parse("(0.5, 0.5)"))]
    page = open_page(page_of(tmp_path, {"seen": panels}, [ModelScore("many", 1, None), ModelScore("one", 1, None)]))
    page.locator(".tile").first.click()
    look = """one => [one.getAttribute("r"), ...["strokeWidth", "fillOpacity", "strokeOpacity"].map(
              name => getComputedStyle(one)[name])].map(parseFloat)"""
    many_look, one_look = (page.locator("dialog .answer").nth(at).locator(".dot").first.evaluate(look) for at in (0, 1))
    assert one_look == [7, 2.2, 1, 1]
    size, alpha = dot_style(1000)
    assert many_look == pytest.approx([7 * size, 2.2 * size, alpha, alpha], rel=1e-3) and size < 0.4 and alpha < 0.6
