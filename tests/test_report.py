"""The report: everything that was given is on the page, nothing on it can act, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from trace_vlm import galleries, report
from trace_vlm.command import InputError, run
from trace_vlm.eval import summarize_vqa
from trace_vlm.files import read_json, write_json, write_jsonl
from trace_vlm.milestones import MILESTONES, MilestoneMaps
from trace_vlm.plots import Panel
from trace_vlm.points import Point
from trace_vlm.prompts import POINTS_SUFFIX
from trace_vlm.reasoning import parse, render
from trace_vlm.records import Question

EVIL = "<script>document.title = 'harmed'; fetch('https://example.org')</script><img src=x onerror=alert(1)>'\"&amp;"
STEPS = {"reference": f"The red mug. {EVIL}", "target": "Left of it.", "subtype": "Free space.", "output": "Points."}
COR = render(STEPS, [Point(0.2, 0.5), Point(1.4, 0.5)])
INSTRUCTION = "Point left of the <b>mug</b> & the $x$."
CHROMIUM = Path("/usr/bin/chromium")


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


def left_half(size: tuple[int, int] = (60, 40)) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    mask[:, : size[0] // 2] = True
    return mask


def make_benchmark(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = []
    for number in range(8):
        picture(number).save(folder / "images" / f"{number}.png")
        Image.fromarray(left_half().astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
        kind = "direct" if number % 2 else "free"
        meta = {"kind": kind, "shortcuts": {"left_edge": [0.0, 0.5], "midpoint": None if number else [0.9, 0.9]}}
        lines.append({"question_id": number, "image": f"{number}.png", "text": f"{INSTRUCTION} {number}", "meta": meta})
    write_jsonl(folder / "point_questions.jsonl", lines)


def make_run(folder: Path) -> Path:
    """A run in which every text that a model or a user chose tries to be more than text."""
    make_benchmark(folder / "bench")
    for arm, texts in {"cor": [COR] * 8, "no_cor": ["(0.2, 0.5)", EVIL] * 4}.items():
        path = folder / "answers" / f"{arm}.jsonl"
        write_jsonl(path, [{"question_id": number, "text": text} for number, text in enumerate(texts)])
        arguments = {"model_path": EVIL, "answer_file": str(path), "reasoning": True, "overwrite": False}
        write_json(path.with_suffix(".run.json"), {"command": "model_vqa", "arguments": arguments, "seconds": 12.3,
                   "settings": {"seed": 77}, "versions": {"torch": "2.13.0"}})  # fmt: skip
        train = folder / "train" / arm
        write_jsonl(train / "log.jsonl", [{"step": step, "loss": 1 / (1 + step)} for step in range(20)])
        write_json(train / "run.json", {"config": {"seed": 4242, "model": EVIL}, "steps": 1234, "finished": True})
    words = [
        "--answer",
        *(str(folder / f"answers/{arm}.jsonl") for arm in ("cor", "no_cor")),
        "--labels",
        f"CoR {EVIL}",
    ]
    assert run(summarize_vqa.main, [*words, "no CoR", "--data-dir", str(folder / "bench"), "--output", str(folder),
                                    "--resamples", "50"]) == 0  # fmt: skip
    question = Question(EVIL, "0.png", f"{INSTRUCTION} {POINTS_SUFFIX}", category=EVIL)
    panels = [
        Panel(EVIL, parse(COR), 0.5),
        Panel("plain", parse(EVIL), 0.0),
        Panel("box", parse("(0.1, 0.2, 0.3, 0.4)")),
    ]
    compared = galleries.write_compared(folder / "comparison", question, picture(0), left_half(), panels)
    scores = (galleries.Score(EVIL, 8, 0.512), galleries.Score("plain", 8, None))
    galleries.write_comparisons(folder / "comparison", galleries.ComparisonGallery(scores, (compared,)))
    make_attention(folder / "attention", question)
    make_data(folder / "data")
    return folder


def make_attention(folder: Path, question: Question) -> None:
    maps = np.full((5, 4, 4), 0.01, np.float32)
    maps[1] = np.nan
    spans = {key: (3 * place, 3 * place + 3) for place, key in enumerate(MILESTONES) if key != "target"}
    found = MilestoneMaps(parse(COR), (1, 2, 3), spans, maps, maps.sum(axis=(1, 2)), (0, 2))
    galleries.write_attended(folder, 0, question, picture(0), left_half(), found, EVIL, {})
    galleries.write_attention_index(folder, {})


def make_data(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    samples = []
    for number in range(30):
        picture(number).save(folder / "images" / f"{number}.png")
        Image.fromarray(left_half().astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
        said = [{"from": "human", "value": f"<image>\n{INSTRUCTION} {number}. {POINTS_SUFFIX}"},
                {"from": "gpt", "value": "[(0.25, 0.50)]"}]  # fmt: skip
        meta = {"kind": "rare" if number == 29 else "direct", "relation": EVIL, "mask": f"masks/{number}.png"}
        samples.append({"id": str(number), "image": f"images/{number}.png", "conversations": said, "meta": meta})
    (folder / "data.json").write_text(json.dumps(samples))
    write_json(folder / "generate.json", {"settings": {"scenes": 5678, "seed": 9}, "versions": {"mujoco": "4.0.0"}})


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


def test_whatever_was_written_is_text_and_nothing_else(page: str) -> None:
    read = Reader(page)
    assert not {"script", "iframe", "object", "embed", "link", "form"} & read.tags
    assert read.handlers == []
    assert "<script" not in page and "<b>mug</b>" not in page
    assert page.count(str(escape(EVIL))) > 10
    assert "default-src 'none'" in page
    assert "<script>document.title" in read.text and INSTRUCTION in read.text


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    loads = Reader(page).loads
    assert loads and all(load.startswith(("data:image/", "#")) for load in loads)
    assert not re.search(r"url\(|@import|https?://(?!example\.org)", page)
    for load in loads:
        if load.startswith("data:"):
            assert base64.b64decode(load.partition(",")[2], validate=True)[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG")


def test_every_given_number_is_on_the_page(page: str, whole_run: Path) -> None:
    text = Reader(page).text
    summary = read_json(whole_run / "summary.json")
    for title, rows in summarize_vqa.tables(summary):
        assert title in text
        for row in rows:
            for cell in row:
                assert " ".join(cell.split()) in text, cell
    for sentence in summarize_vqa.sentences(summary):
        assert " ".join(sentence.split()) in text
    low, high = (100 * summary["models"][1]["accuracy"][0][end] for end in ("low", "high"))
    assert f"95 % interval {low:.1f} to {high:.1f}" in text
    # of the comparison, attention, training, data and records
    for wanted in ["51.2 % of 8 questions", "50% in the target", "image share 16.0%", "tokens 7\u20139", "layers 0, 2",
                   "1,234", "4242", "5,678", "seed 77", "torch 2.13.0", "mujoco 4.0.0", "model_vqa --model-path",
                   "--reasoning"]:  # fmt: skip
        assert wanted in text, wanted
    assert "--overwrite" not in text  # a flag that was not given


def test_reasoning_is_shown_step_by_step_and_problems_are_named(page: str) -> None:
    text = Reader(page).text
    for wanted in ["1. Identify the reference object", "2. Define the target area", "Left of it.", "Final answer",
                   "1 of 2 points lie outside the image", "No point could be read", "This answer holds no reasoning",
                   "Missing from this answer: Define target area", "step missing"]:  # fmt: skip
        assert wanted in text


def test_points_and_truth_are_drawn_where_they_lie(page: str) -> None:
    height = round(400 * 40 / 60, 1)
    assert '<circle class="dot" cx="80.0" cy="133.3" r="7"/>' in page  # (0.2, 0.5)
    assert '<circle class="outside" cx="400.0" cy="133.3" r="7"/>' in page  # (1.4, 0.5), on the edge
    assert '<rect class="box" x="40.0" y="53.3" width="80.0" height="53.4"/>' in page
    paths = re.findall(r'class="truth" d="([^"]+)"', page)
    numbers = np.array([float(number) for number in re.findall(r"[\d.]+", paths[0])]).reshape(-1, 2)
    assert numbers.min() < 2 and numbers.max(axis=0) == pytest.approx([200, height], abs=3)


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
    assert "svg" in read.tags and "article" not in read.tags
    assert [load for load in read.loads if not load.startswith("#accuracy")] == []


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
        report.render(tmp_path, "title", report.Limits())


# --- as a person sees it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to open the page")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not there (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as found:
        started = found.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [1300, 700])
def test_chromium_shows_the_page_and_nothing_acts(browser: Any, whole_run: Path, page: str, width: int) -> None:
    window = browser.new_page(viewport={"width": width, "height": 900})
    requests: list[str] = []
    dialogs: list[str] = []
    window.on("request", lambda request: requests.append(request.url))
    window.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    window.goto((whole_run / "report.html").as_uri())
    assert window.title() == f"Nano {EVIL}" and dialogs == []
    assert [url for url in requests if not url.startswith("data:")] == [(whole_run / "report.html").as_uri()]
    assert window.evaluate("document.images.length && [...document.images].every(i => i.naturalWidth > 0)")
    assert window.evaluate(
        "[...document.querySelectorAll('svg.picture')].every(s => s.getBoundingClientRect().width > 90)"
    )
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    # the picture of a compared question is really painted: a <use> of an image that is defined once
    shot = window.locator("#answers svg.picture").first.screenshot()
    (whole_run / "shot.png").write_bytes(shot)
    with Image.open(whole_run / "shot.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 30
    summary = window.locator("#answers summary").first
    summary.click()
    assert EVIL in window.locator("#answers pre").first.inner_text()
    window.close()
