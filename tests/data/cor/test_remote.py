"""Reasoning from a remote model, end to end: the command against a server that misbehaves, killed and started again."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from api_server import reasoning, serving
from generated_samples import ABSENT
from PIL import Image
from shell import kill_when

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import question_text
from trace_vlm.core.reasoning import STEPS, parse
from trace_vlm.core.records import Sample, Turn, write_samples
from trace_vlm.data.cor import build
from trace_vlm.data.cor.checks import ReasoningTask, Rejected, check, with_steps
from trace_vlm.data.cor.remote import VERSION, PromptConfig, first_request, retry_request
from trace_vlm.utils.command import run

pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "secret")


def numbered(number, image="a.png", free=False):
    """A sample whose instruction no other has."""
    asked = f"Find free space left of the mug {number}." if free else f"Point to the mug {number}."
    answer = f"[(0.{number % 900 + 100}, 0.500)]"
    return Sample(f"s{number}", image, (Turn("human", f"<image>\n{question_text(asked, False)}"), Turn("gpt", answer)))


def data_set(folder, count):
    Image.new("RGB", (48, 32), "gray").save(folder / "a.png")
    write_samples(folder / "data.json", (numbered(number, free=number % 2 == 1) for number in range(count)))


def test_a_remote_writer_is_told_that_nothing_is_there_and_must_say_so():
    task = ReasoningTask.of(ABSENT[0])
    text = first_request(task, PromptConfig(Path("."), VERSION)).text
    assert (
        "is not there: there is no blue mug. " in text
        and "Seen instead: the red mug." in text
        and "magenta" not in text
    )
    steps = {"reference": "It refers to the blue mug. The mug on the table is red.", "target": "A blue mug is not there.",
             "subtype": "The goal is object reference.", "output": "No points are given."}  # fmt: skip
    check(steps, task)
    assert with_steps(task, steps, 3).conversations[1].text.endswith("\nNone: there is no blue mug.")
    for changed in (
        {"target": "It lies on the table.", "output": "Points are given."},
        {"reference": "It is the blue one."},
    ):
        with pytest.raises(Rejected):
            check(steps | changed, task)


def command(folder, name, url, *flags):
    words = ["--data", str(folder / "data.json"), "--images", str(folder), "--out", str(folder / "cor.json")]
    return [*words, "--reasoner", name, "--model", "m", "--base-url", f"{url}/v1", *flags]


def made(folder):
    return json.loads((folder / "cor.json").read_text())


def rejects(folder):
    path = folder / "cor.json.rejects.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["id"]: record["reason"] for record in map(json.loads, lines)}


def test_the_prompt_s_wording_and_its_version_change_together():
    texts, task = [], ReasoningTask.of(numbered(7, free=True))
    for coordinates in (False, True):
        first = first_request(task, PromptConfig(Path("."), VERSION, coordinates))
        texts += [first.system, first.text, retry_request(first, ["too long", "too short"]).text]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    assert (VERSION, digest) == ("cor-1", "89f10ed9267e2b0c"), "new wording: change VERSION, then this line"


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_pictures_are_sent_inline_with_the_marks_and_at_most_so_large(tmp_path, name):
    data_set(tmp_path, 1)
    Image.new("RGB", (900, 600), "black").save(tmp_path / "a.png")
    with serving() as server:
        assert build.main(command(tmp_path, name, server.url, "--max-side", "300")) == 0
        (asked,) = server.asked
    picture = Image.open(BytesIO(asked.images[0]))
    assert (picture.format, picture.size) == ("JPEG", (300, 200))
    red, green, blue = picture.getpixel((30, 100))
    assert red > 200 and blue > 200 and green < 80
    assert '"required": ["reference", "target", "subtype", "output"]' in json.dumps(asked.body["response_format"])


def test_the_command_writes_checked_reasoning_and_what_it_took(tmp_path, capsys):
    data_set(tmp_path, 12)
    with serving(faults={"wrong": 0.3}, seed=1) as server:
        assert build.main(command(tmp_path, "gemini", server.url, "--price-in", "1", "--price-out", "2")) == 0
        assert sum(record["fault"] == "wrong" for record in server.records) > 0
    records = made(tmp_path)
    assert [record["id"] for record in records] == [f"s{number}" for number in range(12)]
    for number, record in enumerate(records):
        response = parse(record["conversations"][1]["value"])
        assert [step.key for step in response.steps] == list(STEPS)
        assert response.points == (Point((number + 100) / 1000, 0.5),), "the answer is the sample's own"
        assert f"the mug {number}" in response.steps[0].text
    printed = capsys.readouterr().out
    assert "12 samples with reasoning, 0 rejected" in printed and "price    $0.0" in printed
    text = (tmp_path / "cor.json.run.json").read_text()
    assert json.loads(text)["remote"]["responses"] > 12 and VERSION in text and "secret" not in text


def test_a_text_is_asked_three_times_again_and_then_rejected_with_its_reason(tmp_path):
    data_set(tmp_path, 4)
    text = json.dumps(dict.fromkeys(STEPS, "The mug 2 stands at (0.3, 0.4), an object reference of free space."))
    with serving(answer=lambda asked: text if "mug 2." in asked.text else reasoning(asked)) as server:
        for _ in range(2):
            assert build.main(command(tmp_path, "openai", server.url)) == 0
        asked = [request for request in server.asked if "mug 2." in request.text]
    assert len(server.asked) == 3 + 4, "a second run asks nothing"
    assert len(asked) == 4 and len({request.text for request in asked}) == 4
    assert [record["id"] for record in made(tmp_path)] == ["s0", "s1", "s3"]
    assert "the step reference holds coordinates (0.3)" in rejects(tmp_path)["s2"] and len(rejects(tmp_path)) == 1


def test_unreadable_images_and_samples_are_rejected_alone(tmp_path):
    data_set(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    images = ("a.png", "gone.png", "broken.png", None, "/etc/picture.png", "../picture.png")
    write_samples(tmp_path / "data.json", [*map(numbered, range(6), images), numbered(0)])
    with serving() as server:
        assert build.main(command(tmp_path, "gemini", server.url)) == 0
        assert len(server.records) == 1
    reasons = rejects(tmp_path)
    assert [record["id"] for record in made(tmp_path)] == ["s0"]
    named = ("before", "gone.png", "read", "image", "/etc/picture.png", "../picture.png")
    assert sorted(reasons) == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert all(word in reasons[f"s{number}"] for number, word in enumerate(named))


def test_a_dry_run_needs_no_key_and_no_network_and_leaves_nothing_but_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    data_set(tmp_path, 30)
    words = command(tmp_path, "gemini", "http://127.0.0.1:9", "--dry-run", "--requests-per-minute", "10")
    assert build.main(words) == 0
    assert set(os.listdir(tmp_path)) == {"a.png", "data.json", "cor.json.example.jpg"}
    printed = capsys.readouterr().out
    assert "30 samples, 30 requests" in printed and "price    unknown for m" in printed
    assert "time     about 3 min" in printed and "Instruction: Point to the mug 0." in printed
    build.main([*words, "--price-in", "1", "--price-out", "1000"])
    assert "price    about $6.6" in capsys.readouterr().out


def test_another_server_is_asked_anew(tmp_path, monkeypatch):
    """The same name at another address is another model; its texts are not those that were paid for."""
    data_set(tmp_path, 3)
    words = command(tmp_path, "openai", "")[:-2]  # no --base-url
    with serving() as first, serving() as second:
        for server, asked in ((first, (3, 0)), (first, (3, 0)), (second, (3, 3))):
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
            assert run(build.main, words) == 0 and (len(first.asked), len(second.asked)) == asked


@pytest.mark.parametrize("name,count", [("openai", 150), pytest.param("gemini", 2000, marks=pytest.mark.slow)])
def test_killed_in_the_middle_nothing_is_lost_and_nothing_is_asked_twice(tmp_path, name, count):
    concurrency, slow = (48, 0.0005) if count == 2000 else (8, 0.0)  # a slow one costs a whole time-out
    data_set(tmp_path, count)
    cache, faults = tmp_path / "cor.json.cache.jsonl", {"429": 0.04, "500": 0.04, "cut": 0.04, "wrong": 0.1}
    with serving(faults=faults | {"slow": slow}) as server:
        flags = ["--concurrency", str(concurrency), "--timeout", "20"]
        words = [sys.executable, "-m", "trace_vlm.data.cor.build", *command(tmp_path, name, server.url, *flags)]
        for share in (0.3, 0.7):
            kill_when(lambda: cache.exists() and cache.read_bytes().count(b"\n") >= share * count, words)  # noqa: B023
            assert not (tmp_path / "cor.json").exists()
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]

    written, rejected = [record["id"] for record in made(tmp_path)], rejects(tmp_path)
    assert sorted([*written, *rejected]) == sorted(f"s{number}" for number in range(count)), "each sample once"
    assert written == sorted(written, key=lambda name: int(name[1:])) and len(rejected) <= 0.02 * count
    assert {record["fault"] for record in server.records} >= {"none", *faults}
    completed = Counter(record["digest"] for record in server.records if record["completed"])
    twice = sum(times - 1 for times in completed.values())
    assert twice <= 2 * concurrency, f"{twice} completed requests were repeated after two kills"
    keys = [json.loads(line)["key"] for line in cache.read_text().splitlines()]
    assert len(set(keys)) == len(keys) == completed.total() - twice, "no response is in the cache twice"
