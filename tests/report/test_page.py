"""The report: everything given is on the page, nothing on it can act or is loaded from elsewhere; in Chromium it reacts."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from report_by_hand import COR, EVIL, INSTRUCTION, make_run
from small_benchmark import left_half, picture

from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import Question
from trace_vlm.drawing.canvas import save_thumbnail
from trace_vlm.drawing.figures import AnswerPanel
from trace_vlm.drawing.overlay import dot_style
from trace_vlm.eval import tables
from trace_vlm.report import explorer, page_sections
from trace_vlm.report import page as report
from trace_vlm.report.comparison import ComparedQuestion, ModelAnswer, ModelScore, write_comparison, write_panels
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run_page(run_folder):
    assert run(report.main, ["--run", str(run_folder), "--title", f"Nano {EVIL}"]) == 0
    return run_folder / "report.html"


@pytest.fixture(scope="module")
def html(run_page):
    return run_page.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags, the event handlers, the addresses that a page would load, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.handlers, self.loads, words = set(), [], [], []
        self.handle_data = words.append
        self.feed(html)
        self.text = " ".join(" ".join(words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        self.loads += [value for name, value in attrs if name in loading and value]


def embedded(html):
    """The data of the page's script, as text."""
    return html.partition('id="items">')[2].partition("</script>")[0]


def test_texts_are_never_markup_and_only_the_pages_own_script_may_run(html):
    read = Reader(html)
    assert not {"iframe", "object", "embed", "link", "form"} & read.tags and read.handlers == []
    assert re.findall(r"<script[^>]*>", html) == ['<script type="application/json" id="items">', "<script>"]
    assert "<b>mug</b>" not in html and html.count(str(escape(EVIL))) > 10
    assert "<script>document.title" in read.text and INSTRUCTION in read.text
    assert not set("<>&") & set(embedded(html))
    items = json.loads(embedded(html))
    assert items["questions"][0]["answers"][1]["text"] == EVIL and items["labels"][0] == EVIL
    assert "default-src 'none'" in html and "'unsafe-inline'" not in html.partition("script-src")[2][:80]
    (named,) = re.findall(r"script-src 'sha256-([^']+)'", html)
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == named
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_nothing_is_loaded_from_elsewhere(html):
    loads = Reader(html).loads + [question["image"] for question in json.loads(embedded(html))["questions"]]
    assert not re.search(r"url\(|@import|https?://(?!example\.org|www\.w3\.org/2000/svg)", html)
    images = [load for load in loads if not load.startswith("#")]
    assert images and all(load.startswith("data:image/") for load in images)
    for load in images:
        assert base64.b64decode(load.partition(",")[2], validate=True)[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG")


def test_every_given_number_is_on_the_page(html, run_folder):
    read, summary = Reader(html), read_json(run_folder / "summary.json")
    words = [word for title, rows in tables.tables(summary) for row in [[title], *rows] for word in row]
    low, high = (100 * summary["models"][1]["accuracy"][0][end] for end in ("low", "high"))
    # of accuracy, attention, training, data (the last sample is the only one of its kind) and records
    words += [*tables.sentences(summary), f"{low:.1f} to {high:.1f}",
              "over 1 answers about 1 images", "undecided", "Define the target area in 1", "0.180",
              "0.005 matrices", "1,234", "4242", "5,678", "12 samples of data.json", f"{INSTRUCTION} 29.",
              "seed 77", "torch 2.13.0", "mujoco 4.0.0", "model_vqa --model", "--reasoning"]  # fmt: skip
    for word in words:
        assert " ".join(word.split()) in read.text, word
    assert "--overwrite" not in read.text and POINTS_SUFFIX not in read.text  # a flag that was not given
    charts = [load for load in read.loads if load.startswith("data:image/png")]
    assert len(charts) == 1 + 2 + 5 + 1  # accuracy by hops, outcomes, measures of attention (no named object), loss


def test_a_question_has_its_answers_its_attention_and_problems(html):
    (question,) = json.loads(embedded(html))["questions"]  # in both folders, and once on the page
    cor, plain, box = question["answers"]
    assert cor["steps"][1] == ["Define the target area", "Left of it."]
    assert cor["final"] == "[(0.200, 0.500), (1.400, 0.500)]"
    assert [len(answer["problems"]) for answer in (cor, plain, box)] == [1, 1, 0]
    assert (plain["accuracy"], plain["outcome"], plain["confidence"]) == (0.0, EVIL, 0.25)
    assert cor["items"] == [[0.2, 0.5], [1.4, 0.5]] and box["items"] == [[0.1, 0.2, 0.3, 0.4]]
    corners = np.array(question["outline"][0]).reshape(-1, 2)
    assert corners.min() < 5 and corners.max(axis=0) == pytest.approx([500, 1000], abs=5)
    attention, step = question["attention"], question["attention"]["steps"][2]
    assert attention["layers"] == "0, 2" and attention["steps"][1]["grid"] is None
    assert base64.b64decode(step["grid"]) == bytes([255, *[85] * 15])  # 0.03 is the top of the scale
    assert step["numbers"][0] == pytest.approx(0.18)
    assert attention["crop"] == pytest.approx([0, 1 / 6, 1, 2 / 3])  # 60 x 40 in its square


def test_a_model_has_one_color_on_the_page(run_folder, tmp_path):
    summary = read_json(run_folder / "summary.json")
    summary["models"].reverse()  # no_cor first, while the training runs are in the order of their names
    write_json(tmp_path / "summary.json", summary)
    for part in ("train", "comparison"):
        (tmp_path / part).symlink_to(run_folder / part)
    html = report.render("colors", tmp_path, tmp_path / "comparison")
    legend = {name: color for color, name in re.findall(r'<i style="background: (#\w+)"></i>([^<]*)</span>', html)}
    drawn = json.loads(embedded(html))["colors"]  # of the points, by the page's script
    assert drawn["cor"] == legend[str(escape(f"CoR {EVIL}"))] and drawn["no_cor"] == legend["no CoR"]
    assert all(drawn[name] == legend[name] for name in ("no CoR", "plain", "box"))
    assert len({drawn[name] for name in ("cor", "no_cor", "plain", "box")}) == 4
    assert (
        page_sections.colors(tmp_path / "summary.json", ["reasoning", "no CoR"], ["cor"])["no CoR"] == drawn["no CoR"]
    )


def test_a_thousand_questions_stay_below_50_megabytes(tmp_path, monkeypatch):
    noise = picture(1, (640, 480))  # no photograph takes more
    save_thumbnail(noise, tmp_path / "images/0.jpg")
    answers = tuple(ModelAnswer(label, COR * 3, 0.5, "right") for label in "ab")
    outline = (tuple((x / 200, x / 200) for x in range(200)),)
    fields = INSTRUCTION, "seen", None, (640, 480), "images/0.jpg", None, outline, answers
    items = [ComparedQuestion(number, *fields) for number in range(1000)]
    write_comparison(tmp_path, [ModelScore(label, 1000, 0.5) for label in "ab"], items)
    for limit in (60_000, 9_000, 3_000, explorer.ALL_IMAGES // 1000):
        jpeg = explorer.small_jpeg(noise, limit)
        assert len(base64.b64decode(jpeg.partition(",")[2])) <= limit
    monkeypatch.setattr(explorer, "open_image", lambda _: noise)  # read and measured once
    monkeypatch.setattr(explorer, "small_jpeg", lambda *_: jpeg)
    assert len(report.render("large", comparison=tmp_path)) < 50_000_000


def test_the_page_is_the_same_twice(run_folder, html, tmp_path):
    again = tmp_path / "b.html"
    assert run(report.main, ["--run", str(run_folder), "--title", f"Nano {EVIL}", "--out", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == html


def test_absent_parts_are_left_out_and_named(run_folder, tmp_path):
    write_json(tmp_path / "summary.json", read_json(run_folder / "summary.json"))
    assert run(report.main, ["--run", str(tmp_path)]) == 0
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    names = "comparison/index.json", "attention/*.json", "train/*/run.json", "data/data.json"
    assert all(name in read.text for name in names) and not {"dialog", "script"} & read.tags
    assert sum(not load.startswith("#accuracy") for load in read.loads) == 1  # the figure of accuracy by hops


@pytest.mark.parametrize(("name", "content"), [
    ("summary.json", {"models": []}), ("summary.json", {"models": [{}], "baselines": {}}), ("train/cor/run.json", []),
    ("comparison/index.json", {"items": [{"question_id": 1}], "scores": []}), ("attention/7.json", []),
    ("attention/summary.json", {"model": "m"}), ("bench/generate.json", "text"),
])  # fmt: skip
def test_a_broken_part_is_named(tmp_path, name, content, capsys):
    write_json(tmp_path / "run.json", {})
    write_json(tmp_path / name, content)
    assert run(report.main, ["--run", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_an_empty_folder_and_a_lost_picture_are_named(run_folder, tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert run(report.main, ["--run", str(folder)]) == 2 and str(folder) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "index.json", read_json(run_folder / "comparison/index.json"))
    with pytest.raises(InputError, match=r"images/.*\.jpg"):
        report.render("title", comparison=tmp_path)


def test_a_page_of_attention_alone_shows_success_rates(run_folder):
    explored = explorer.explorer(None, run_folder / "attention")
    assert list(explored.success()) == explored.attended and sum(explored.success()[explored.attended[0]].values()) > 0


def test_a_folder_of_answers_is_summarized_first(run_folder, tmp_path):
    folder = shutil.copytree(run_folder / "answers", tmp_path / "answers")
    assert run(report.main, ["--run", str(folder), "--data", str(run_folder / "bench")]) == 0
    labels = [model["label"] for model in read_json(folder / "summary.json")["models"]]
    assert labels == ["cor", "no_cor"] and 'id="accuracy"' in (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def open_page(browser):
    """Opens a file at a width; whatever it asks for or complains about is refused at the end."""
    troubles, pages = [], []

    def open_file(file, width=1300):
        pages.append(page := browser.new_page(viewport={"width": width, "height": 900}))
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


def page_of(folder, panels, scores=None):
    """The page of a comparison: category -> the panels of one question."""
    asked = [Question(number, f"{number}.png", f"Point at thing {number}.", name) for number, name in enumerate(panels)]
    items = [write_panels(folder, question, picture(question.question_id), left_half(), panels[question.category],
                          drawn=False) for question in asked]  # fmt: skip
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
    assert page.title() == f"Nano {EVIL}" and page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tile").first.click()
    panels = page.locator("dialog .answer")
    assert panels.count() == 3 and page.locator("dialog .strip figure").count() == 5
    assert EVIL in panels.nth(1).inner_text() and "step missing" in page.locator("dialog .strip").inner_text()
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_markup_in_the_page_would_still_not_run(browser, run_page):
    page = browser.new_page()  # its requests and errors are expected
    page.goto(run_page.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    script = "Object.assign(document.createElement('script'), {textContent: 'document.title = 2'})"
    page.evaluate(f"document.body.append({script})")
    page.wait_for_timeout(200)
    assert page.title() == f"Nano {EVIL}"
    page.close()


def test_questions_are_filtered_and_sorted(open_page, compared):
    page = open_page(compared)

    def shown():
        texts = page.locator(".tile > p").all_inner_texts()
        return "".join(text.removeprefix("Point at thing ").rstrip(".") for text in texts)

    assert shown() == "012" and not page.locator("#more").is_visible()  # all of them are shown
    for filtered, choice, every, expected in [
        ("category", "unseen", "all", "1"), ("outcome", "wrong direction", "all", "12"),
        ("accuracy", "models disagree", "any accuracy", "1"), ("order", "worst first", "as given", "210"),
        ("order", "best first", "as given", "012"), ("order", "most disagreement", "as given", "102"),
    ]:  # fmt: skip
        page.get_by_label(filtered).select_option(choice)
        assert shown() == expected and f"{len(expected)} of 3" in page.locator("#filters").inner_text()
        page.get_by_label(filtered).select_option(every)
    page.get_by_label("search").fill("thing 2")
    assert shown() == "2"
    page.evaluate("location.hash = '#q=1'")  # opens its question though the search hides it
    page.locator("#panel h3").filter(
        has_text="Point at thing 1."
    ).wait_for()  # the page's policy allows no other waiting


def test_a_click_opens_the_panel_and_the_arrow_keys_move_on(open_page, compared):
    page = open_page(compared)
    page.locator(".tile").nth(1).click()
    panel = page.locator("dialog")
    words = "Point at thing 1.", "1. Identify the reference object", "0% in the target", "wrong direction"
    assert all(text in panel.inner_text() for text in words)
    shot = Image.open(BytesIO(panel.locator("svg.picture").first.screenshot())).convert("RGB")
    pixels = np.asarray(shot).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    rows, columns = np.nonzero(red[:, : shot.width // 2])  # the point (0.2, 0.5)
    assert (columns.mean() / shot.width, rows.mean() / shot.height) == pytest.approx((0.2, 0.5), abs=0.02)
    for _ in range(2):  # the second finds no further question
        page.keyboard.press("ArrowRight")
        assert "Point at thing 2." in panel.inner_text() and page.evaluate("location.hash") == "#q=2"
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "#q" not in url)
    assert not panel.is_visible()


def test_heat_is_where_the_model_looked_under_points_of_its_color(open_page, run_page):
    page = open_page(run_page)
    page.locator(".tile").first.click()
    alpha = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3)"
    opacity = page.locator("dialog .strip figure").nth(2).locator("canvas").evaluate(alpha)
    assert opacity[0] > 1.5 * opacity[-1] > 0  # the hot cell is the square's top left one
    dots = (page.locator(part).locator(".dot") for part in ("dialog .over", "dialog .answer >> nth=0"))
    assert [styles(one, "fill") for one in dots] == [styles(page.locator("#attention .key i").first)] * 2


def test_a_box_that_leaves_the_image_stays_open_at_its_edge(open_page, tmp_path):
    page = open_page(page_of(tmp_path, {"seen": [AnswerPanel("box", parse("(0.5, 0.5, 1.5, 0.8)"))]}))
    box = page.locator(".tile rect.box")
    assert (box.get_attribute("x"), box.get_attribute("width")) == ("200", "400")  # its right side is beyond 400
    cut = "box => getComputedStyle(box.parentNode).overflow + ' ' + box.parentNode.getAttribute('width')"
    assert box.evaluate(cut) == "hidden 400"


INSIDE = """(all) => all.map((one) => {
    const {left, right, width} = one.getBoundingClientRect();
    let scrolled = false;
    for (let box = one; box; box = box.parentElement)
        scrolled ||= getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth;
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
    assert [True] * 9 == page.locator(".panels img").evaluate_all(INSIDE)


def test_a_comparison_gives_each_model_its_mean_accuracy_and_color(open_page, compared):
    page = open_page(compared)
    cards = [text.split("\n") for text in page.locator("#means .card").all_inner_texts()]
    benchmark, here = "of all 10 questions of the benchmark", "of the 3 questions on this page"
    first, second = ([line for line in card if line] for card in cards)
    assert first == ["a", "30.0 %", f"{benchmark} (7 not answered)", "33.3 %", here]
    assert second == ["b", "20.0 %", benchmark, "66.7 %", here]
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
    looks = [page.locator("dialog .answer").nth(at).locator(".dot").first.evaluate(look) for at in (0, 1)]
    size, alpha = dot_style(1000)
    assert looks == [pytest.approx([7 * size, 2.2 * size, alpha, alpha], rel=1e-3), [7, 2.2, 1, 1]]
    assert size < 0.4 and alpha < 0.6
