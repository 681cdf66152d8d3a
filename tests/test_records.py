"""Records and files: round trips, mistakes named by line, memory that does not grow, and files that survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_vlm.core.records import (
    Answer,
    JsonlWriter,
    Question,
    Sample,
    Turn,
    answered,
    read_answers,
    read_json,
    read_json_list,
    read_jsonl,
    read_questions,
    read_samples,
    replacing,
    sha256,
    write_json,
    write_jsonl,
    write_questions,
    write_samples,
)
from trace_vlm.utils import files
from trace_vlm.utils.command import InputError

TURNS = (Turn("human", "<image>\nFind the müg."), Turn("gpt", "[(0.461, 0.527)]"))
SAMPLES = [
    Sample("0", "images/0.png", TURNS, {"task": "free_space", "points": [[0.461, 0.527]]}),
    Sample("1", None, (*TURNS, Turn("human", "and the \u00e9?"), Turn("gpt", "\u2028 [] \U0001f600"))),
]
QUESTIONS = [Question(0, "0.png", "Where?", "seen", {"kind": "direct"}), Question("b", "0.png", "And there?")]
ANSWERS = [
    Answer(0, "prompt", "(0.1, 0.2)", "id-0", "nano", "seen", 0.5, 3, 0, (1, 2), {"seconds": 0.1}),
    Answer(0, "prompt", "(0.3, 0.2)", "id-1", "nano", run=1),
]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def question_line(question_id: Any, **more: Any) -> str:
    return json.dumps({"question_id": question_id, "image": "0.png", "text": "Where?"} | more)


# --- half a surrogate pair: no tokenizer takes it ---------------------------------------------------------------------


@pytest.mark.parametrize("reader", [read_questions, read_answers, lambda path: list(read_samples(path))])
def test_half_a_character_is_named_with_its_line(tmp_path: Path, reader: Any) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    record = {"question_id": 0, "id": "0", "image": "0.png", "text": "\U0001f600", "conversations": turns}
    bad = {"text": "the \ud83d cup", "conversations": [turns[0] | {"value": "the \ud83d cup"}, turns[1]]}
    whole, half = json.dumps(record), json.dumps(record | bad | {"question_id": 1, "id": "1"})
    path = write_lines(tmp_path / "data.jsonl", whole, half)
    with pytest.raises(
        InputError, match=r"""data\.jsonl, line 2.*: "(text|value)" holds half a character \('\\ud83d'"""
    ):
        reader(path)
    write_lines(path, whole)
    assert reader(path)


def test_half_a_character_in_a_list_is_named_and_none_is_written(tmp_path: Path) -> None:
    sample = Sample("1", None, (*TURNS, Turn("human", "and the \ud83d?"), Turn("gpt", "no")))
    (tmp_path / "data.json").write_text(json.dumps([SAMPLES[0].as_json(), sample.as_json()]))
    with pytest.raises(InputError, match=r"data\.json, line 1 \(sample 1\), turn 3: .value. holds half a character"):
        list(read_samples(tmp_path / "data.json"))
    write_samples(tmp_path / "data.json", [sample])
    (read,) = read_samples(tmp_path / "data.json")
    assert read.conversations[2].text == "and the \ufffd?"


# --- round trips ------------------------------------------------------------------------------------------------------


def test_samples_round_trip(tmp_path: Path) -> None:
    write_samples(tmp_path / "data.json", iter(SAMPLES))
    assert list(read_samples(tmp_path / "data.json")) == SAMPLES
    assert len((tmp_path / "data.json").read_bytes().splitlines()) == len(SAMPLES) + 2  # one sample a line
    write_samples(tmp_path / "none.json", [])
    assert list(read_samples(tmp_path / "none.json")) == []
    assert read_json(tmp_path / "none.json") == []


def test_samples_are_llava_json(tmp_path: Path) -> None:
    write_samples(tmp_path / "data.json", SAMPLES[:1])
    assert read_json(tmp_path / "data.json") == [
        {
            "id": "0",
            "image": "images/0.png",
            "conversations": [
                {"from": "human", "value": "<image>\nFind the müg."},
                {"from": "gpt", "value": "[(0.461, 0.527)]"},
            ],
            "meta": {"task": "free_space", "points": [[0.461, 0.527]]},
        }
    ]
    assert "image" not in SAMPLES[1].as_json()


def test_foreign_samples_are_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hi", "weight": 1}, {"from": "gpt", "value": "ho"}]
    records = [{"id": 7, "model": "x", "conversations": turns}, {"id": "8", "image": None, "conversations": turns}]
    samples = [Sample("7", None, (Turn("human", "hi"), Turn("gpt", "ho")), {"model": "x"})]
    samples.append(Sample("8", None, samples[0].conversations))
    (tmp_path / "pretty.json").write_text(json.dumps(records, indent=4), encoding="utf-8-sig")
    (tmp_path / "compact.json").write_text(json.dumps(records, separators=(",", ":")))
    write_lines(tmp_path / "data.jsonl", *[json.dumps(record) for record in records], "", "  ")
    (tmp_path / "marked.jsonl").write_text((tmp_path / "data.jsonl").read_text(), encoding="utf-8-sig")
    for name in ("pretty.json", "compact.json", "data.jsonl", "marked.jsonl"):
        assert list(read_samples(tmp_path / name)) == samples


def test_questions_round_trip(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    assert read_questions(tmp_path / "q.jsonl") == QUESTIONS


def test_unknown_keys_of_a_question_go_to_meta(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", question_line(1, split="a", meta={"kind": "free", "split": "b"}))
    assert read_questions(path) == [Question(1, "0.png", "Where?", None, {"split": "b", "kind": "free"})]


def test_answers_round_trip(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "run" / "a.jsonl") as writer:
        for answer in ANSWERS:
            writer.write(answer.as_json())
    assert read_answers(tmp_path / "run" / "a.jsonl") == ANSWERS


def test_answers_of_the_reference_are_read(tmp_path: Path) -> None:
    line = {"question_id": 3, "prompt": "p", "text": "(1, 1)", "answer_id": "x", "model_id": "m", "metadata": {}}
    path = write_lines(tmp_path / "a.jsonl", json.dumps(line), json.dumps({"question_id": 4, "text": "", "extra": 1}))
    first, second = read_answers(path)
    assert first == Answer(3, "p", "(1, 1)", "x", "m")
    assert second == Answer(4, "", "", "", "", metadata={"extra": 1})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


@settings(deadline=None)  # every example writes a file
@given(st.lists(json_objects, max_size=6), st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans())
def test_lists_are_read_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "list.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", newline="\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        found = list(read_json_list(path))
    assert [record for _, _, record in found] == records
    assert [index for _, index, _ in found] == list(range(len(records)))
    lines = path.read_text(encoding="utf-8").split("\n")
    assert all(lines[line - 1].lstrip(" [,").startswith("{") for line, _, _ in found)


# --- mistakes are named -----------------------------------------------------------------------------------------------

LIST_MISTAKES = {
    '{"a": 1}': r"line 1: expected a list that begins with \[",
    "[": r"line 1: the list is not finished after 0 records",
    '[{"a": 1}': r"line 1: the list is not finished after 1 records",
    '[{"a": 1},\n': r"line 2: the list is not finished after 1 records",
    '[{"a": 1}\n{"a": 2}]': r"line 2: expected a comma or \], found '\{'",
    '[{"a": 1},\n]': r"line 2: expected a JSON object, found '\]'",
    "[1]": r"line 1: expected a JSON object or \], found '1' \(record 0\)",
    '[{"a": 1}]\n[]': r"line 2: expected nothing behind the list, found '\['",
    '[\n{"a": 1},\n{"b": tru}]': r"line 3, record 1 is broken JSON: Expecting value near '\{\"b\": tru\}\]'",
    '[\n{"a": 1,\n"b" 2}]': r"line 3, record 0 is broken JSON: Expecting ':' delimiter",
    '[\n{"a": "cut': r"line 2, record 0 is broken JSON: Unterminated string",
    '[\n{"a": "line\nbreak"}]': r"line 2, record 0 is broken JSON: Invalid control character",
    '[{"a": ' + "9" * 5000 + "}]": r"line 1, record 0 is broken JSON: .*4300 digits",
    '[{"a": ' + "[" * 100_000: r"record 0 is broken JSON: nested too deeply",
}


@pytest.mark.parametrize("chunk", [1 << 20, 7])
@pytest.mark.parametrize("text", LIST_MISTAKES)
def test_mistakes_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk: int) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(InputError, match=LIST_MISTAKES[text]) as raised:
        list(read_json_list(path))
    assert str(path) in str(raised.value)


def test_a_mistake_in_a_big_list_is_found_without_reading_on(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    with open(path, "w") as file:
        file.write('[{"id": oops},\n' + " " * (8 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="record 0 is broken JSON"):
        list(read_json_list(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20


def conversation(**turn: Any) -> str:
    return json.dumps({"id": "0", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt"} | turn]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "0"}', r'"conversations" is missing'),
        ('{"id": "0", "conversations": []}', r'"conversations" must hold at least one turn'),
        ('{"conversations": [{"from": "human", "value": ""}]}', r'"id" is missing'),
        ('{"id": true, "conversations": []}', r'"id" must be an integer or a text'),
        ('{"id": "0", "conversations": {}}', r'"conversations" must be a list, not an object'),
        ('{"id": "0", "conversations": ["x"]}', r"turn 1 must be a JSON object, not a text"),
        ('{"id": "0", "image": 3, "conversations": []}', r'"image" must be a text, not a number'),
        (conversation(), r'turn 2: "value" is missing'),
        (conversation(value=None), r'turn 2: "value" must be a text, not null'),
        (conversation(value="x", **{"from": "system"}), r'turn 2: "from" must be "human" or "gpt", not \'system\''),
    ],
)
def test_mistakes_in_a_sample(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(SAMPLES[0].as_json())
    as_lines = write_lines(tmp_path / "data.jsonl", good, line)
    with pytest.raises(InputError, match=rf"data.jsonl, line 2.*{message}"):
        list(read_samples(as_lines))
    as_list = write_lines(tmp_path / "data.json", "[", f"{good},", line, "]")
    with pytest.raises(InputError, match=rf"data.json, line 3 \(sample 1\).*{message}"):
        list(read_samples(as_list))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([question_line(0), "{broken"], r"line 2 is broken JSON"),
        ([question_line(0), "", "[]"], r"line 3 must be a JSON object, not a list"),
        ([question_line(0), '{"image": "0.png", "text": "x"}'], r'line 2: "question_id" is missing'),
        ([question_line(0.5)], r'line 1: "question_id" must be an integer or a text'),
        ([question_line(0), question_line(1, image=None)], r'line 2: "image" must be a text, not null'),
        ([question_line(0), question_line(1, text=5)], r'line 2: "text" must be a text, not a number'),
        ([question_line(0), question_line(1), question_line(0)], r"line 3: question_id 0 was on line 1 already"),
        ([question_line(7), question_line("7")], r"line 2: question_id '7' was on line 1 already"),
        ([question_line(0, meta=[])], r'line 1: "meta" must be an object, not a list'),
        ([""], r"holds no questions"),
    ],
)
def test_mistakes_in_questions(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write_lines(tmp_path / "q.jsonl", *lines)
    with pytest.raises(InputError, match=rf"q.jsonl.*{message}"):
        read_questions(path)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"text": None}, r'"text" must be a text, not null'),
        ({"run": True}, r'"run" must be an integer, not true or false'),
        ({"seed": "3"}, r'"seed" must be an integer, not a text'),
        ({"confidence": "high"}, r'"confidence" must be a number, not a text'),
        ({"token_ids": [1, "2"]}, r'"token_ids" must be a list of integers'),
        ({"metadata": []}, r'"metadata" must be an object, not a list'),
    ],
)
def test_mistakes_in_answers(tmp_path: Path, field: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"question_id": 0, "text": ""}, {"question_id": 1, "text": ""} | field])
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: {message}"):
        read_answers(path)


def test_an_answer_may_appear_once_a_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [answer.as_json() for answer in ANSWERS] + [ANSWERS[1].as_json()])
    with pytest.raises(InputError, match="line 3: question_id 0 of run 1 was on line 2 already"):
        read_answers(path)


def test_a_cut_line_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps(ANSWERS[0].as_json())
    path.write_text(line + "\n" + line[:-5])
    with pytest.raises(InputError, match=r"line 2"):
        read_answers(path)


@pytest.mark.parametrize("read", [read_samples, read_questions, read_answers, read_json, sha256])
def test_missing_files_are_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError, match=r"nowhere.json does not exist"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match=r"is not a file"):
        read(tmp_path)


@pytest.mark.parametrize("read", [lambda path: list(read_samples(path)), read_questions, read_json])
def test_bytes_that_are_no_text_are_named(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "picture.json"
    path.write_bytes(b'{"question_id": "\xff\xd8\xff\xe0"}\n')
    with pytest.raises(InputError, match=r"picture.json.*(utf-8|UTF-8)"):
        read(path)


def test_an_empty_data_file_is_a_mistake(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.json", " ")
    with pytest.raises(InputError, match="data.json is empty"):
        list(read_samples(path))


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "run.json", "{", '"a": 1,', '"b" 2}')
    with pytest.raises(InputError, match=r"run.json, line 3, is broken JSON: Expecting ':' delimiter \(column 5\)"):
        read_json(path)


# --- memory and time --------------------------------------------------------------------------------------------------


def many_samples(count: int) -> Iterator[Sample]:
    for index in range(count):
        yield Sample(str(index), f"images/{index}.png", (TURNS[0], Turn("gpt", "é [(0.1, 0.2)], " * 1000)))


@pytest.mark.parametrize("one_line", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, one_line: bool) -> None:
    path = tmp_path / "data.json"
    write_samples(path, many_samples(500))
    if one_line:  # as json.dump writes it
        path.write_bytes(path.read_bytes().replace(b"\n", b""))
    assert path.stat().st_size > 6 << 20
    tracemalloc.start()
    count = sum(1 for _ in read_samples(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 500
    assert peak < 3 << 20  # a few chunks


def test_long_records_are_read_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1 << 10)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"text": "x" * (4 << 20)}, {"text": "y"}]))
    start = time.process_time()
    assert len(list(read_json_list(path))) == 2
    assert time.process_time() - start < 2  # decoding again after every chunk would scan 8 GB


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_samples(path, SAMPLES)
    before = path.read_bytes()

    def failing() -> Iterator[Sample]:
        yield SAMPLES[0]
        raise RuntimeError("the generator stops")

    with pytest.raises(RuntimeError, match="the generator stops"):
        write_samples(path, failing())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"score": float("nan")})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.json"]


def test_replacing_keeps_the_suffix_and_makes_folders(tmp_path: Path) -> None:
    with replacing(tmp_path / "a" / "b" / "map.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")
        assert not (tmp_path / "a" / "b" / "map.png").exists()
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["map.png"]


def test_errors_of_other_files_pass_through_replacing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input.png"), replacing(tmp_path / "out.png"):
        (tmp_path / "input.png").read_bytes()


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.json", tmp_path / "folder"):
        with pytest.raises(InputError, match=rf"{path} cannot be written"):
            write_json(path, {})
        with pytest.raises(InputError, match=rf"{path} cannot be written"):
            JsonlWriter(path)


def test_json_and_its_hash(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"ä": [1, 2.5, None]})
    assert read_json(tmp_path / "run.json") == {"ä": [1, 2.5, None]}
    assert "ä" in (tmp_path / "run.json").read_text(encoding="utf-8")
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- appending, crashes and resuming ----------------------------------------------------------------------------------


def test_a_cut_at_any_byte_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"question_id": index, "text": "é [(0.1, 0.2)] {\n}"} for index in range(3)]
    write_jsonl(path, records)
    whole = path.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)  # a record is whole without its newline
        assert answered(path) == set(range(kept))
        with JsonlWriter(path) as writer:
            for record in records[kept:]:
                writer.write(record)
        assert path.read_bytes() == whole


def test_a_long_cut_line_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question_id": 1}\n{"question_id": 2, "text": "' + b"x" * 1000)
    JsonlWriter(path).close()
    assert path.read_bytes() == b'{"question_id": 1}\n'


def test_zeros_at_the_end_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question_id": 1}\n' + b"\0" * 100)
    assert answered(path) == {1}
    JsonlWriter(path).close()
    assert path.read_bytes() == b'{"question_id": 1}\n'


def test_a_file_of_another_kind_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nwithout a last newline")
    with pytest.raises(InputError, match="notes.txt does not end like a JSONL file"):
        JsonlWriter(path)
    assert path.read_text() == "my notes\nwithout a last newline"


def test_answered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert answered(path) == set()
    write_jsonl(path, [answer.as_json() for answer in ANSWERS] + [{"question_id": "b", "text": ""}])
    assert answered(path) == answered(path, run=0) == {0, "b"}
    assert answered(path, run=1) == {0}
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(InputError, match="line 1 is broken JSON"):
        answered(path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "a.jsonl") as writer:
        writer.write({"question_id": 1})
        with pytest.raises(InputError, match="being written by another process"):
            JsonlWriter(tmp_path / "a.jsonl")
    with JsonlWriter(tmp_path / "a.jsonl") as writer:
        writer.write({"question_id": 2})
    assert [record["question_id"] for _, record in read_jsonl(tmp_path / "a.jsonl")] == [1, 2]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"

    def half_then_full(file: Any, data: bytes) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with JsonlWriter(path) as writer:
        writer.write({"question_id": 1})
        with monkeypatch.context() as patch:
            patch.setattr(files, "_write_all", half_then_full)
            with pytest.raises(OSError, match="No space left"):
                writer.write({"question_id": 2, "text": "x" * 100})
        writer.write({"question_id": 3})
    assert [record["question_id"] for _, record in read_jsonl(path)] == [1, 3]


WRITER = """
import sys
from trace_vlm.core.records import JsonlWriter, answered
path = sys.argv[1]
done = answered(path)
with JsonlWriter(path) as writer:
    for question_id in range(10**9):
        if question_id not in done:
            writer.write({"question_id": question_id, "text": "x" * (1 << 20)})
            print(question_id, flush=True)
"""


def test_killed_writers_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    announced = -1
    for lines in (3, 5, 4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            announced = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert set(range(announced + 1)) <= answered(path)
    JsonlWriter(path).close()
    found = [record["question_id"] for _, record in read_jsonl(path)]
    assert found == list(range(len(found)))
    assert len(found) >= 12
    assert all(len(record["text"]) == 1 << 20 for _, record in read_jsonl(path))


# --- importing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["points", "reasoning", "records"])
def test_importing_is_light(module: str) -> None:
    # The best of three: a busy machine makes each of them slower.
    code = (
        "import sys, time; start = time.process_time(); "
        f"import trace_vlm.core.{module}; "
        "print(time.process_time() - start, *{'torch', 'numpy', 'transformers', 'PIL'} & set(sys.modules))"
    )
    fastest = float("inf")
    for _ in range(3):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds, *heavy = output.split()
        assert heavy == []
        fastest = min(fastest, float(seconds))
    assert fastest < 0.1
