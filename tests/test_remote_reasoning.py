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
from functools import partial
from pathlib import Path

import pytest
from api_server import reasoning, serving
from crew_provider import make_ending
from parallel_workers import HOW
from PIL import Image

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import question_text
from trace_vlm.core.reasoning import STEPS, parse
from trace_vlm.core.records import Sample, Turn, write_samples
from trace_vlm.data.cor import build, remote_build
from trace_vlm.data.cor.checks import Rules
from trace_vlm.data.cor.prompt import SYSTEM, VERSION, Writing, asked_again, drawn, request_for
from trace_vlm.data.cor.tasks import task_of
from trace_vlm.remote.crew import Crew
from trace_vlm.utils.command import run

pytest.importorskip("google.genai", reason="pip install 'trace-vlm[reason]'")
pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")

SERVER = Path(__file__).with_name("api_server.py")
FAST = ["--first-wait", "0.01", "--tries", "15"]


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def one(number, image="a.png", free=False):
    """A sample whose instruction no other has."""
    said = f"Find free space left of the mug {number}." if free else f"Point to the mug {number}."
    turns = (Turn("human", "<image>\n" + question_text(said, False)), Turn("gpt", f"[(0.{number % 900 + 100}, 0.500)]"))
    return Sample(f"s{number}", image, turns, {})


def data_set(folder, count, **extra):
    Image.new("RGB", (48, 32), "gray").save(folder / "a.png")
    write_samples(folder / "data.json", (one(number, free=number % 2 == 1, **extra) for number in range(count)))
    return folder / "data.json"


def command(folder, name, url, *flags, out="cor.json"):
    words = ["--data", str(folder / "data.json"), "--image-folder", str(folder), "--out", str(folder / out)]
    address = url if name == "gemini" else f"{url}/v1"
    return [*words, "--reasoner", name, "--model", "m", "--base-url", address, *FAST, *flags]


def made(folder, out="cor.json"):
    return json.loads((folder / out).read_text())


def rejects(folder, out="cor.json"):
    path = folder / f"{out}.rejects.jsonl"
    if not path.exists():
        return {}
    return {line["id"]: line["reason"] for line in map(json.loads, path.read_text().splitlines())}


# --- the prompt -----------------------------------------------------------------------------------


def test_the_prompt_s_wording_and_its_version_change_together():
    writing = Writing(Path("."), VERSION, Rules())
    texts = []
    for rules in (Rules(), Rules(coordinates=True)):
        first = request_for(task_of(one(7, free=True)), Writing(Path("."), VERSION, rules))
        texts += [first.system, first.text, asked_again(first, ["too long", "too short"]).text]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    assert (VERSION, digest) == ("cor-1", "89f10ed9267e2b0c"), "new wording: change VERSION, then this line"
    assert request_for(task_of(one(7)), writing).system == SYSTEM


@pytest.mark.parametrize("name", ["/etc/picture.png", "../picture.png"])
def test_a_picture_outside_of_the_folder_is_not_sent(name):
    sample = replace(one(7), image=name)
    with pytest.raises(ValueError, match="leaves the image folder"):
        request_for(task_of(sample), Writing(Path("."), VERSION, Rules()))


def test_the_writer_is_told_the_instruction_the_answer_and_why_it_is_asked_again():
    first = request_for(task_of(one(7)), Writing(Path("."), VERSION, Rules()))
    assert "Instruction: Point to the mug 7.\n" in first.text and "[(0.107, 0.500)]" in first.text
    assert "Your answer should be formatted" not in first.text
    second = asked_again(first, ["the step output holds coordinates"])
    assert second.text.startswith(first.text) and "1. the step output holds coordinates" in second.text
    assert (first.attempt, second.attempt) == (1, 2)


def test_the_answer_is_drawn_into_the_picture():
    image = drawn(Image.new("RGB", (200, 100), "black"), [Point(0.25, 0.5)])
    assert image.getpixel((50, 50)) == (255, 0, 255)
    assert image.getpixel((100, 50)) == (0, 0, 0)
    assert any(image.getpixel((x, 50)) == (255, 255, 255) for x in range(53, 60)), "a white rim"


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_pictures_are_sent_inline_with_the_marks_and_at_most_so_large(tmp_path, name):
    from io import BytesIO

    data_set(tmp_path, 1)
    Image.new("RGB", (900, 600), "black").save(tmp_path / "a.png")
    with serving(keep=True) as server:
        assert build.main(command(tmp_path, name, server.url, "--max-side", "300")) == 0
        (asked,) = server.asked
    picture = Image.open(BytesIO(asked.images[0]))
    assert (picture.format, picture.size) == ("JPEG", (300, 200))
    red, green, blue = picture.getpixel((30, 100))
    assert red > 200 and blue > 200 and green < 80
    wanted = {"gemini": "generationConfig", "openai": "response_format"}[name]
    assert '"required": ["reference", "target", "subtype", "output"]' in json.dumps(asked.body[wanted])


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
    told = capsys.readouterr().out
    assert "12 samples, 12 requests" in told and "12 samples with reasoning, 0 rejected" in told
    assert "in, " in told and "price    $0.0" in told
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
        asked = [one for one in server.asked if "mug 2." in one.text]
    assert len(server.asked) == 3 + 4, "a second run asks nothing"
    assert len(asked) == 4 and len({one.text for one in asked}) == 4
    assert [record["id"] for record in made(tmp_path)] == ["s0", "s1", "s3"]
    reason = "asked 4 times; the last text was rejected: the step reference holds coordinates (0.3)"
    assert rejects(tmp_path) == {"s2": reason}


def test_unreadable_images_and_samples_are_rejected_alone(tmp_path):
    data_set(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    samples = [one(0), one(1, "gone.png"), one(2, "broken.png"), one(3, None), one(0)]
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
    told = capsys.readouterr().out
    assert "30 samples, 30 requests" in told and "price    unknown for m" in told
    assert "time     roughly 3 min" in told and "Instruction: Point to the mug 0." in told
    build.main([*words, "--price-in", "1", "--price-out", "1000"])
    assert "price    roughly $6.6" in capsys.readouterr().out


def test_more_samples_later_ask_only_for_the_new_ones(tmp_path, capsys):
    data_set(tmp_path, 10)
    with serving() as server:
        build.main(command(tmp_path, "openai", server.url, "--limit", "4"))
        assert len(server.records) == 4 and len(made(tmp_path)) == 4
        capsys.readouterr()
        build.main(command(tmp_path, "openai", server.url))
        assert len(server.records) == 10 and len(made(tmp_path)) == 10
    assert "10 samples, 6 requests" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_another_server_is_asked_anew(tmp_path, monkeypatch, by):
    """The same name at another address is another model; its texts are not those that were paid for."""
    data_set(tmp_path, 3)

    def words(url, *flags):
        found = command(tmp_path, "openai", url, *flags)
        if by == "environment":
            place = found.index("--base-url")
            monkeypatch.setenv("OPENAI_BASE_URL", found[place + 1])
            del found[place : place + 2]
        return found

    with serving(keep=True) as first, serving(keep=True) as second:
        assert run(build.main, words(first.url)) == run(build.main, words(first.url)) == 0
        assert (len(first.asked), len(second.asked)) == (3, 0)
        assert run(build.main, words(second.url)) == 0
        assert (len(first.asked), len(second.asked)) == (3, 3)
    assert f"server={second.url}/v1" in json.loads((tmp_path / "cor.json.run.json").read_text())["prompt"]


def test_much_to_ask_is_sent_by_several_processes(tmp_path, monkeypatch):
    counts, begin = [], Crew.__init__

    def begun(self, make, model, place, count):
        counts.append(count)
        begin(self, make, model, place, count)

    monkeypatch.setattr(Crew, "__init__", begun)
    monkeypatch.setattr(remote_build, "WORTH_PROCESSES", 20)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    with serving(faults={"wrong": 0.2}, seed=1) as server:
        for count, wanted in ((12, []), (40, [2])):  # 28 of the 40 are still to be asked
            data_set(tmp_path, count)
            assert build.main(command(tmp_path, "openai", server.url, "--concurrency", "16")) == 0
            assert counts == wanted and len(made(tmp_path)) == count


def test_a_wrong_key_ends_with_one_sentence_and_nothing_written(tmp_path, capsys):
    data_set(tmp_path, 5)
    with serving(key="another") as server:
        assert run(build.main, command(tmp_path, "openai", server.url)) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and "OPENAI_API_KEY" in told
    assert not (tmp_path / "cor.json").exists()


@pytest.mark.parametrize("how", HOW)
def test_a_request_that_ends_every_process_is_named_and_all_others_are_written(how, tmp_path, monkeypatch, capsys):
    data_set(tmp_path, 12)
    monkeypatch.setattr(remote_build, "make_provider", partial(make_ending, how, "s7"))
    with serving(answer=reasoning) as server:
        words = command(tmp_path, "openai", server.url, "--processes", "2", "--concurrency", "2")
        assert run(build.main, words) == 1
        assert [sample["id"] for sample in made(tmp_path)] == [f"s{number}" for number in range(12) if number != 7]
        reason = f"its worker process ended 3 times, the last time by {HOW[how]}"
        assert rejects(tmp_path) == {"s7": reason}
        assert f"error: {tmp_path / 'cor.json'} lacks 1 samples" in (said := capsys.readouterr().err)
        assert f"s7: {reason}" in said
        asked = len(server.records)
        assert asked - 11 in (0, 1), (
            "of two at a time one other may be under way in the process that ends, and only once"
        )
        monkeypatch.undo()
        assert run(build.main, words) == 0 and len(made(tmp_path)) == 12
        assert len(server.records) == asked + 1, "the same command asks for what is missing, and for nothing else"


# --- killed and started again ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,count,processes",
    [
        ("openai", 150, 2),
        pytest.param("openai", 2000, 1, marks=pytest.mark.slow),
        pytest.param("openai", 2000, 2, marks=pytest.mark.slow),
        pytest.param("gemini", 2000, 2, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_nothing_is_lost_and_nothing_is_asked_twice(tmp_path, name, count, processes):
    concurrency, timeout = 48 if count == 2000 else 8, 20.0
    data_set(tmp_path, count)
    log = tmp_path / "server.jsonl"
    slow = 0.0005 if count == 2000 else 0.0  # each costs a whole time-out
    faults = f"429=0.04,500=0.04,slow={slow},cut=0.04,malformed=0.04,wrong=0.1"
    words = [sys.executable, str(SERVER), "--log", str(log), "--faults", faults]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        flags = ["--concurrency", str(concurrency), "--timeout", str(timeout), "--processes", str(processes)]
        words = [sys.executable, "-m", "trace_vlm.data.cor.build", *command(tmp_path, name, url, *flags)]
        cache = tmp_path / "cor.json.cache.jsonl"
        for share in (0.3, 0.7):
            killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not cache.exists() or cache.read_bytes().count(b"\n") < share * count:
                assert killed.poll() is None, "it ended before it could be killed"
                time.sleep(0.02)
            children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert len(children) >= (processes if processes > 1 else 0)
            until = time.monotonic() + 10
            while running := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
                assert time.monotonic() < until, f"{running} outlive the client"
                time.sleep(0.05)
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
    assert {record["fault"] for record in records} >= {"none", "429", "500", "cut", "malformed", "wrong"}
    completed = Counter(record["digest"] for record in records if record["completed"])
    twice = sum(times - 1 for times in completed.values())
    assert twice <= 2 * concurrency, f"{twice} completed requests were repeated after two kills"
    lines = [json.loads(line) for line in (tmp_path / "cor.json.cache.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines), "no response is in the cache twice"
    assert len(lines) == completed.total() - twice
