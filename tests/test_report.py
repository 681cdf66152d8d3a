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

from trace_vlm.core.points import Box, Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.eval.tables import sentences, tables
from trace_vlm.report import comparison_files, sections
from trace_vlm.report import items as report_items
from trace_vlm.report import page as report
from trace_vlm.report.items import small_jpeg
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json, write_json


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(whole_run: Path) -> str:
    assert run(report.main, ["--run", str(whole_run), "--title", f"Nano {EVIL}"]) == 0
    return (whole_run / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The tags, the places that a page would load from, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.append(name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def data_of(page: str) -> Any:
    """What the page's script is given."""
    return json.loads(page.partition('id="items">')[2].partition("</script>")[0])


def test_whatever_was_written_is_text_and_nothing_else(page: str) -> None:
    read = Reader(page)
    assert not {"iframe", "object", "embed", "link", "form"} & read.tags
    assert read.handlers == []
    assert re.findall(r"<script[^>]*>", page) == ['<script type="application/json" id="items">', "<script>"]
    assert "<b>mug</b>" not in page and page.count(str(escape(EVIL))) > 10
    assert "<script>document.title" in read.text and INSTRUCTION in read.text
    embedded = page.partition('id="items">')[2].partition("</script>")[0]
    assert not set("<>&") & set(embedded)
    (question,) = data_of(page)["questions"]
    assert question["answers"][1]["text"] == EVIL and data_of(page)["labels"][0] == EVIL


def test_only_the_pages_own_script_may_run(page: str) -> None:
    assert "default-src 'none'" in page and "'unsafe-inline'" not in page.partition("script-src")[2][:80]
    (named,) = re.findall(r"script-src 'sha256-([^']+)'", page)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == named
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    loads = [load for load in Reader(page).loads if load]
    loads += [question["image"] for question in data_of(page)["questions"]]
    assert loads and all(load.startswith(("data:image/", "#")) for load in loads)
    assert not re.search(r"url\(|@import|https?://(?!example\.org|www\.w3\.org/2000/svg)", page)
    for load in loads:
        if load.startswith("data:"):
            assert base64.b64decode(load.partition(",")[2], validate=True)[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG")


def test_every_given_number_is_on_the_page(page: str, whole_run: Path) -> None:
    text = Reader(page).text
    summary = read_json(whole_run / "summary.json")
    for title, rows in tables(summary):
        assert title in text
        for row in rows:
            for cell in row:
                assert " ".join(cell.split()) in text, cell
    for sentence in sentences(summary):
        assert " ".join(sentence.split()) in text
    low, high = (100 * summary["models"][1]["accuracy"][0][end] for end in ("low", "high"))
    assert f"95 % interval {low:.1f} to {high:.1f}" in text
    # of attention, training, data and records
    for wanted in ["over 1 answers about 1 images", "undecided", "Steps missing from answers: Define target area in 1",
                   "0.005 matrices, 0.0015 the rest",
                   "1,234", "4242", "5,678", "seed 77", "torch 2.13.0", "mujoco 4.0.0", "model_vqa --model-path",
                   "--reasoning"]:  # fmt: skip
        assert wanted in text, wanted
    assert "--overwrite" not in text  # a flag that was not given


def test_a_question_has_its_answers_its_attention_and_what_is_wrong(page: str) -> None:
    (question,) = data_of(page)["questions"]  # in both folders, and once on the page
    cor, plain, box = question["answers"]
    assert (
        cor["steps"][1] == ["Define the target area", "Left of it."]
        and cor["final"] == "[(0.200, 0.500), (1.400, 0.500)]"
    )
    assert cor["problems"] == ["1 of 2 points lie outside the image (hollow, at its edge)."]
    assert plain["problems"] == ["No point could be read from this answer: it counts as a miss."]
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


def test_a_model_has_one_color_on_the_page(whole_run: Path, tmp_path: Path) -> None:
    summary = read_json(whole_run / "summary.json")
    summary["models"].reverse()  # no_cor first, while the training's arms are in the order of their names
    write_json(tmp_path / "summary.json", summary)
    for part in ("train", "comparison"):
        (tmp_path / part).symlink_to(whole_run / part)
    page = report.render(report.Parts(tmp_path, tmp_path / "comparison"), "colors")
    keys = re.findall(r'<i style="background: (#\w+)"></i>([^<]*)</span>', page)
    color_of = {name: color for color, name in keys}
    assert color_of["cor"] == color_of[str(escape(f"CoR {EVIL}"))] != color_of["no_cor"] == color_of["no CoR"]
    drawn = data_of(page)["colors"]  # of the points, by the page's script
    assert all(drawn[name] == color_of[name] for name in ("cor", "no_cor", "no CoR", "plain", "box"))
    assert len({color_of[name] for name in ("cor", "no_cor", "plain", "box")}) == 4
    labels = ["reasoning", "no CoR"]
    assert sections.colors(tmp_path / "summary.json", labels, ["cor"])["no CoR"] == color_of["no CoR"]


@pytest.mark.parametrize("limit", [60_000, 9_000, 3_000])
def test_an_image_takes_what_it_may(limit: int) -> None:
    noise = picture(0, (640, 480))
    assert len(base64.b64decode(small_jpeg(noise, limit).partition(",")[2])) <= limit


def test_a_thousand_questions_stay_below_50_megabytes(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    noise = picture(1, (640, 480))  # noise: no photograph takes more
    comparison_files.save_small(noise, folder / "images/0.jpg")
    answers = tuple(comparison_files.ModelAnswer(label, COR * 3, 0.5, "right") for label in ("a", "b"))
    outline = (tuple((x / 200, x / 200) for x in range(200)),)
    items = tuple(
        comparison_files.Compared(number, INSTRUCTION, "seen", None, (640, 480), "images/0.jpg", None, outline, answers)
        for number in range(1000)
    )
    comparison_files.write_comparisons(
        folder,
        comparison_files.ComparisonGallery(
            (comparison_files.Score("a", 1000, 0.5), comparison_files.Score("b", 1000, 0.5)), items
        ),
    )
    found = small_jpeg(noise, report_items.IMAGES // 1000)
    with pytest.MonkeyPatch.context() as patched:  # one image is measured, the same thousand times
        patched.setattr(report_items, "small_jpeg", lambda *_: found)
        report.write_page(tmp_path / "report.html", "large", comparison=folder)
    assert (tmp_path / "report.html").stat().st_size < 50_000_000


def test_samples_are_of_every_kind(page: str) -> None:
    assert "12 samples of data.json" in Reader(page).text
    assert f"{INSTRUCTION} 29." in Reader(page).text  # the only one of its kind, last in the file
    assert POINTS_SUFFIX not in Reader(page).text


def test_the_page_is_the_same_twice(whole_run: Path, page: str, tmp_path: Path) -> None:
    assert (
        run(report.main, ["--run", str(whole_run), "--title", f"Nano {EVIL}", "--out", str(tmp_path / "b.html")]) == 0
    )
    assert (tmp_path / "b.html").read_text(encoding="utf-8") == page


def test_what_is_missing_is_left_out_and_named(whole_run: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", read_json(whole_run / "summary.json"))
    assert run(report.main, ["--run", str(tmp_path)]) == 0
    read = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    for name in ["comparison/index.json", "attention/index.json", "train/*/run.json", "data/data.json"]:
        assert name in read.text
    assert "Not in this run: answers side by side" in read.text
    assert "dialog" not in read.tags
    assert [load for load in read.loads if not load.startswith("#accuracy")] == []
    assert "script" not in read.tags


def test_a_folder_without_anything_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(report.main, ["--run", str(tmp_path)]) == 2
    assert "holds nothing to report" in capsys.readouterr().err
    assert run(report.main, ["--run", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", {"models": []}, "is not a summary of trace.eval.summarize_vqa"),
        ("summary.json", {"models": [{}], "baselines": {}}, "is not a summary of trace.eval.summarize_vqa"),
        ("comparison/index.json", {"items": [{"question_id": 1}], "scores": []}, "not an index of compared answers"),
        ("attention/index.json", [], "not an index of attention pictures"),
        ("attention/index.json", {"records": ["gone.json"]}, "gone.json does not exist"),
        ("train/cor/run.json", [], "is not the record of a run"),
        ("bench/generate.json", "text", "is not the record of a run"),
    ],
)
def test_a_broken_part_is_named(
    tmp_path: Path, name: str, content: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / name, content)
    assert run(report.main, ["--run", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_lost_picture_is_named(whole_run: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "comparison/index.json", read_json(whole_run / "comparison/index.json"))
    with pytest.raises(InputError, match=r"images/.*\.jpg does not exist"):
        report.render(report.Parts(tmp_path, tmp_path / "comparison"), "title")


def test_a_box_beyond_the_image_is_drawn_as_it_was_written() -> None:
    found = sections.marks((60, 40), (), [Box(0.5, 0.5, 1.5, 0.8), Point(1.5, 0.5)])
    (box,) = found.boxes
    assert box[0] == sections.WIDTH / 2 and box[2] == sections.WIDTH
    assert found.dots[0][0] == sections.WIDTH and not found.dots[0][2]
