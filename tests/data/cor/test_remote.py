"""Reasoning from a remote model, end to end: the command against a server that misbehaves, killed and started again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from api_server import reasoning, serving
from PIL import Image
from shell import ROOT

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import question_text
from trace_vlm.core.reasoning import STEPS, parse
from trace_vlm.core.records import Sample, Turn, write_samples
from trace_vlm.data.cor import build
from trace_vlm.data.cor.checks import ReasoningTask
from trace_vlm.data.cor.remote import VERSION, PromptConfig, first_request, retry_request
from trace_vlm.utils.command import run

pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

SERVER = ROOT / "tests/api_server.py"


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def numbered(number, image="a.png", free=False):
    """A sample whose instruction no other has."""
    asked = f"Find free space left of the mug {number}." if free else f"Point to the mug {number}."
    answer = f"[(0.{number % 900 + 100}, 0.500)]"
    return Sample(f"s{number}", image, (Turn("human", f"<image>\n{question_text(asked, False)}"), Turn("gpt", answer)))


def data_set(folder, count):
    Image.new("RGB", (48, 32), "gray").save(folder / "a.png")
    write_samples(folder / "data.json", (numbered(number, free=number % 2 == 1) for number in range(count)))


def command(folder, name, url, *flags):
    words = ["--data", str(folder / "data.json"), "--images", str(folder), "--out", str(folder / "cor.json")]
    return [*words, "--reasoner", name, "--model", "m", "--base-url", f"{url}/v1", *flags]


def made(folder):
    return json.loads((folder / "cor.json").read_text())


def rejects(folder):
    path = folder / "cor.json.rejects.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["id"]: record["reason"] for record in map(json.loads, lines)}


# --- the prompt -----------------------------------------------------------------------------------


def request(sample, coordinates=False):
    return first_request(ReasoningTask.of(sample), PromptConfig(Path("."), VERSION, coordinates))


def test_the_prompt_s_wording_and_its_version_change_together():
    texts = []
    for coordinates in (False, True):
        first = request(numbered(7, free=True), coordinates)
        texts += [first.system, first.text, retry_request(first, ["too long", "too short"]).text]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    assert (VERSION, digest) == ("cor-1", "89f10ed9267e2b0c"), "new wording: change VERSION, then this line"


@pytest.mark.parametrize("name", ["/etc/picture.png", "../picture.png"])
def test_a_picture_outside_of_the_folder_is_not_sent(name):
    with pytest.raises(ValueError, match="picture.png"):
        request(replace(numbered(7), image=name))


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_pictures_are_sent_inline_with_the_marks_and_at_most_so_large(tmp_path, name):
    data_set(tmp_path, 1)
    Image.new("RGB", (900, 600), "black").save(tmp_path / "a.png")
    with serving(keep=True) as server:
        assert build.main(command(tmp_path, name, server.url, "--max-side", "300")) == 0
        (asked,) = server.asked
    picture = Image.open(BytesIO(asked.images[0]))
    assert (picture.format, picture.size) == ("JPEG", (300, 200))
    red, green, blue = picture.getpixel((30, 100))
    assert red > 200 and blue > 200 and green < 80
    assert '"required": ["reference", "target", "subtype", "output"]' in json.dumps(asked.body["response_format"])


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_the_command_writes_checked_reasoning_and_what_it_took(tmp_path, capsys, name):
    data_set(tmp_path, 12)
    with serving(faults={"wrong": 0.3}, seed=1) as server:
        assert build.main(command(tmp_path, name, server.url, "--price-in", "1", "--price-out", "2")) == 0
        assert sum(record["fault"] == "wrong" for record in server.records) > 0
    records = made(tmp_path)
    assert [record["id"] for record in records] == [f"s{number}" for number in range(12)]
    for number, record in enumerate(records):
        response = parse(record["conversations"][1]["value"])
        assert [step.key for step in response.steps] == list(STEPS)
        assert response.points == (Point((number + 100) / 1000, 0.5),), "the answer is the sample's own"
        assert f"the mug {number}" in response.steps[0].text
    printed = capsys.readouterr().out
    assert "12 samples, 12 requests" in printed and "12 samples with reasoning, 0 rejected" in printed
    assert "in, " in printed and "price    $0.0" in printed
    record = json.loads((tmp_path / "cor.json.run.json").read_text())
    assert record["remote"]["responses"] > 12 and record["prompt"].startswith(VERSION)
    assert "secret" not in (tmp_path / "cor.json.run.json").read_text()


def test_a_text_is_asked_three_times_again_and_then_rejected_with_its_reason(tmp_path):
    data_set(tmp_path, 4)

    def answer(asked):
        text = json.dumps(dict.fromkeys(STEPS, "The mug 2 stands at (0.3, 0.4), an object reference of free space."))
        return text if "mug 2." in asked.text else reasoning(asked)

    with serving(answer=answer, keep=True) as server:
        assert build.main(command(tmp_path, "openai", server.url)) == 0
        assert build.main(command(tmp_path, "openai", server.url)) == 0
        asked = [request for request in server.asked if "mug 2." in request.text]
    assert len(server.asked) == 3 + 4, "a second run asks nothing"
    assert len(asked) == 4 and len({request.text for request in asked}) == 4
    assert [record["id"] for record in made(tmp_path)] == ["s0", "s1", "s3"]
    reason = "asked 4 times; the last text was rejected: the step reference holds coordinates (0.3)"
    assert rejects(tmp_path) == {"s2": reason}


def test_unreadable_images_and_samples_are_rejected_alone(tmp_path):
    data_set(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    samples = [numbered(0), numbered(1, "gone.png"), numbered(2, "broken.png"), numbered(3, None), numbered(0)]
    write_samples(tmp_path / "data.json", samples)
    with serving() as server:
        assert build.main(command(tmp_path, "gemini", server.url)) == 0
        assert len(server.records) == 1
    reasons = rejects(tmp_path)
    assert [record["id"] for record in made(tmp_path)] == ["s0"]
    assert "gone.png does not exist" in reasons["s1"] and "cannot be read" in reasons["s2"]
    assert "no image" in reasons["s3"] and "appeared before" in reasons["s0"]


def test_a_dry_run_needs_no_key_and_no_network_and_leaves_nothing_but_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    data_set(tmp_path, 30)
    words = command(tmp_path, "gemini", "http://127.0.0.1:9", "--dry-run", "--requests-per-minute", "10")
    before = set(os.listdir(tmp_path))
    assert build.main(words) == 0
    assert set(os.listdir(tmp_path)) - before == {"cor.json.example.jpg"}
    printed = capsys.readouterr().out
    assert "30 samples, 30 requests" in printed and "price    unknown for m" in printed
    assert "time     about 3 min" in printed and "Instruction: Point to the mug 0." in printed
    build.main([*words, "--price-in", "1", "--price-out", "1000"])
    assert "price    about $6.6" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_another_server_is_asked_anew(tmp_path, monkeypatch, by):
    """The same name at another address is another model; its texts are not those that were paid for."""
    data_set(tmp_path, 3)

    def ask(url):
        words = command(tmp_path, "openai", url)
        if by == "environment":
            position = words.index("--base-url")
            monkeypatch.setenv("OPENAI_BASE_URL", words[position + 1])
            del words[position : position + 2]
        return run(build.main, words)

    with serving(keep=True) as first, serving(keep=True) as second:
        assert ask(first.url) == ask(first.url) == 0
        assert (len(first.asked), len(second.asked)) == (3, 0)
        assert ask(second.url) == 0
        assert (len(first.asked), len(second.asked)) == (3, 3)
    assert f"server={second.url}/v1" in json.loads((tmp_path / "cor.json.run.json").read_text())["prompt"]


# --- killed and started again ---------------------------------------------------------------------


@pytest.mark.parametrize("name,count", [("openai", 150), pytest.param("gemini", 2000, marks=pytest.mark.slow)])
def test_killed_in_the_middle_nothing_is_lost_and_nothing_is_asked_twice(tmp_path, name, count):
    concurrency, timeout = 48 if count == 2000 else 8, 20.0
    data_set(tmp_path, count)
    log = tmp_path / "server.jsonl"
    slow = 0.0005 if count == 2000 else 0.0  # each costs a whole time-out
    faults = f"429=0.04,500=0.04,slow={slow},cut=0.04,wrong=0.1"
    words = [sys.executable, str(SERVER), "--log", str(log), "--faults", faults]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        flags = ["--concurrency", str(concurrency), "--timeout", str(timeout)]
        words = [sys.executable, "-m", "trace_vlm.data.cor.build", *command(tmp_path, name, url, *flags)]
        cache = tmp_path / "cor.json.cache.jsonl"
        for share in (0.3, 0.7):
            killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not cache.exists() or cache.read_bytes().count(b"\n") < share * count:
                assert killed.poll() is None, "it ended before it could be killed"
                time.sleep(0.02)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert not (tmp_path / "cor.json").exists()
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    finally:
        server.terminate()
        server.wait()

    written, rejected = [record["id"] for record in made(tmp_path)], rejects(tmp_path)
    assert sorted([*written, *rejected]) == sorted(f"s{number}" for number in range(count)), "each sample once"
    order = {f"s{number}": number for number in range(count)}
    assert written == sorted(written, key=order.__getitem__)
    assert len(rejected) <= 0.02 * count
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {record["fault"] for record in records} >= {"none", "429", "500", "cut", "wrong"}
    completed = Counter(record["digest"] for record in records if record["completed"])
    twice = sum(times - 1 for times in completed.values())
    assert twice <= 2 * concurrency, f"{twice} completed requests were repeated after two kills"
    lines = [json.loads(line) for line in (tmp_path / "cor.json.cache.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines), "no response is in the cache twice"
    assert len(lines) == completed.total() - twice
