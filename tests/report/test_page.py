"""The report: everything that was given is on the page, nothing on it can act, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from report_by_hand import COR, EVIL, INSTRUCTION, make_run, picture

from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.drawing.canvas import save_thumbnail
from trace_vlm.eval import tables
from trace_vlm.report import explorer, page, sections
from trace_vlm.report.comparison import ComparedQuestion, ModelAnswer, ModelScore, write_comparison
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    assert run(page.main, ["--run", str(run_folder), "--title", f"Nano {EVIL}"]) == 0
    return (run_folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags, the addresses that a page would load, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        self.loads += [value or "" for name, value in attrs if name in loading]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def items_of(html: str) -> Any:
    """The data of the page's script."""
    return json.loads(html.partition('id="items">')[2].partition("</script>")[0])


def test_texts_are_never_markup(html: str) -> None:
    read = Reader(html)
    assert not {"iframe", "object", "embed", "link", "form"} & read.tags
    assert read.handlers == []
    assert re.findall(r"<script[^>]*>", html) == ['<script type="application/json" id="items">', "<script>"]
    assert "<b>mug</b>" not in html and html.count(str(escape(EVIL))) > 10
    assert "<script>document.title" in read.text and INSTRUCTION in read.text
    embedded = html.partition('id="items">')[2].partition("</script>")[0]
    assert not set("<>&") & set(embedded)
    (question,) = items_of(html)["questions"]
    assert question["answers"][1]["text"] == EVIL and items_of(html)["labels"][0] == EVIL


def test_only_the_pages_own_script_may_run(html: str) -> None:
    assert "default-src 'none'" in html and "'unsafe-inline'" not in html.partition("script-src")[2][:80]
    (named,) = re.findall(r"script-src 'sha256-([^']+)'", html)
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == named
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    loads = [load for load in Reader(html).loads if load]
    loads += [question["image"] for question in items_of(html)["questions"]]
    assert loads and all(load.startswith(("data:image/", "#")) for load in loads)
    assert not re.search(r"url\(|@import|https?://(?!example\.org|www\.w3\.org/2000/svg)", html)
    for load in loads:
        if load.startswith("data:"):
            assert base64.b64decode(load.partition(",")[2], validate=True)[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG")


def test_every_given_number_is_on_the_page(html: str, run_folder: Path) -> None:
    text = Reader(html).text
    summary = read_json(run_folder / "summary.json")
    cells = [cell for _, rows in tables.tables(summary) for row in rows for cell in row]
    for words in [*cells, *(title for title, _ in tables.tables(summary)), *tables.sentences(summary)]:
        assert " ".join(words.split()) in text, words
    low, high = (100 * summary["models"][1]["accuracy"][0][end] for end in ("low", "high"))
    assert f"{low:.1f} to {high:.1f}" in text
    # of attention, training, data and records
    for words in ["over 1 answers about 1 images", "undecided", "Define the target area in 1", "0.180", "0.005 matrices",
                  "1,234", "4242", "5,678", "seed 77", "torch 2.13.0", "mujoco 4.0.0", "model_vqa --model",
                  "--reasoning"]:  # fmt: skip
        assert words in text, words
    assert "--overwrite" not in text  # a flag that was not given
    assert "12 samples of data.json" in text and POINTS_SUFFIX not in text
    assert f"{INSTRUCTION} 29." in text  # the only sample of its kind, last in the file
    charts = [load for load in Reader(html).loads if load.startswith("data:image/png")]
    assert len(charts) == 2 + 5 + 1  # outcomes, measures of attention (no named object), loss


def test_a_question_has_its_answers_its_attention_and_problems(html: str) -> None:
    (question,) = items_of(html)["questions"]  # in both folders, and once on the page
    cor, plain, box = question["answers"]
    assert cor["steps"][1] == ["Define the target area", "Left of it."]
    assert cor["final"] == "[(0.200, 0.500), (1.400, 0.500)]"
    assert len(cor["problems"]) == len(plain["problems"]) == 1 and box["problems"] == []
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


def test_a_model_has_one_color_on_the_page(run_folder: Path, tmp_path: Path) -> None:
    summary = read_json(run_folder / "summary.json")
    summary["models"].reverse()  # no_cor first, while the training runs are in the order of their names
    write_json(tmp_path / "summary.json", summary)
    for part in ("train", "comparison"):
        (tmp_path / part).symlink_to(run_folder / part)
    html = page.render("colors", tmp_path, tmp_path / "comparison")
    keys = re.findall(r'<i style="background: (#\w+)"></i>([^<]*)</span>', html)
    color_of = {name: color for color, name in keys}
    drawn = items_of(html)["colors"]  # of the points, by the page's script
    assert drawn["cor"] == color_of[str(escape(f"CoR {EVIL}"))] != drawn["no_cor"] == color_of["no CoR"]
    assert all(drawn[name] == color_of[name] for name in ("no CoR", "plain", "box"))
    assert len({drawn[name] for name in ("cor", "no_cor", "plain", "box")}) == 4
    labels = ["reasoning", "no CoR"]
    assert sections.colors(tmp_path / "summary.json", labels, ["cor"])["no CoR"] == drawn["no CoR"]


def test_a_thousand_questions_stay_below_50_megabytes(tmp_path: Path) -> None:
    noise = picture(1, (640, 480))  # no photograph takes more
    save_thumbnail(noise, tmp_path / "images/0.jpg")
    answers = tuple(ModelAnswer(label, COR * 3, 0.5, "right") for label in ("a", "b"))
    outline = (tuple((x / 200, x / 200) for x in range(200)),)
    items = tuple(
        ComparedQuestion(number, INSTRUCTION, "seen", None, (640, 480), "images/0.jpg", None, outline, answers)
        for number in range(1000)
    )
    write_comparison(tmp_path, [ModelScore(label, 1000, 0.5) for label in "ab"], items)
    for limit in (60_000, 9_000, 3_000, explorer.ALL_IMAGES // 1000):
        jpeg = explorer.small_jpeg(noise, limit)
        assert len(base64.b64decode(jpeg.partition(",")[2])) <= limit
    with pytest.MonkeyPatch.context() as patched:  # one image is read and measured, the same thousand times
        patched.setattr(explorer, "open_image", lambda _: noise)
        patched.setattr(explorer, "small_jpeg", lambda *_: jpeg)
        assert len(page.render("large", comparison=tmp_path)) < 50_000_000


def test_the_page_is_the_same_twice(run_folder: Path, html: str, tmp_path: Path) -> None:
    again = tmp_path / "b.html"
    assert run(page.main, ["--run", str(run_folder), "--title", f"Nano {EVIL}", "--out", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == html


def test_absent_parts_are_left_out_and_named(run_folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", read_json(run_folder / "summary.json"))
    assert run(page.main, ["--run", str(tmp_path)]) == 0
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    for name in ["comparison/index.json", "attention/*.json", "train/*/run.json", "data/data.json"]:
        assert name in read.text
    assert not {"dialog", "script", "img"} & read.tags
    assert [load for load in read.loads if not load.startswith("#accuracy")] == []


def test_a_folder_without_anything_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert run(page.main, ["--run", str(folder)]) == 2
        assert str(folder) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "broken"),
    [
        ("summary.json", {"models": []}, "summary.json"),
        ("summary.json", {"models": [{}], "baselines": {}}, "summary.json"),
        ("comparison/index.json", {"items": [{"question_id": 1}], "scores": []}, "comparison/index.json"),
        ("attention/7.json", [], "attention/7.json"),
        ("attention/summary.json", {"model": "m"}, "attention/summary.json"),
        ("train/cor/run.json", [], "train/cor/run.json"),
        ("bench/generate.json", "text", "bench/generate.json"),
    ],
)
def test_a_broken_part_is_named(
    tmp_path: Path, name: str, content: Any, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "run.json", {})
    write_json(tmp_path / name, content)
    assert run(page.main, ["--run", str(tmp_path)]) == 2
    assert broken in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_lost_picture_is_named(run_folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "index.json", read_json(run_folder / "comparison/index.json"))
    with pytest.raises(InputError, match=r"images/.*\.jpg"):
        page.render("title", comparison=tmp_path)
