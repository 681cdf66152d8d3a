"""api_vqa: remote models asked and read in their own conventions, kill and resume, caches, refused input."""

import io
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from api_server import one_point, serving
from PIL import Image
from shell import kill_when
from small_benchmark import lines

from trace_vlm.core.conventions import CONVENTIONS
from trace_vlm.core.points import Box, Point
from trace_vlm.core.prompts import question_text
from trace_vlm.core.reasoning import render
from trace_vlm.eval import api_vqa, summarize_vqa
from trace_vlm.eval.benchmark import open_benchmark, run_file
from trace_vlm.eval.scoring import read_single_run
from trace_vlm.report.comparison import compare, read_comparison, write_comparison, write_question
from trace_vlm.utils.command import run
from trace_vlm.utils.files import read_json, write_jsonl

pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

X, Y = 0.25, 0.8  # in the region, which is the left half; the other way round it is not
FORMS = {  # by the size of the picture as it was sent
    "unit": lambda width, height: f"[({X}, {Y})]",
    "gemini": lambda width, height: f'```json\n[{{"point": [{1000 * Y:.0f}, {1000 * X:.0f}], "label": "mug"}}]\n```',
    "molmo": lambda width, height: f'<point x="{100 * X:.1f}" y="{100 * Y:.1f}" alt="mug">mug</point>',
    "molmo2": lambda width, height: f'<points coords="1 1 {1000 * X:.0f} {1000 * Y:.0f}">mug</points>',
    "qwen2.5-vl": lambda width, height: f'[{{"point_2d": [{X * width:.0f}, {Y * height:.0f}], "label": "mug"}}]',
    "qwen3-vl": lambda width, height: f'<think>(3, 4)?</think>[{{"point_2d": [{1000 * X:.0f}, {1000 * Y:.0f}]}}]',
    "robobrain2": lambda width, height: f"[({X * width:.0f}, {Y * height:.0f})]",
    "robobrain2.5": lambda width, height: f"[({1000 * X:.0f}, {1000 * Y:.0f}, 1.08)]",
}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "secret")


def sent_picture(asked):
    return Image.open(io.BytesIO(asked.images[0]))


def flags(folder, answers, url, *more, provider="openai", model="m"):
    return ["--provider", provider, "--model", model, "--base-url", f"{url}/v1", "--data", str(folder),
            "--answers", str(answers), *map(str, more)]  # fmt: skip


def texts(path):
    return {line["text"] for line in lines(path)}


def accuracy(answers):
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "20"]) == 0
    return read_json(answers.parent / "summary.json")["models"][0]["accuracy"][0]["mean"]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_model_is_asked_and_read_in_its_own_convention(name, bench, tmp_path):
    answers, provider = tmp_path / "out" / "m.jsonl", "gemini" if name == "gemini" else "openai"
    with serving(answer=lambda asked: FORMS[name](*sent_picture(asked).size)) as server:
        assert api_vqa.main(flags(bench, answers, server.url, "--convention", name, provider=provider)) == 0
    assert accuracy(answers) == 1.0 and len(server.asked) == 6
    assert all(CONVENTIONS[name].points in asked.text for asked in server.asked)
    written = lines(answers)
    assert [line["question_id"] for line in written] == list(range(3, 9))
    sizes = {asked.text: [*sent_picture(asked).size] for asked in server.asked}
    assert all(line["text"] == FORMS[name](*sizes[line["prompt"]]) for line in written), "the reply is kept unchanged"
    if CONVENTIONS[name].scale is None:  # a server of the Qwen2.5-VL family has nothing left to resize
        assert {side % 28 for size in sizes.values() for side in size} == {0}
        assert all(line["metadata"]["sent"] == sizes[line["prompt"]] for line in written)

    comparison = compare(open_benchmark(bench), {"m": answers})  # the report shows the points that were read
    item = write_question(tmp_path, comparison, comparison.benchmark.questions[0], drawn=False)
    write_comparison(tmp_path, comparison.overall, [item])
    _, (item,) = read_comparison(tmp_path)
    (point,) = item.answers[0].response(item.size).points
    assert comparison.overall[0].accuracy == 1.0 and (point.x, point.y) == pytest.approx((X, Y), abs=0.01)


@pytest.mark.parametrize(("model", "more", "code", "output"), [
    ("qwen3_vl_8b", [], 0, "convention qwen3-vl"), ("gpt-4o", [], 0, "6 requests"),
    ("gpt-4o", ["--protocol", "paper"], 0, "18 requests"), ("allenai/MolmoPoint-8B", [], 2, ""),  # writes no points
    ("my-finetune-of-gemini-data", [], 0, "convention unit"),  # assumed, with a warning
    ("my-finetune-of-gemini-data", ["--convention", "gemini"], 0, "convention gemini"),
])  # fmt: skip
def test_dry_run_needs_no_key_and_writes_nothing(model, more, code, output, bench, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    words = flags(bench, tmp_path / "out" / "m.jsonl", "http://127.0.0.1:9", "--dry-run", *more, model=model)
    assert run(api_vqa.main, words) == code
    printed = capsys.readouterr()
    assert output in printed.out and ("warning" in printed.err) == ("unit" in output)
    assert printed.out.count("about $") == (model == "gpt-4o") and not (tmp_path / "out").exists()


def test_box_counts_with_all_of_its_pixels(bench, tmp_path):
    answers = tmp_path / "m.jsonl"
    box = '[{"box_2d": [0, 0, 1000, 750], "label": "left"}]'  # the region and half of the other side
    with serving(answer=lambda _: box) as server:
        assert api_vqa.main(flags(bench, answers, server.url, "--box", provider="gemini", model="gemini-9")) == 0
    assert all("box_2d" in asked.text and '"point"' not in asked.text for asked in server.asked)
    responses = read_single_run(answers, "m", open_benchmark(bench)).responses
    assert responses["3"].points == (Box(0.0, 0.0, 0.75, 1.0),) and 0.6 < accuracy(answers) < 0.7


def test_own_model_behind_a_server_is_asked_with_the_training_prompt(bench, tmp_path):
    answers, benchmark = tmp_path / "trace.jsonl", open_benchmark(bench)
    steps = {"reference": "The red mug at (0.9, 0.9).", "target": "The left half.", "subtype": "Free.", "output": "Two"}
    points = Point(0.25, 0.8), Point(0.301, 0.512)
    with serving(answer=lambda asked: render(steps, points)) as server:
        assert api_vqa.main(flags(bench, answers, server.url, "--reasoning", provider="vllm", model="trace-13b")) == 0
    assert {asked.text for asked in server.asked} == {question_text(one.text, True) for one in benchmark.questions}
    response = read_single_run(answers, "trace", benchmark).responses["5"]
    assert [step.key for step in response.steps] == list(steps)
    assert response.points == points and accuracy(answers) == 1.0


def test_picture_is_sent_unchanged_unless_something_has_to_change(bench, tmp_path):
    images, exif = bench / "images", Image.Exif()
    exif[274] = 6  # seen upright it is 40 x 61
    Image.open(images / "wide.png").convert("RGB").save(images / "wide.png", exif=exif)
    with serving(answer=one_point) as server:
        assert api_vqa.main(flags(bench, tmp_path / "a.jsonl", server.url, "--max-side", 45)) == 0
    sent = {asked.text.split(" number ")[1][:1]: asked for asked in server.asked}
    assert sent["5"].images[0] == (images / "square.png").read_bytes()
    assert sent_picture(sent["4"]).size == (30, 45) == sent_picture(sent["3"]).size  # tall.png is 33 x 50
    assert not sent_picture(sent["3"]).getexif()


def test_doubtful_convention_is_reported(bench, tmp_path, capsys):
    with serving(answer=lambda asked: "[(250.5, 800.5), (100.5, 200.5)]") as server:
        assert run(api_vqa.main, flags(bench, tmp_path / "m.jsonl", server.url)) == 0
    assert "12 of 12 points" in capsys.readouterr().out


def test_several_runs_and_their_price(bench, tmp_path, capsys):
    with serving(answer=one_point) as server:
        words = flags(bench, tmp_path / "m.jsonl", server.url, "--protocol", "paper", "--seed", 5,
                      "--price-in", 2.5, "--price-out", 10)  # fmt: skip
        assert api_vqa.main(words) == 0 == api_vqa.main(words)
    assert Counter(asked.body["seed"] for asked in server.asked) == {5: 6, 6: 6, 7: 6}, "nothing is asked twice"
    assert {asked.body["temperature"] for asked in server.asked} == {0.2}
    runs = [tmp_path / f"m-{number}.jsonl" for number in (1, 2, 3)]
    assert [[line["run"] for line in lines(path)] for path in runs] == [[1] * 6, [2] * 6, [3] * 6]
    tokens_in = sum(line["metadata"]["tokens_in"] for line in lines(runs[0]))
    output = capsys.readouterr().out
    assert read_json(run_file(runs[0]))["price"]["input"] == 2.5 and f"{tokens_in:,} in" in output and "$" in output


def test_killed_and_started_again_nothing_is_asked_twice(bench, tmp_path):
    count, answers = 120, tmp_path / "out" / "m.jsonl"
    cache, some = answers.with_suffix(".cache.jsonl"), lines(bench / "point_questions.jsonl")
    many = [{**some[n % 6], "question_id": 1000 + n, "text": f"Point to mug {n}."} for n in range(count)]
    write_jsonl(bench / "point_questions.jsonl", many)
    faults = {"429": 0.05, "500": 0.05, "cut": 0.05, "wrong": 0.1}
    with serving(answer=one_point, faults=faults, delay=0.05) as server:
        words = flags(bench, answers, server.url, "--concurrency", 4)
        command = [sys.executable, "-m", "trace_vlm.eval.api_vqa", *words]
        kill_when(lambda: cache.exists() and cache.read_bytes().count(b"\n") >= count // 3, command)
        assert not answers.exists(), "no half of an answer file"
        with open(cache, "ab") as torn:
            torn.write(b'{"key": "00')  # as a crash of the system leaves it
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
    assert [line["question_id"] for line in lines(answers)] == [1000 + n for n in range(count)]
    assert read_json(run_file(answers))["finished"]
    assert {record["fault"] for record in server.records} >= {"none", *faults}
    completed = Counter(record["digest"] for record in server.records if record["completed"])
    assert sum(times - 1 for times in completed.values()) <= 4, "at most what was in flight when it was killed"
    assert any("sorry" in text for text in texts(answers)), "an answer without a point is an answer"


def test_unanswered_questions_are_reported_and_asked_again(bench, tmp_path, capsys):
    answers, one_by_one = tmp_path / "m.jsonl", ("--concurrency", 1)
    with serving(answer=one_point, faults={"400": 0.5}, seed=3) as server:
        assert run(api_vqa.main, flags(bench, answers, server.url, *one_by_one)) == 2
        error, part = capsys.readouterr().err.splitlines()[-1], lines(answers)
        assert 0 < len(part) < 6 and f"{6 - len(part)} questions" in error and "HTTP 400" in error
        assert not read_json(run_file(answers))["finished"]
        more = (*one_by_one, "--runs", 2, "--temperature", 0.5)
        assert run(api_vqa.main, flags(bench, tmp_path / "n.jsonl", server.url, *more)) == 2
        assert str(tmp_path / "n-2.jsonl") in capsys.readouterr().err and (tmp_path / "n-1.jsonl").is_file()
        server.faults = {}
        assert run(api_vqa.main, flags(bench, answers, server.url)) == 0
    assert len(lines(answers)) == 6 and read_json(run_file(answers))["finished"]


def test_server_that_refuses_everything_is_not_asked_everything(bench, tmp_path, capsys):
    first = lines(bench / "point_questions.jsonl")[0]
    write_jsonl(bench / "point_questions.jsonl", [{**first, "question_id": n} for n in range(60)])
    with serving(faults={"400": 1.0}) as server:
        assert run(api_vqa.main, flags(bench, tmp_path / "a.jsonl", server.url, "--concurrency", 2)) == 2
    assert len(server.asked) < 15
    assert "HTTP 400" in capsys.readouterr().err and not (tmp_path / "a.jsonl").exists()


def test_other_settings_do_not_continue_a_file(bench, tmp_path, capsys):
    answers, others = tmp_path / "m.jsonl", shutil.copytree(bench / "images", tmp_path / "others")
    Image.open(others / "wide.png").rotate(180).save(others / "wide.png")
    changes = ["reasoning"], ["convention", "gemini"], ["model", "n"], ["temperature", 1], ["images", others]
    with serving(answer=one_point) as server:
        assert run(api_vqa.main, flags(bench, answers, server.url)) == 0
        for name, *value in changes:
            assert run(api_vqa.main, flags(bench, answers, server.url, f"--{name}", *value)) == 2
            assert name in capsys.readouterr().err and len(server.asked) == 6
        assert run(api_vqa.main, flags(bench, answers, server.url, "--reasoning", "--overwrite")) == 0
    assert len(server.asked) == 12


def test_another_server_uses_neither_file_nor_cache(bench, tmp_path, capsys):
    """The same name at another address is another model."""
    answers, other, cache = tmp_path / "m.jsonl", tmp_path / "other.jsonl", ["--cache", tmp_path / "shared.jsonl"]
    right, wrong = f"[({X}, {Y})]", "[(0.9, 0.5)]"
    with serving(answer=lambda _: right) as first, serving(answer=lambda _: wrong) as second:
        same = flags(bench, answers, first.url, *cache)
        assert run(api_vqa.main, same) == 0
        assert run(api_vqa.main, [f"{word}/" if word.endswith("/v1") else word for word in same]) == 0
        assert run(api_vqa.main, flags(bench, answers, second.url, *cache)) == 2
        assert f"{first.url}/v1" in capsys.readouterr().err
        assert run(api_vqa.main, flags(bench, other, second.url, *cache)) == 0
        assert (len(first.asked), len(second.asked)) == (6, 6)
        assert run(api_vqa.main, flags(bench, answers, second.url, *cache, "--overwrite")) == 0
    assert texts(answers) == {wrong} == texts(other)


@pytest.mark.parametrize("named", [False, True])
def test_overwrite_asks_everything_again(named, bench, tmp_path):
    """As for a name that is served with new weights. Answers of others in a named cache stay."""
    answers, cache = tmp_path / "m.jsonl", ["--cache", tmp_path / "shared.jsonl"] if named else []
    with serving(answer=lambda _: "[(0.1, 0.1)]") as server:
        words = flags(bench, answers, server.url, *cache)
        others = flags(bench, tmp_path / "n.jsonl", server.url, *cache, model="n")
        assert run(api_vqa.main, others) == run(api_vqa.main, words) == 0
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


@pytest.mark.parametrize(("more", "named"), [
    (["--provider", "vllm"], "--base-url"), (["--concurrency", "0"], "--concurrency"),
    (["--convention", "molmo", "--box"], "--box"), (["--provider", "gemini", "--seed", "3"], "--seed"),
    (["--runs", "3"], "--temperature"), (["--price-in", "3"], "--price-out"), (["--timeout", "nan"], "--timeout"),
])  # fmt: skip
def test_refused_flags(more, named, bench, tmp_path, capsys):
    common = ["--provider", "openai", "--model", "m", "--data", str(bench), "--answers", str(tmp_path / "m.jsonl")]
    assert run(api_vqa.main, [*common, *more]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "m.jsonl").exists()


def test_broken_images_are_refused_or_skipped(bench, tmp_path, capsys):
    path, answers = bench / "images" / "wide.png", tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    with serving(answer=one_point) as server:
        words = flags(bench, answers, server.url)
        assert run(api_vqa.main, words) == 2
        assert "wide.png" in capsys.readouterr().err and not server.asked
        assert api_vqa.main([*words, "--skip-broken"]) == 0
    assert len(server.asked) == 4 and [line["question_id"] for line in lines(answers)] == [4, 5, 7, 8]
    record = read_json(run_file(answers))
    assert record["skipped"] == [3, 6] and record["finished"]
