"""api_vqa: remote models asked and read in their own conventions, kill and resume, caches, refused input."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_server import Asked, one_point, serving
from PIL import Image

from trace_vlm.core.conventions import CONVENTIONS
from trace_vlm.core.points import Box, Point
from trace_vlm.core.prompts import question_text
from trace_vlm.eval import api_vqa, summarize_vqa
from trace_vlm.eval.benchmark import open_benchmark, run_file
from trace_vlm.eval.scoring import read_single_run
from trace_vlm.report.comparison import compare, read_comparison, write_comparison, write_question
from trace_vlm.utils.command import run
from trace_vlm.utils.files import read_json, write_jsonl

pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

SERVER = Path(__file__).parents[1] / "api_server.py"
X, Y = 0.25, 0.8  # in the region, which is the left half; the other way round it is not
FORMS: dict[str, Callable[[int, int], str]] = {
    "unit": lambda width, height: f"[({X}, {Y})]",
    "gemini": lambda width, height: f'```json\n[{{"point": [{1000 * Y:.0f}, {1000 * X:.0f}], "label": "mug"}}]\n```',
    "molmo": lambda width, height: f'<point x="{100 * X:.1f}" y="{100 * Y:.1f}" alt="mug">mug</point>',
    "molmo2": lambda width, height: f'<points coords="1 1 {1000 * X:.0f} {1000 * Y:.0f}">mug</points>',
    "qwen2.5-vl": lambda width, height: f'[{{"point_2d": [{X * width:.0f}, {Y * height:.0f}], "label": "mug"}}]',
    "qwen3-vl": lambda width, height: f'<think>(3, 4)?</think>[{{"point_2d": [{1000 * X:.0f}, {1000 * Y:.0f}]}}]',
    "robobrain2": lambda width, height: f"[({X * width:.0f}, {Y * height:.0f})]",
    "robobrain2.5": lambda width, height: f"[({1000 * X:.0f}, {1000 * Y:.0f}, 1.08)]",
}
# What a converted 13B of ours answers when vLLM serves it: the Chain of Reasoning, then its points.
COR = """\
**Reasoning Process:**
1. **Identify the reference object:** The reference object is the red mug at (0.9, 0.9).
2. **Define the target area:** The left half of the picture.
3. **Determine the goal's subtype:** This is an object reference.
4. **Generate the output:** Two points are spread over the area.

**Final Answer:**
[(0.250, 0.800), (0.301, 0.512)]"""


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def in_form(name: str) -> Callable[[Asked], str]:
    """A model that sees the picture as it was sent, and points rightly in its own convention."""

    def answer(asked: Asked) -> str:
        return FORMS[name](*picture(asked).size)

    return answer


def picture(asked: Asked) -> Image.Image:
    return Image.open(io.BytesIO(asked.images[0]))


def flags(folder: Path, answers: Path, url: str, *more: str, provider: str = "openai", model: str = "m") -> list[str]:
    return ["--provider", provider, "--model", model, "--base-url", f"{url}/v1", "--data", str(folder),
            "--answers", str(answers), *more]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> set[str]:
    return {line["text"] for line in lines(path)}


def finished(answers: Path) -> bool:
    return bool(read_json(run_file(answers))["finished"])


def accuracy(answers: Path) -> float:
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "20"]) == 0
    return float(read_json(answers.parent / "summary.json")["models"][0]["accuracy"][0]["mean"])


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_model_is_asked_and_read_in_its_own_convention(name: str, benchmark_folder: Path, tmp_path: Path) -> None:
    provider = "gemini" if name == "gemini" else "openai"
    answers = tmp_path / "out" / "m.jsonl"
    with serving(answer=in_form(name), keep=True) as server:
        assert api_vqa.main(flags(benchmark_folder, answers, server.url, "--convention", name, provider=provider)) == 0
        asked = server.asked
    assert accuracy(answers) == 1.0
    assert len(asked) == 6
    assert all(CONVENTIONS[name].points in one.text for one in asked)
    found = lines(answers)
    assert [line["question_id"] for line in found] == list(range(3, 9))
    by_text = {one.text: FORMS[name](*picture(one).size) for one in asked}
    assert all(line["text"] == by_text[line["prompt"]] for line in found), "the reply is kept unchanged"
    assert read_json(run_file(answers))["settings"]["convention"] == name
    if CONVENTIONS[name].scale is None:  # a server of the Qwen2.5-VL family has nothing left to resize
        sizes = {one.text: [*picture(one).size] for one in asked}
        assert {side % 28 for size in sizes.values() for side in size} == {0}
        assert all(line["metadata"]["sent"] == sizes[line["prompt"]] for line in found)


@pytest.mark.parametrize(
    ("model", "more", "code", "output"),
    [
        ("qwen3_vl_8b", [], 0, "convention qwen3-vl: JSON"),
        ("my-finetune-of-gemini-data", [], 0, "convention unit, assumed"),
        ("my-finetune-of-gemini-data", ["--convention", "gemini"], 0, "convention gemini: JSON"),
        ("allenai/MolmoPoint-8B", [], 2, ""),
    ],
)
def test_convention_follows_from_the_models_name(
    model: str, more: list[str], code: int, output: str, benchmark_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """An unknown family is assumed to be `unit`, with a warning; one that writes no points is refused."""
    words = flags(benchmark_folder, tmp_path / "m.jsonl", "http://nowhere", "--dry-run", *more, model=model)
    assert run(api_vqa.main, words) == code
    said = capsys.readouterr()
    assert output in said.out
    assert ("warning" in said.err and "--convention" in said.err) == ("assumed" in output)


def test_report_shows_the_points_that_were_read(benchmark_folder: Path, tmp_path: Path) -> None:
    answers = tmp_path / "m.jsonl"
    with serving(answer=in_form("gemini")) as server:
        assert api_vqa.main(flags(benchmark_folder, answers, server.url, provider="gemini", model="gemini-9")) == 0
    benchmark = open_benchmark(benchmark_folder)
    comparison = compare(benchmark, {"gemini": answers})
    assert comparison.overall[0].accuracy == 1.0
    (tmp_path / "page").mkdir()
    item = write_question(tmp_path / "page", comparison, benchmark.questions[0], drawn=False)
    write_comparison(tmp_path / "page", comparison.overall, [item])
    _, (read,) = read_comparison(tmp_path / "page")
    assert read.answers[0].response(read.size).points == (Point(X, Y),)
    assert '"point": [800, 250]' in read.answers[0].text


def test_box_counts_with_all_of_its_pixels(benchmark_folder: Path, tmp_path: Path) -> None:
    answers = tmp_path / "m.jsonl"
    box = '[{"box_2d": [0, 0, 1000, 750], "label": "left"}]'  # the region and half of the other side
    with serving(answer=lambda asked: box, keep=True) as server:
        words = flags(benchmark_folder, answers, server.url, "--box", provider="gemini", model="gemini-9")
        assert api_vqa.main(words) == 0
        assert all("box_2d" in one.text and '"point"' not in one.text for one in server.asked)
    run_answers = read_single_run(answers, "m", open_benchmark(benchmark_folder))
    assert run_answers.responses["3"].points == (Box(0.0, 0.0, 0.75, 1.0),)
    assert 0.6 < accuracy(answers) < 0.7


def test_own_model_behind_a_server_is_asked_with_the_training_prompt(benchmark_folder: Path, tmp_path: Path) -> None:
    """As `model_vqa` asks it, so that a converted checkpoint under vLLM or SGLang answers the prompt it was trained on."""
    answers = tmp_path / "trace.jsonl"
    with serving(answer=lambda asked: COR, keep=True) as server:
        words = flags(benchmark_folder, answers, server.url, "--reasoning", provider="vllm", model="trace-13b")
        assert api_vqa.main(words) == 0
        asked = {one.text for one in server.asked}
    benchmark = open_benchmark(benchmark_folder)
    assert asked == {question_text(question.text, True) for question in benchmark.questions}
    response = read_single_run(answers, "trace", benchmark).responses["5"]
    assert [step.key for step in response.steps] == ["reference", "target", "subtype", "output"]
    assert response.points == (Point(0.25, 0.8), Point(0.301, 0.512)) and accuracy(answers) == 1.0


def test_picture_is_sent_unchanged_unless_something_has_to_change(benchmark_folder: Path, tmp_path: Path) -> None:
    images = benchmark_folder / "images"
    turned, exif = Image.open(images / "wide.png").convert("RGB"), Image.Exif()
    exif[274] = 6  # seen upright it is 40 x 61
    turned.save(images / "wide.png", exif=exif)
    with serving(keep=True, answer=one_point) as server:
        assert api_vqa.main(flags(benchmark_folder, tmp_path / "a.jsonl", server.url, "--max-side", "45")) == 0
        sent = {one.text.split(" number ")[1][:1]: one.images[0] for one in server.asked}
    assert sent["5"] == (images / "square.png").read_bytes()
    assert Image.open(io.BytesIO(sent["4"])).size == (30, 45)  # tall.png is 33 x 50
    wide = Image.open(io.BytesIO(sent["3"]))
    assert wide.size == (30, 45) and not wide.getexif()


def test_several_runs_and_their_price(benchmark_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with serving(answer=one_point, keep=True) as server:
        words = flags(benchmark_folder, tmp_path / "m.jsonl", server.url, "--protocol", "paper", "--seed", "5",
                      "--price-in", "2.5", "--price-out", "10")  # fmt: skip
        assert api_vqa.main(words) == 0
        assert Counter(one.body["seed"] for one in server.asked) == {5: 6, 6: 6, 7: 6}
        assert {one.body["temperature"] for one in server.asked} == {0.2}
        assert api_vqa.main(words) == 0
        assert len(server.asked) == 18, "nothing is asked twice"
    runs = [tmp_path / f"m-{number}.jsonl" for number in (1, 2, 3)]
    assert [[line["run"] for line in lines(path)] for path in runs] == [[1] * 6, [2] * 6, [3] * 6]
    tokens_in = sum(line["metadata"]["tokens_in"] for line in lines(runs[0]))
    output = capsys.readouterr().out
    assert read_json(run_file(runs[0]))["price"]["input"] == 2.5 and f"{tokens_in:,} in" in output and "$" in output


def test_killed_and_started_again_nothing_is_asked_twice(benchmark_folder: Path, tmp_path: Path) -> None:
    count = 120
    question_file = benchmark_folder / "point_questions.jsonl"
    some = [json.loads(line) for line in question_file.read_text().splitlines()]
    write_jsonl(question_file, [
        {**some[n % 6], "question_id": 1000 + n, "text": f"Point to mug {n}."} for n in range(count)
    ])  # fmt: skip
    answers, log = tmp_path / "out" / "m.jsonl", tmp_path / "server.jsonl"
    faults = "429=0.05,500=0.05,cut=0.05,wrong=0.1"
    serve = [
        sys.executable,
        str(SERVER),
        "--log",
        str(log),
        "--faults",
        faults,
        "--answer",
        "points",
        "--delay",
        "0.05",
    ]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        command = [sys.executable, "-m", "trace_vlm.eval.api_vqa",
                   *flags(benchmark_folder, answers, url, "--concurrency", "4")]  # fmt: skip
        cache = answers.with_suffix(".cache.jsonl")
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not cache.exists() or cache.read_bytes().count(b"\n") < count // 3:
            assert killed.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not answers.exists(), "no half of an answer file"
        with open(cache, "ab") as torn:
            torn.write(b'{"key": "00')  # as a crash of the system leaves it
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
    finally:
        server.terminate()
        server.wait()
    assert [line["question_id"] for line in lines(answers)] == [1000 + n for n in range(count)] and finished(answers)
    records = lines(log)
    assert {record["fault"] for record in records} >= {"none", "429", "500", "cut", "wrong"}
    completed = Counter(record["digest"] for record in records if record["completed"])
    assert sum(times - 1 for times in completed.values()) <= 4, "at most what was in flight when it was killed"
    assert any("sorry" in text for text in texts(answers)), "an answer without a point is an answer"


def test_unanswered_questions_are_reported_and_asked_again(benchmark_folder: Path, tmp_path: Path, capsys: Any) -> None:
    answers = tmp_path / "m.jsonl"
    with serving(answer=one_point, faults={"400": 0.5}, seed=3) as server:
        assert run(api_vqa.main, flags(benchmark_folder, answers, server.url, "--concurrency", "1")) == 2
        error, part = capsys.readouterr().err.splitlines()[-1], lines(answers)
        assert 0 < len(part) < 6 and f"{6 - len(part)} questions" in error and "HTTP 400" in error
        assert not finished(answers)
        server.faults = {}
        assert run(api_vqa.main, flags(benchmark_folder, answers, server.url)) == 0
        assert len(lines(answers)) == 6 and finished(answers)
        server.faults = {"400": 0.5}
        more = ("--concurrency", "1", "--runs", "2", "--temperature", "0.5")
        assert run(api_vqa.main, flags(benchmark_folder, tmp_path / "n.jsonl", server.url, *more)) == 2
    assert f"{tmp_path / 'n-1.jsonl'}, {tmp_path / 'n-2.jsonl'}" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "n-1.jsonl").is_file() and not (tmp_path / "n.jsonl").exists()


def test_server_that_refuses_everything_is_not_asked_everything(
    benchmark_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    question_file = benchmark_folder / "point_questions.jsonl"
    first = json.loads(question_file.read_text().splitlines()[0])
    write_jsonl(question_file, [{**first, "question_id": n} for n in range(60)])
    with serving(faults={"400": 1.0}, keep=True) as server:
        assert run(api_vqa.main, flags(benchmark_folder, tmp_path / "a.jsonl", server.url, "--concurrency", "2")) == 2
        assert len(server.asked) < 15
    assert "HTTP 400" in capsys.readouterr().err and not (tmp_path / "a.jsonl").exists()


def test_other_settings_do_not_continue_a_file(benchmark_folder: Path, tmp_path: Path, capsys: Any) -> None:
    answers, others = tmp_path / "m.jsonl", tmp_path / "others"
    shutil.copytree(benchmark_folder / "images", others)
    Image.open(others / "wide.png").rotate(180).save(others / "wide.png")
    with serving(answer=one_point, keep=True) as server:
        assert run(api_vqa.main, flags(benchmark_folder, answers, server.url)) == 0
        before = answers.read_bytes()
        for change, name in (
            (["--reasoning"], "reasoning"), (["--convention", "gemini"], "convention"), (["--model", "n"], "model"),
            (["--temperature", "1"], "temperature"), (["--images", str(others)], "images"),
        ):  # fmt: skip
            assert run(api_vqa.main, flags(benchmark_folder, answers, server.url, *change)) == 2
            assert name in capsys.readouterr().err
        assert answers.read_bytes() == before and len(server.asked) == 6
        assert run(api_vqa.main, flags(benchmark_folder, answers, server.url, "--reasoning", "--overwrite")) == 0
        assert len(server.asked) == 12


def test_another_server_uses_neither_file_nor_cache(benchmark_folder: Path, tmp_path: Path, capsys: Any) -> None:
    """The same name at another address is another model."""
    answers, other, cache = tmp_path / "m.jsonl", tmp_path / "other.jsonl", ["--cache", str(tmp_path / "shared.jsonl")]
    right, wrong = f"[({X}, {Y})]", "[(0.9, 0.5)]"
    with serving(answer=lambda _: right, keep=True) as first, serving(answer=lambda _: wrong, keep=True) as second:
        same = flags(benchmark_folder, answers, first.url, *cache)
        assert run(api_vqa.main, same) == 0
        assert run(api_vqa.main, [f"{word}/" if word.endswith("/v1") else word for word in same]) == 0
        assert run(api_vqa.main, flags(benchmark_folder, answers, second.url, *cache)) == 2
        assert f"server {first.url}/v1, not {second.url}/v1" in capsys.readouterr().err
        assert run(api_vqa.main, flags(benchmark_folder, other, second.url, *cache)) == 0
        assert (len(first.asked), len(second.asked)) == (6, 6)
        assert run(api_vqa.main, flags(benchmark_folder, answers, second.url, *cache, "--overwrite")) == 0
    assert texts(answers) == {wrong} == texts(other)


@pytest.mark.parametrize("named", [False, True])
def test_overwrite_asks_everything_again(named: bool, benchmark_folder: Path, tmp_path: Path) -> None:
    """As for a name that is served with new weights. Answers of others in a named cache stay."""
    answers, cache = tmp_path / "m.jsonl", ["--cache", str(tmp_path / "shared.jsonl")] if named else []
    with serving(answer=lambda _: "[(0.1, 0.1)]", keep=True) as server:
        words = flags(benchmark_folder, answers, server.url, *cache)
        others = flags(benchmark_folder, tmp_path / "n.jsonl", server.url, *cache, model="n")
        assert run(api_vqa.main, others) == run(api_vqa.main, words) == 0
        assert len(server.asked) == 12
        server.answer = lambda _: "[(0.2, 0.2)]"
        assert run(api_vqa.main, words) == 0
        assert len(server.asked) == 12 and texts(answers) == {"[(0.1, 0.1)]"}
        server.faults = {"400": 0.5}
        assert run(api_vqa.main, [*words, "--overwrite", "--concurrency", "1"]) == 2
        server.faults = {}
        assert run(api_vqa.main, words) == 0
        assert texts(answers) == {"[(0.2, 0.2)]"}, "no old answer where a request failed"
        asked = len(server.asked)
        assert run(api_vqa.main, others) == 0 and len(server.asked) == asked


def test_dry_run_needs_no_key_and_writes_nothing(
    benchmark_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    words = flags(benchmark_folder, tmp_path / "out" / "m.jsonl", "http://127.0.0.1:9", "--dry-run", model="gpt-4o")
    assert run(api_vqa.main, words) == 0
    output = capsys.readouterr().out
    assert "6 questions, 6 requests" in output and "about $" in output and "the red mug number 3." in output
    assert run(api_vqa.main, [*words, "--protocol", "paper"]) == 0
    output = capsys.readouterr().out
    assert "6 questions in 3 runs, 18 requests" in output and output.count("about $") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "more", "warning"),
    [
        ("[(250.5, 800.5), (100.5, 200.5)]", [], "12 of 12 points lie outside the image"),
        ("[(0.25, 0.8), (0.1, 0.2)]", ["--convention", "qwen3-vl"], "12 of 12 points lie below 1/100"),
    ],
)
def test_doubtful_convention_is_reported(
    text: str, more: list[str], warning: str, benchmark_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    with serving(answer=lambda asked: text) as server:
        assert run(api_vqa.main, flags(benchmark_folder, tmp_path / "m.jsonl", server.url, *more)) == 0
    assert warning in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--provider", "vllm"], "--base-url"),
        (["--provider", "openai", "--concurrency", "0"], "--concurrency"),
        (["--provider", "openai", "--convention", "molmo", "--box"], "--box"),
        (["--provider", "gemini", "--seed", "3"], "--seed"),
        (["--provider", "openai", "--runs", "3"], "--temperature"),
        (["--provider", "openai", "--price-in", "3"], "--price-out"),
        (["--provider", "openai", "--timeout", "nan"], "--timeout"),
    ],
)
def test_refused_flags(more: list[str], message: str, benchmark_folder: Path, tmp_path: Path, capsys: Any) -> None:
    common = ["--model", "m", "--data", str(benchmark_folder), "--answers", str(tmp_path / "m.jsonl")]
    assert run(api_vqa.main, [*common, *more]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    "metadata", [{"convention": "klingon"}, {"convention": "robobrain2"}, {"convention": "qwen2.5-vl", "sent": [0, 3]}]
)
def test_broken_record_of_a_convention_is_named(
    metadata: dict[str, Any], benchmark_folder: Path, write_answers: Callable[..., Path], capsys: Any
) -> None:
    path = write_answers({3: "[(1, 2)]"}, metadata=metadata)
    assert run(summarize_vqa.main, ["--answers", str(path), "--data", str(benchmark_folder)]) == 2
    assert "question 3" in capsys.readouterr().err


def test_broken_images_are_refused_or_skipped(benchmark_folder: Path, tmp_path: Path, capsys: Any) -> None:
    path, answers = benchmark_folder / "images" / "wide.png", tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    with serving(keep=True, answer=one_point) as server:
        words = flags(benchmark_folder, answers, server.url)
        assert run(api_vqa.main, words) == 2
        assert "1 of 3 images" in capsys.readouterr().err and not server.asked
        assert api_vqa.main([*words, "--skip-broken"]) == 0
        assert len(server.asked) == 4
    assert [line["question_id"] for line in lines(answers)] == [4, 5, 7, 8]
    assert read_json(run_file(answers))["skipped"] == [3, 6] and finished(answers)
    accuracy(answers)
    assert "2 of 6 questions were skipped" in capsys.readouterr().out
