"""The command without a network: it writes what it can, records the rest, and names a mistake in one sentence."""

import json
import re

import pytest
from generated_samples import ANSWER, GOOD_STEPS, MUG, PLAIN, bare, generated

from trace_vlm.core import reasoning
from trace_vlm.core.records import Sample, write_samples
from trace_vlm.data.cor import build
from trace_vlm.data.cor.rules import with_reasoning
from trace_vlm.utils.command import InputError, run


@pytest.fixture
def data(tmp_path):
    write_samples(tmp_path / "data.json", PLAIN)
    return tmp_path / "data.json"


def test_the_command_writes_what_it_can_and_records_the_rest(tmp_path, capsys):
    samples = [
        *PLAIN,
        bare("Do it.", "no-meta"),
        Sample("wordy", "a.png", generated("direct", target=MUG, answer="somewhere").conversations, PLAIN[0].meta),
        Sample("turns", "a.png", PLAIN[0].conversations * 2, PLAIN[0].meta),
        Sample("exact", "a.png", generated("direct", answer="[(0.2155, 0.3)]").conversations, PLAIN[0].meta),
        PLAIN[0],
    ]
    write_samples(tmp_path / "data.json", samples)
    out = tmp_path / "cor.json"
    assert build.main(["--data", str(tmp_path / "data.json"), "--out", str(out), "--decimals", "2"]) == 0
    assert [record["id"] for record in json.loads(out.read_text())] == [sample.id for sample in PLAIN]
    lines = map(json.loads, (tmp_path / "cor.json.rejects.jsonl").read_text().splitlines())
    assert [line["id"] for line in lines] == ["no-meta", "wordy", "turns", "exact", "direct-None"]
    assert "4 samples with reasoning, 5 rejected" in capsys.readouterr().out
    record = json.loads((tmp_path / "cor.json.run.json").read_text())
    assert (record["written"], record["rejected"], record["settings"]["decimals"]) == (4, 5, 2)


@pytest.mark.parametrize(
    "questions,flags,plain",
    [({}, [], True), ({"wording": "plain"}, [], True), ({"wording": "rich"}, [], False), (None, [], False),
     (None, ["--wording", "plain"], True), ({}, ["--wording", "full"], False)],
)  # fmt: skip
def test_the_wording_follows_the_data_unless_given(data, tmp_path, questions, flags, plain):
    if questions is not None:
        (tmp_path / "generate.json").write_text(json.dumps({"settings": {"config": {"questions": questions}}}))
    build.main(["--data", str(data), "--out", str(tmp_path / "cor.json"), *flags])
    made = [record["conversations"][1]["value"] for record in json.loads((tmp_path / "cor.json").read_text())]
    assert (made == [with_reasoning(sample, 0, False, 3, "plain").conversations[1].text for sample in PLAIN]) == plain


def test_reasoning_from_a_file_is_checked_like_any_other(tmp_path):
    data, own, out = tmp_path / "data.json", tmp_path / "own.jsonl", tmp_path / "cor.json"
    write_samples(data, [Sample(name, "a.png", PLAIN[1].conversations, PLAIN[1].meta) for name in "abcde"])
    lines = [
        {"id": "a", "steps": GOOD_STEPS},
        {"id": "b", "text": reasoning.render(GOOD_STEPS, [])},
        {"id": "c", "steps": {**GOOD_STEPS, "reference": "The reference object is the spoon."}},
        {"id": "d", "note": "later"},
        {"id": "zzz", "steps": GOOD_STEPS},
    ]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--data", str(data), "--out", str(out), "--reasoner", "file", "--file", str(own), "--decimals", "2"]
    assert build.main(flags) == 0
    made = json.loads(out.read_text())
    assert [record["id"] for record in made] == ["a", "b"]
    assert made[0]["conversations"] == made[1]["conversations"]
    assert made[0]["conversations"][1]["value"].endswith(ANSWER)
    rejected = list(map(json.loads, out.with_name("cor.json.rejects.jsonl").read_text().splitlines()))
    assert [record["id"] for record in rejected] == ["c", "d", "e"]
    named = ("blue ball", '"steps"', "own.jsonl")
    assert all(word in record["reason"] for record, word in zip(rejected, named, strict=True))


@pytest.mark.parametrize(
    "lines,named",
    [(['{"id": "a"}', '{"id": "a"}'], "own.jsonl, line 2"), (['{"steps": {}}'], 'own.jsonl, line 1: "id"'),
     (["{", "{}"], "own.jsonl, line 1"), (["[1]"], "own.jsonl, line 1")],
)  # fmt: skip
def test_a_mistake_in_a_reasoning_file_is_named(data, tmp_path, lines, named):
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=re.escape(named)):
        build.main(["--data", str(data), "--out", str(tmp_path / "o.json"), "--reasoner", "file", "--file", str(own)])
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    "flags,named",
    [("--reasoner gemini", "--model"), ("--reasoner gemini --model m", "--images"), ("--reasoner file", "--file"),
     ("--reasoner openai --model m --images nowhere", "nowhere"), ("--reasoner file --file none.jsonl", "none.jsonl"),
     ("--limit 0", "--limit"), ("--decimals 0", "--decimals")],
)  # fmt: skip
def test_flags_that_cannot_work_are_one_sentence(data, tmp_path, capsys, flags, named):
    assert run(build.main, ["--data", str(data), "--out", str(tmp_path / "o.json"), *flags.split()]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and named in message


def test_the_data_are_not_overwritten_and_nothing_is_written_from_nothing(tmp_path, capsys):
    data = tmp_path / "data.json"
    write_samples(data, [bare("Do it.")])
    before = data.read_bytes()
    assert run(build.main, ["--data", str(data), "--out", str(data)]) == 2 and data.read_bytes() == before
    assert run(build.main, ["--data", str(data), "--out", str(tmp_path / "o.json")]) == 2
    assert "o.json.rejects.jsonl" in capsys.readouterr().err.splitlines()[-1]
