"""The report: everything that was given is on the page, nothing on it can act, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import escape
from report_by_hand import COR, EVIL, INSTRUCTION, make_run
from small_benchmark import picture

from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.drawing.canvas import save_thumbnail
from trace_vlm.eval import tables
from trace_vlm.report import explorer, page, sections
from trace_vlm.report.comparison import ComparedQuestion, ModelAnswer, ModelScore, write_comparison
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run_folder):
    assert run(page.main, ["--run", str(run_folder), "--title", f"Nano {EVIL}"]) == 0
    return (run_folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags, the event handlers, the addresses that a page would load, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.handlers, self.loads, self.words = set(), [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        self.loads += [value for name, value in attrs if name in loading and value]

    def handle_data(self, data):
        self.words.append(data)


def embedded(html):
    """The data of the page's script, as text."""
    return html.partition('id="items">')[2].partition("</script>")[0]


def test_texts_are_never_markup(html):
    read = Reader(html)
    assert not {"iframe", "object", "embed", "link", "form"} & read.tags
    assert read.handlers == []
    assert re.findall(r"<script[^>]*>", html) == ['<script type="application/json" id="items">', "<script>"]
    assert "<b>mug</b>" not in html and html.count(str(escape(EVIL))) > 10
    assert "<script>document.title" in read.text and INSTRUCTION in read.text
    assert not set("<>&") & set(embedded(html))
    items = json.loads(embedded(html))
    assert items["questions"][0]["answers"][1]["text"] == EVIL and items["labels"][0] == EVIL


def test_only_the_pages_own_script_may_run(html):
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
    words = [
        word for title, rows in tables.tables(summary) for word in (title, *(cell for row in rows for cell in row))
    ]
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
    assert len(charts) == 2 + 5 + 1  # outcomes, measures of attention (no named object), loss


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
    attention = question["attention"]
    assert attention["layers"] == "0, 2" and attention["steps"][1]["grid"] is None
    grid = np.frombuffer(base64.b64decode(attention["steps"][2]["grid"]), np.uint8)
    assert grid.tolist() == [255, *[85] * 15]  # 0.03 is the top of the scale
    assert attention["steps"][2]["numbers"][0] == pytest.approx(0.18)
    assert attention["crop"] == pytest.approx([0, 1 / 6, 1, 2 / 3])  # 60 x 40 in its square


def test_a_model_has_one_color_on_the_page(run_folder, tmp_path):
    summary = read_json(run_folder / "summary.json")
    summary["models"].reverse()  # no_cor first, while the training runs are in the order of their names
    write_json(tmp_path / "summary.json", summary)
    for part in ("train", "comparison"):
        (tmp_path / part).symlink_to(run_folder / part)
    html = page.render("colors", tmp_path, tmp_path / "comparison")
    legend = {name: color for color, name in re.findall(r'<i style="background: (#\w+)"></i>([^<]*)</span>', html)}
    drawn = json.loads(embedded(html))["colors"]  # of the points, by the page's script
    assert drawn["cor"] == legend[str(escape(f"CoR {EVIL}"))] and drawn["no_cor"] == legend["no CoR"]
    assert all(drawn[name] == legend[name] for name in ("no CoR", "plain", "box"))
    assert len({drawn[name] for name in ("cor", "no_cor", "plain", "box")}) == 4
    labels = ["reasoning", "no CoR"]
    assert sections.colors(tmp_path / "summary.json", labels, ["cor"])["no CoR"] == drawn["no CoR"]


def test_a_thousand_questions_stay_below_50_megabytes(tmp_path, monkeypatch):
    noise = picture(1, (640, 480))  # no photograph takes more
    save_thumbnail(noise, tmp_path / "images/0.jpg")
    answers = tuple(ModelAnswer(label, COR * 3, 0.5, "right") for label in "ab")
    outline = (tuple((x / 200, x / 200) for x in range(200)),)
    items = [
        ComparedQuestion(number, INSTRUCTION, "seen", None, (640, 480), "images/0.jpg", None, outline, answers)
        for number in range(1000)
    ]
    write_comparison(tmp_path, [ModelScore(label, 1000, 0.5) for label in "ab"], items)
    for limit in (60_000, 9_000, 3_000, explorer.ALL_IMAGES // 1000):
        jpeg = explorer.small_jpeg(noise, limit)
        assert len(base64.b64decode(jpeg.partition(",")[2])) <= limit
    monkeypatch.setattr(explorer, "open_image", lambda _: noise)  # read and measured once
    monkeypatch.setattr(explorer, "small_jpeg", lambda *_: jpeg)
    assert len(page.render("large", comparison=tmp_path)) < 50_000_000


def test_the_page_is_the_same_twice(run_folder, html, tmp_path):
    again = tmp_path / "b.html"
    assert run(page.main, ["--run", str(run_folder), "--title", f"Nano {EVIL}", "--out", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == html


def test_absent_parts_are_left_out_and_named(run_folder, tmp_path):
    write_json(tmp_path / "summary.json", read_json(run_folder / "summary.json"))
    assert run(page.main, ["--run", str(tmp_path)]) == 0
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    for name in ["comparison/index.json", "attention/*.json", "train/*/run.json", "data/data.json"]:
        assert name in read.text
    assert not {"dialog", "script", "img"} & read.tags
    assert all(load.startswith("#accuracy") for load in read.loads)


def test_a_folder_without_anything_is_refused(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert run(page.main, ["--run", str(folder)]) == 2
        assert str(folder) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", {"models": []}),
        ("summary.json", {"models": [{}], "baselines": {}}),
        ("comparison/index.json", {"items": [{"question_id": 1}], "scores": []}),
        ("attention/7.json", []),
        ("attention/summary.json", {"model": "m"}),
        ("train/cor/run.json", []),
        ("bench/generate.json", "text"),
    ],
)
def test_a_broken_part_is_named(tmp_path, name, content, capsys):
    write_json(tmp_path / "run.json", {})
    write_json(tmp_path / name, content)
    assert run(page.main, ["--run", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_a_lost_picture_is_named(run_folder, tmp_path):
    write_json(tmp_path / "index.json", read_json(run_folder / "comparison/index.json"))
    with pytest.raises(InputError, match=r"images/.*\.jpg"):
        page.render("title", comparison=tmp_path)
