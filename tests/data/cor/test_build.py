"""The command without a network: it writes what it can, records the rest, and names a mistake in one sentence."""

import json
from pathlib import Path

import pytest
from generated_samples import ANSWER, GOOD_STEPS, MUG, PLAIN, bare, generated

from trace_vlm.core import reasoning
from trace_vlm.core.records import Sample, write_samples
from trace_vlm.data.cor import build
from trace_vlm.data.cor.rules import with_reasoning
from trace_vlm.utils.command import run
from trace_vlm.utils.files import write_jsonl


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_samples("data.json", PLAIN)


def built(*flags, out="cor.json"):
    """The exit code of the command, and the records and the rejects that it wrote."""
    code = run(build.main, ["--data", "data.json", "--out", out, *flags])
    rejects = Path(f"{out}.rejects.jsonl")
    lines = rejects.read_text().splitlines() if rejects.exists() else []
    return code, json.loads(Path(out).read_text()) if code == 0 else None, list(map(json.loads, lines))


def ids(records):
    return [record["id"] for record in records]


def test_the_command_writes_what_it_can_and_records_the_rest(capsys):
    turns = {
        "wordy": generated("direct", target=MUG, answer="somewhere").conversations, "turns": PLAIN[0].conversations * 2,
        "exact": generated("direct", answer="[(0.2155, 0.3)]").conversations,
    }  # fmt: skip
    unusable = (Sample(name, "a.png", said, PLAIN[0].meta) for name, said in turns.items())
    write_samples("data.json", [*PLAIN, bare("Do it.", "no-meta"), *unusable, PLAIN[0]])
    code, records, rejects = built("--decimals", "2")
    assert (code, ids(records)) == (0, [sample.id for sample in PLAIN])
    assert ids(rejects) == ["no-meta", "wordy", "turns", "exact", "direct-None"]
    assert "4 samples with reasoning, 5 rejected" in capsys.readouterr().out
    record = json.loads(Path("cor.json.run.json").read_text())
    assert (record["written"], record["rejected"], record["settings"]["decimals"]) == (4, 5, 2)


@pytest.mark.parametrize("questions, flags, plain", [
    ({}, [], True), ({"wording": "plain"}, [], True), ({"wording": "rich"}, [], False), (None, [], False),
    (None, ["--wording", "plain"], True), ({}, ["--wording", "full"], False),
])  # fmt: skip
def test_the_wording_follows_the_data_unless_given(questions, flags, plain):
    if questions is not None:
        Path("generate.json").write_text(json.dumps({"settings": {"config": {"questions": questions}}}))
    made = [record["conversations"][1]["value"] for record in built(*flags)[1]]
    assert (made == [with_reasoning(sample, 0, False, 3, "plain").conversations[1].text for sample in PLAIN]) == plain


def test_reasoning_from_a_file_is_checked_like_any_other():
    write_samples("data.json", [Sample(name, "a.png", PLAIN[1].conversations, PLAIN[1].meta) for name in "abcde"])
    write_jsonl(Path("own.jsonl"), [
        {"id": "a", "steps": GOOD_STEPS}, {"id": "b", "text": reasoning.render(GOOD_STEPS, [])},
        {"id": "c", "steps": {**GOOD_STEPS, "reference": "The reference object is the spoon."}},
        {"id": "d", "note": "later"}, {"id": "zzz", "steps": GOOD_STEPS},
    ])  # fmt: skip
    code, made, rejected = built("--reasoner", "file", "--file", "own.jsonl", "--decimals", "2")
    assert (code, ids(made), ids(rejected)) == (0, ["a", "b"], ["c", "d", "e"])
    assert made[0]["conversations"] == made[1]["conversations"]
    assert made[0]["conversations"][1]["value"].endswith(ANSWER)
    named = ("blue ball", '"steps"', "own.jsonl")
    assert all(word in record["reason"] for record, word in zip(rejected, named, strict=True))


@pytest.mark.parametrize("content, named", [
    ('{"id": "a"}\n{"id": "a"}', "own.jsonl, line 2"), ('{"steps": {}}', 'own.jsonl, line 1: "id"'),
    ("{\n{}", "own.jsonl, line 1"), ("[1]", "own.jsonl, line 1"),
])  # fmt: skip
def test_a_mistake_in_a_reasoning_file_is_named(capsys, content, named):
    Path("own.jsonl").write_text(f"{content}\n")
    assert built("--reasoner", "file", "--file", "own.jsonl")[0] == 2
    assert named in capsys.readouterr().err and not Path("cor.json").exists()


@pytest.mark.parametrize("flags, named", [
    ("--reasoner gemini", "--model"), ("--reasoner gemini --model m", "--images"), ("--reasoner file", "--file"),
    ("--reasoner openai --model m --images nowhere", "nowhere"), ("--reasoner file --file none.jsonl", "none.jsonl"),
    ("--limit 0", "--limit"), ("--decimals 0", "--decimals"),
])  # fmt: skip
def test_flags_that_cannot_work_are_one_sentence(capsys, flags, named):
    assert built(*flags.split())[0] == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and named in message


def test_the_data_are_not_overwritten_and_nothing_is_written_from_nothing(capsys):
    write_samples("data.json", [bare("Do it.")])
    before = Path("data.json").read_bytes()
    assert built(out="data.json")[0] == 2 and Path("data.json").read_bytes() == before
    assert built()[0] == 2 and "cor.json.rejects.jsonl" in capsys.readouterr().err.splitlines()[-1]
