"""Samples, questions and answers: round trips, foreign files, mistakes named by line and field."""

import json
import re
import subprocess
import sys

import pytest

from trace_vlm.core import records
from trace_vlm.core.records import Answer, Question, Sample, Turn, answered, read_answers, read_questions, read_samples
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_jsonl

TURNS = (Turn("human", "<image>\nFind the müg."), Turn("gpt", "[(0.461, 0.527)]"))
SAMPLES = [Sample("0", "images/0.png", TURNS, {"task": "free_space", "points": [[0.461, 0.527]]})]
SAMPLES += [Sample("1", None, (*TURNS, Turn("human", "and the \u00e9?"), Turn("gpt", "\u2028 [] \U0001f600")))]
QUESTIONS = [Question(0, "0.png", "Where?", "seen", {"kind": "direct"}), Question("b", "0.png", "And there?")]
ANSWERS = [Answer(0, "prompt", "(0.1, 0.2)", "id-0", "nano", "seen", 0.5, 3, 0, (1, 2), {"seconds": 0.1})]
ANSWERS += [Answer(0, "prompt", "(0.3, 0.2)", "id-1", "nano", run=1)]


def write_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def question_line(question_id, **more):
    return json.dumps({"question_id": question_id, "image": "0.png", "text": "Where?"} | more)


def as_list(path):
    return list(read_samples(path))


def test_samples_questions_and_answers_round_trip(tmp_path):
    records.write_samples(tmp_path / "data.json", iter(SAMPLES))
    assert as_list(tmp_path / "data.json") == SAMPLES
    assert len((tmp_path / "data.json").read_bytes().splitlines()) == len(SAMPLES) + 2  # one sample a line
    turns = [{"from": "human", "value": "<image>\nFind the müg."}, {"from": "gpt", "value": "[(0.461, 0.527)]"}]
    meta = {"task": "free_space", "points": [[0.461, 0.527]]}
    first = {"id": "0", "image": "images/0.png", "conversations": turns, "meta": meta}
    assert read_json(tmp_path / "data.json")[0] == first
    assert "image" not in SAMPLES[1].as_json(), "LLaVA tells text-only samples by the missing key"
    records.write_samples(tmp_path / "none.json", [])
    assert as_list(tmp_path / "none.json") == read_json(tmp_path / "none.json") == []
    broken = Sample("1", None, (Turn("human", "the \ud83d?"), Turn("gpt", "no")))  # half a character
    records.write_samples(tmp_path / "broken.json", [broken])
    assert as_list(tmp_path / "broken.json")[0].conversations[0].text == "the \ufffd?"
    records.write_questions(tmp_path / "q.jsonl", QUESTIONS)
    assert read_questions(tmp_path / "q.jsonl") == QUESTIONS
    path = write_lines(tmp_path / "q.jsonl", question_line(1, split="a", meta={"kind": "free", "split": "b"}))
    assert read_questions(path) == [Question(1, "0.png", "Where?", None, {"split": "b", "kind": "free"})]
    write_jsonl(tmp_path / "a.jsonl", [answer.as_json() for answer in ANSWERS])
    assert read_answers(tmp_path / "a.jsonl") == ANSWERS
    keys = "question_id prompt text answer_id model_id category confidence seed run token_ids metadata"
    assert list(ANSWERS[0].as_json()) == keys.split()


def test_foreign_samples_and_answers_are_read(tmp_path):
    turns = [{"from": "human", "value": "hi", "weight": 1}, {"from": "gpt", "value": "ho"}]
    foreign = [{"id": 7, "model": "x", "conversations": turns}, {"id": "8", "image": None, "conversations": turns}]
    samples = [Sample("7", None, (Turn("human", "hi"), Turn("gpt", "ho")), {"model": "x"})]
    samples.append(Sample("8", None, samples[0].conversations))
    (tmp_path / "pretty.json").write_text(json.dumps(foreign, indent=4), encoding="utf-8-sig")
    (tmp_path / "compact.json").write_text(json.dumps(foreign, separators=(",", ":")))
    write_lines(tmp_path / "data.jsonl", *[json.dumps(record) for record in foreign], "", "  ")
    (tmp_path / "marked.jsonl").write_text((tmp_path / "data.jsonl").read_text(), encoding="utf-8-sig")
    for name in ("pretty.json", "compact.json", "data.jsonl", "marked.jsonl"):
        assert as_list(tmp_path / name) == samples
    line = {"question_id": 3, "prompt": "p", "text": "(1, 1)", "answer_id": "x", "model_id": "m", "metadata": {}}
    path = write_lines(tmp_path / "a.jsonl", json.dumps(line), json.dumps({"question_id": 4, "text": "", "extra": 1}))
    assert read_answers(path) == [Answer(3, "p", "(1, 1)", "x", "m"), Answer(4, "", "", "", "", metadata={"extra": 1})]


def test_answered(tmp_path):
    path = tmp_path / "a.jsonl"
    assert answered(path) == set()
    write_jsonl(path, [answer.as_json() for answer in ANSWERS] + [{"question_id": "b", "text": ""}])
    assert answered(path) == {0, "b"}
    with open(path, "a") as file:
        file.write('{"question_id": 9, "te')
    assert answered(path) == {0, "b"}
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(InputError, match="line 1"):
        answered(path)


def conversation(**turn):
    return json.dumps({"id": "0", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt"} | turn]})


@pytest.mark.parametrize("line, named", [
    ('{"id": "0"}', "conversations"), ('{"id": "0", "conversations": []}', "conversations"),
    ('{"conversations": [{"from": "human", "value": ""}]}', '"id"'), ('{"id": true, "conversations": []}', '"id"'),
    ('{"id": "0", "conversations": {}}', "conversations"), ('{"id": "0", "conversations": ["x"]}', "turn 1"),
    ('{"id": "0", "image": 3, "conversations": []}', "image"), (conversation(), 'turn 2: "value"'),
    (conversation(value=None), 'turn 2: "value"'), (conversation(value="x", **{"from": "system"}), 'turn 2: "from"'),
    (conversation(value="the \ud83d cup"), 'turn 2: "value"'),  # half a surrogate pair
])  # fmt: skip
def test_mistakes_in_a_sample(tmp_path, line, named):
    good = json.dumps(SAMPLES[0].as_json())
    with pytest.raises(InputError, match=rf"data.jsonl, line 2.*{named}"):
        as_list(write_lines(tmp_path / "data.jsonl", good, line))
    with pytest.raises(InputError, match=rf"data.json, line 3 \(sample 1\).*{named}"):
        as_list(write_lines(tmp_path / "data.json", "[", f"{good},", line, "]"))


@pytest.mark.parametrize("lines, named", [
    ([question_line(0), "{broken"], "line 2"), ([question_line(0), "", "[]"], "line 3"),
    ([question_line(0), '{"image": "0.png", "text": "x"}'], 'line 2: "question_id"'),
    ([question_line(0.5)], 'line 1: "question_id"'), ([question_line("")], 'line 1: "question_id"'),
    ([question_line(0), question_line(1, image=None)], 'line 2: "image"'),
    ([question_line(0), question_line(1, text=5)], 'line 2: "text"'),
    ([question_line(0), question_line(1, text="the \ud83d cup")], 'line 2: "text"'),
    ([question_line(0), question_line(1), question_line(0)], "line 3: question_id 0 .* line 1"),
    ([question_line(7), question_line("7")], "line 2: question_id 7 .* line 1"),
    ([question_line(0, meta=[])], 'line 1: "meta"'), ([""], "q.jsonl"),
])  # fmt: skip
def test_mistakes_in_questions(tmp_path, lines, named):
    with pytest.raises(InputError, match=named):
        read_questions(write_lines(tmp_path / "q.jsonl", *lines))


@pytest.mark.parametrize("field, value", [
    ("text", None), ("text", "the \ud83d cup"), ("run", True), ("seed", "3"), ("confidence", "high"),
    ("confidence", 10**400), ("confidence", float("nan")),
    ("token_ids", [1, "2"]), ("metadata", []),
])  # fmt: skip
def test_mistakes_in_answers(tmp_path, field, value):
    good = {"question_id": 0, "text": ""}
    path = write_lines(tmp_path / "a.jsonl", *map(json.dumps, (good, good | {"question_id": 1, field: value})))
    with pytest.raises(InputError, match=rf'a.jsonl, line 2: "{field}"'):
        read_answers(path)


def test_an_answer_may_appear_once_a_run_and_a_cut_line_is_none(tmp_path):
    lines = [json.dumps(answer.as_json()) for answer in ANSWERS]
    path = write_lines(tmp_path / "a.jsonl", *lines, lines[1])
    with pytest.raises(InputError, match="line 3: question_id 0 of run 1 .* line 2"):
        read_answers(path)
    path.write_text(lines[0] + "\n" + lines[1][:-5])
    with pytest.raises(InputError, match="line 2"):
        read_answers(path)


@pytest.mark.parametrize("read", [read_samples, read_questions, read_answers])
def test_absent_and_empty_files_and_bytes_that_are_no_text_are_named(tmp_path, read):
    (tmp_path / "picture.json").write_bytes(b'{"question_id": "\xff\xd8\xff\xe0"}\n')
    (tmp_path / "empty.json").write_text(" \n")
    for name in ("nowhere.json", "picture.json", "empty.json")[: 3 if read is read_samples else 2]:
        with pytest.raises(InputError, match=re.escape(name)):
            list(read(tmp_path / name))
    (tmp_path / "points.csv").write_text("image,instruction,x,y")
    with pytest.raises(InputError, match="is a CSV" if read is read_samples else "line 1"):
        list(read(tmp_path / "points.csv"))


@pytest.mark.parametrize("module", ["core.points", "core.reasoning", "core.records", "train.plan"])
def test_importing_is_light(module):
    heavy = {"torch", "transformers"} | ({"numpy", "PIL", "pydantic"} if module.startswith("core") else set())
    code = f"import sys, trace_vlm.{module}; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
