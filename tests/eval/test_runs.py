"""Several runs, work shared among processes, and what is said about batches and their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trace_vlm.eval import model_vqa, summarize_vqa
from trace_vlm.eval.benchmark import run_file
from trace_vlm.utils.command import InputError

FAST = ["--max-new-tokens", "5"]


def arguments(folder: Path, model: Path, answers: Path, *more: str) -> list[str]:
    return ["--model-path", str(model), "--data-dir", str(folder), "--answer-file", str(answers), *FAST, *more]


def texts(path: Path) -> list[tuple[Any, str]]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(line["question_id"], line["text"]) for line in lines]


def test_the_papers_protocol_is_three_seeded_runs(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "m.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--protocol", "paper", "--seed", "7")) == 0
    files = [tmp_path / f"m-{number}.jsonl" for number in (1, 2, 3)]
    assert not answers.exists()
    for number, path in enumerate(files, start=1):
        settings = json.loads(run_file(path).read_text())["settings"]
        assert (settings["temperature"], settings["seed"], settings["run"]) == (0.2, 6 + number, number)
        assert {json.loads(line)["run"] for line in path.read_text().splitlines()} == {number}
    before = [path.read_bytes() for path in files]
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--protocol", "paper", "--seed", "7")) == 0
    assert [path.read_bytes() for path in files] == before
    assert summarize_vqa.main(["--answer", str(answers), "--resamples", "50"]) == 0
    assert "m: 3 runs, 0.0 +- 0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--runs", "3"], "3 greedy runs are all the same"),
        (["--runs", "0"], "--runs"),
        (["--protocol", "paper", "--temperature", "0.7"], "--temperature 0.2, not 0.7"),
        (["--samples", "3"], "need a temperature above 0"),
        (["--num-points", "3"], "5 new tokens are too few for 3 points"),
        (["--prompt-template", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_what_cannot_be_asked_for(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "m.jsonl", *more))


def test_a_batch_size_is_a_number_or_auto(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "m.jsonl", "--batch-size", "many"))
    assert "'many' is neither auto nor a number" in capsys.readouterr().err
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "auto.jsonl")) == 0
    assert "batches of 6 answers" in capsys.readouterr().out
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "one.jsonl", "--batch-size", "1")) == 0
    assert texts(tmp_path / "auto.jsonl") == texts(tmp_path / "one.jsonl")


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5"]])
def test_processes_of_torchrun_share_the_work_and_merge(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, sampling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is sampled is what one process would sample."""
    whole, shared = tmp_path / "whole.jsonl", tmp_path / "shared.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, whole, *sampling)) == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in (2, 0, 3, 1):
        assert not shared.exists()
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert model_vqa.main(arguments(benchmark_folder, tiny_model, shared, *sampling)) == 0
    assert shared.read_bytes() == whole.read_bytes()
    record = json.loads(run_file(shared).read_text())
    assert record["answers"] == 6 and record["settings"]["chunk"] == [0, 1] and len(record["parts"]) == 4


def test_shares_by_hand_are_merged_when_asked(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    answers = tmp_path / "m.jsonl"
    for index in (1, 0):
        more = ["--num-chunks", "2", "--chunk-idx", str(index), "--merge"]
        assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, *more)) == 0
    assert [number for number, _ in texts(answers)] == list(range(3, 9))
    part = tmp_path / "m.0-of-2.jsonl"
    record = json.loads(run_file(part).read_text())
    record["settings"]["reasoning"] = False
    run_file(part).write_text(json.dumps(record))
    with pytest.raises(InputError, match="made with other settings"):
        model_vqa.main(
            arguments(benchmark_folder, tiny_model, answers, "--num-chunks", "2", "--chunk-idx", "1", "--merge")
        )


def test_answers_that_depend_on_the_batch_are_counted(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default in half precision only; in float32 none differs."""
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "a.jsonl", "--check-alone", "4")) == 0
    assert "4 answers repeated at batch 1 in float32: 0 differ (0%)" in capsys.readouterr().out
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "b.jsonl", "--dtype", "bfloat16")) == 0
    assert "6 answers repeated at batch 1 in bfloat16" in capsys.readouterr().out
    assert set(json.loads(run_file(tmp_path / "b.jsonl").read_text())["batching"]) == {"repeated", "differ"}


def test_confidence_and_samples_are_written(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="comes with the extra `constrain`")
    answers = tmp_path / "m.jsonl"
    more = ["--no-reasoning", "--num-points", "2", "--max-new-tokens", "60", "--temperature", "1", "--samples", "3",
            "--aggregate", "medoid"]  # fmt: skip
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, *more)) == 0
    for line in map(json.loads, answers.read_text().splitlines()):
        sure = line["metadata"]["point_confidence"]
        assert len(sure) == 2 and line["confidence"] == pytest.approx(sum(sure) / 2, abs=1e-5)
        assert len(line["metadata"]["samples"]) == 3 and line["text"] in line["metadata"]["samples"]
    assert summarize_vqa.main(["--answer", str(answers), "--resamples", "50"]) == 0
    (model,) = json.loads((tmp_path / "summary.json").read_text())["models"]
    assert model["calibration"]["points"] == 12 and (tmp_path / "calibration.png").stat().st_size > 5000


def test_the_users_own_words(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    words, answers = tmp_path / "words.txt", tmp_path / "m.jsonl"
    words.write_text("Please: {instruction} Thank you.\n")
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--prompt-template", str(words))) == 0
    prompts = [json.loads(line)["prompt"] for line in answers.read_text().splitlines()]
    assert prompts[0] == "Please: Point to the red mug number 3. Thank you."
    words.write_text("Please: {instruction}")
    with pytest.raises(InputError, match="was begun with prompt_template"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--prompt-template", str(words)))
    words.write_text("Please.")
    with pytest.raises(InputError, match="has to hold {instruction} once"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--prompt-template", str(words)))
