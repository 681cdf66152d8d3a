"""model_vqa: published commands, records, kill and resume, several runs and processes, refused input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trace_vlm.eval import model_vqa, summarize_vqa
from trace_vlm.eval.answering import fingerprint
from trace_vlm.eval.benchmark import run_file
from trace_vlm.model.checkpoint import load, loaded_dtype, save
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
Answer = Callable[..., Path]


def flags(folder: Path, model: Path | str, answers: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--data", str(folder), "--answers", str(answers), "--max-new-tokens", "5", *more]


@pytest.fixture
def answer(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> Answer:
    """Run model_vqa on the benchmark and return the answer file."""

    def run(*more: str, name: str = "m.jsonl", model: Path | str = tiny_model) -> Path:
        assert model_vqa.main(flags(benchmark_folder, model, tmp_path / name, *more)) == 0
        return tmp_path / name

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(path: Path) -> list[Any]:
    return [line["question_id"] for line in lines(path)]


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run_file(path))
    return found


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_published_commands(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """From the root with -m, by path, and with underscores; the summary finds the benchmark through the run's record."""
    answers = tmp_path / "out" / "tiny.jsonl"
    published = ["--model-path", tiny_model, "--image-folder", benchmark_folder / "images", "--question-file",
                 benchmark_folder / "point_questions.jsonl", "--answer-file", answers, "--max-new-tokens", "5"]  # fmt: skip
    underscored = [str(w).replace("-", "_").replace("__", "--", 1) if str(w)[:2] == "--" else w for w in published]
    done = command("-m", "trace.eval.model_vqa", *underscored)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert ids(answers) == list(range(3, 9))
    again = command("trace/eval/model_vqa.py", *published)
    assert again.returncode == 0 and "6 of 6 questions" in again.stdout, again.stderr
    table = command("trace/eval/summarize_vqa.py", "--answer", answers)
    assert table.returncode == 0 and "Accuracy" in table.stdout, table.stderr
    assert read_json(answers.parent / "summary.json")["benchmark"]["questions"] == 6


def test_broken_question_line_is_one_error_line(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    question_file = benchmark_folder / "point_questions.jsonl"
    text = question_file.read_text().splitlines()
    question_file.write_text("\n".join([*text[:2], text[2][:-4], *text[3:]]) + "\n")
    done = command("-m", "trace_vlm.eval.model_vqa", *flags(benchmark_folder, tiny_model, tmp_path / "a.jsonl"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{question_file}, line 3" in done.stderr


def test_answers_and_record(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answer()
    found = lines(answers)
    assert [line["category"] for line in found] == ["seen"] * 4 + ["unseen"] * 2
    assert all(len(line["token_ids"]) <= 5 and line["model_id"] == "tiny" for line in found)
    assert all("number" in line["prompt"] and "Reason step by step" in line["prompt"] for line in found)
    assert len({line["answer_id"] for line in found}) == 6
    assert {line["metadata"]["finish"] for line in found} == {"length"}
    assert "6 answers were cut at 5 new tokens" in capsys.readouterr().out
    written = record(answers)
    assert written["settings"]["model"].startswith("sha256:") and written["finished"] and written["answers"] == 6
    assert {"python", "torch", "transformers"} <= set(written["versions"])
    first = answers.read_bytes()
    assert answer("--overwrite").read_bytes() == first


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5", "--seed", "3"]])
def test_killed_run_continues_to_the_same_bytes(
    answer: Answer, tmp_path: Path, sampling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, written = answer("--batch-size", "2", *sampling, name="complete.jsonl"), 0

    class Killed(BaseException):
        pass

    class Writer(model_vqa.JsonlWriter):
        def write(self, record: Any) -> None:
            nonlocal written
            if written == 3:  # in the middle of the second batch
                with open(self.path, "ab") as file:
                    file.write(b'{"question_id": 3, "te')
                raise Killed
            super().write(record)
            written += 1

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(model_vqa, "JsonlWriter", Writer)
        answer("--batch-size", "2", *sampling, name="killed.jsonl")
    assert record(tmp_path / "killed.jsonl")["finished"] is None
    assert answer("--batch-size", "2", *sampling, name="killed.jsonl").read_bytes() == complete.read_bytes()


def test_run_continues_only_under_its_own_settings(answer: Answer, benchmark_folder: Path) -> None:
    answers = answer("--num-questions", "2")
    for more, name in (
        (["--num-questions", "2", "--no-reasoning"], "reasoning"),
        (["--num-questions", "2", "--temperature", "0.2"], "temperature"),
        ([], "num_questions"),
    ):
        with pytest.raises(InputError, match=name):
            answer(*more)
    question_file = benchmark_folder / "point_questions.jsonl"
    question_file.write_text(question_file.read_text().replace("mug", "cup"))
    with pytest.raises(InputError, match="question_sha256"):
        answer("--num-questions", "2")
    assert len(ids(answer("--overwrite"))) == 6
    written = record(answers)
    del written["settings"]["images"]  # such records were written before images and type were kept
    write_json(run_file(answers), written)
    with pytest.raises(InputError, match=r"m.run.json .* images .*--overwrite"):
        answer()
    run_file(answers).unlink()
    with pytest.raises(InputError, match="m.run.json"):
        answer()


def test_other_images_or_dtype_do_not_continue_a_run(answer: Answer, benchmark_folder: Path, tmp_path: Path) -> None:
    answers = answer()
    before = answers.read_bytes()
    answers.write_bytes(b"".join(before.splitlines(keepends=True)[:2]))  # as after a kill
    assert record(answers)["settings"]["dtype"] == "float32"
    with pytest.raises(InputError, match="dtype float32, not bfloat16"):
        answer("--dtype", "bfloat16")
    others = tmp_path / "others"
    shutil.copytree(benchmark_folder / "images", others)
    assert answer("--images", str(others), "--dtype", "auto").read_bytes() == before, "the same images elsewhere"
    Image.open(others / "wide.png").rotate(180).save(others / "wide.png")
    with pytest.raises(InputError, match="images sha256:"):
        answer("--images", str(others))
    (others / "unasked.png").write_bytes(b"")
    shutil.copy(benchmark_folder / "images" / "wide.png", others)
    assert answer("--images", str(others)).read_bytes() == before, "images that are not asked about do not count"


def test_dtype_is_known_before_a_model_is_loaded(tiny_checkpoint: Any, tmp_path: Path) -> None:
    save(tiny_checkpoint, tmp_path / "half", dtype="bfloat16")
    for dtype, name in (("auto", "bfloat16"), ("float32", "float32"), ("half", "float16")):
        assert loaded_dtype(tmp_path / "half", None, dtype) == name
        assert str(load(tmp_path / "half", dtype=dtype).model.dtype) == f"torch.{name}"
    assert loaded_dtype("nano-random", None, "auto") == "float32"  # the preset: random weights
    with pytest.raises(InputError, match="int8"):
        loaded_dtype(tmp_path / "half", None, "int8")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "model.safetensors"])
def test_fingerprint_sees_weights_and_processor(name: str, tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert fingerprint(copy) == fingerprint(tiny_model)
    data = bytearray((copy / name).read_bytes())
    data[-10] ^= 1
    (copy / name).write_bytes(data)
    assert fingerprint(copy) != fingerprint(tiny_model)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--runs", "3"], "greedy"),
        (["--runs", "0"], "--runs"),
        (["--protocol", "paper", "--temperature", "0.7"], "--temperature 0.2, not 0.7"),
        (["--samples", "3"], "--samples"),
        (["--num-points", "3"], "--max-new-tokens"),
        (["--prompt-template", "nowhere.txt"], "nowhere.txt"),
        (["--conv-mode", "chatty"], "chatty"),
        (["--conv-mode", "plain"], "plain"),
        (["--num-chunks", "8", "--chunk-idx", "8"], "chunk 8 of 8"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_refused_flags(answer: Answer, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        answer(*more)
    assert not (tmp_path / "m.jsonl").exists() or not ids(tmp_path / "m.jsonl")


def test_refused_files(answer: Answer, benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    questions, empty = benchmark_folder / "point_questions.jsonl", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty"):
        answer(model=empty)
    for answers, message in ((questions / "m.jsonl", "m.jsonl|written"), (questions, "question file")):
        with pytest.raises(InputError, match=message):
            model_vqa.main(flags(benchmark_folder, tiny_model, answers, "--overwrite"))
    (benchmark_folder / "images" / "tall.png").unlink()
    with pytest.raises(InputError, match=r"tall.png of question 4"):
        answer()


def test_unusable_mask_stops_the_summary_and_not_the_answers(
    answer: Answer, benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmark_folder / "masks" / "4.png").unlink()
    answers = answer()
    assert "question 4 has no mask" in capsys.readouterr().out
    with pytest.raises(InputError, match="question 4"):
        summarize_vqa.main(["--answers", str(answers)])
    shutil.rmtree(benchmark_folder / "masks")
    assert len(ids(answer("--num-beams", "2", "--overwrite"))) == 6


def test_broken_images_are_refused_or_skipped(
    answer: Answer, benchmark_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, answers = benchmark_folder / "images" / "tall.png", tmp_path / "m.jsonl"
    complete = image.read_bytes()  # shown by questions 4 and 7
    image.write_bytes(complete[:-200])
    with pytest.raises(InputError, match=r"1 of 3 images .*tall.png: .*--skip-broken"):
        answer()
    assert not answers.exists()
    for content in (complete[:-200], b"nothing"):  # the second does not even have a size
        image.write_bytes(content)
        answer("--skip-broken", "--check-alone", "3", "--overwrite")
        written = record(answers)
        assert ids(answers) == [3, 5, 6, 8]
        assert written["skipped"] == [4, 7] and written["answers"] == 4 and written["batching"]["repeated"] == 2
        assert summarize_vqa.main(["--answers", str(answers), "--resamples", "20"]) == 0
        summary = read_json(tmp_path / "summary.json")["models"][0]
        assert summary["unanswered"] == 2 and summary["scores"]["4"] == summary["scores"]["7"] == 0
        assert "2 of 6 questions were skipped" in capsys.readouterr().out
    image.write_bytes(complete)  # repaired: these are other images, which --overwrite asks about
    with pytest.raises(InputError, match="images"):
        answer("--skip-broken")
    assert ids(answer("--skip-broken", "--overwrite")) == list(range(3, 9)) and record(answers)["skipped"] == []


# --- several runs, several processes, batches ------------------------------------------------------------------------


def test_paper_protocol_is_three_seeded_runs(
    answer: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answer("--protocol", "paper", "--seed", "7")
    files = [tmp_path / f"m-{number}.jsonl" for number in (1, 2, 3)]
    assert not answers.exists()
    for number, path in enumerate(files, start=1):
        settings = record(path)["settings"]
        assert (settings["temperature"], settings["seed"], settings["run"]) == (0.2, 6 + number, number)
        assert {line["run"] for line in lines(path)} == {number}
    before = [path.read_bytes() for path in files]
    answer("--protocol", "paper", "--seed", "7")
    assert [path.read_bytes() for path in files] == before
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "50"]) == 0
    assert "m: 3 runs, 0.0 +- 0.0" in capsys.readouterr().out


def test_batch_size_is_a_number_or_auto(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        answer("--batch-size", "many")
    assert "'many'" in capsys.readouterr().err
    auto = lines(answer(name="auto.jsonl"))
    assert "batches of 6 answers" in capsys.readouterr().out
    alone = lines(answer("--batch-size", "1", name="alone.jsonl"))
    assert [line["text"] for line in auto] == [line["text"] for line in alone]


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5"]])
def test_torchrun_processes_share_the_questions_and_merge(
    answer: Answer, tmp_path: Path, sampling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sampled is what one process would sample."""
    complete, shared = answer(*sampling, name="complete.jsonl"), tmp_path / "shared.jsonl"
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in ("2", "0", "3", "1"):
        assert not shared.exists()
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        answer(*sampling, name="shared.jsonl")
    assert shared.read_bytes() == complete.read_bytes()
    merged = record(shared)
    assert merged["answers"] == 6 and merged["settings"]["chunk"] == [0, 1] and len(merged["parts"]) == 4


def test_chunks_by_hand(answer: Answer, benchmark_folder: Path, tmp_path: Path) -> None:
    """Without --merge the given file holds the chunk; more chunks than questions leave some empty."""
    found = [
        number
        for index in range(8)
        for number in ids(answer("--num-chunks", "8", "--chunk-idx", str(index), name=f"{index}.jsonl"))
    ]
    assert found == list(range(3, 9))
    for index in (1, 0):
        answer("--num-chunks", "2", "--chunk-idx", str(index), "--merge")
    assert ids(tmp_path / "m.jsonl") == list(range(3, 9))
    part = tmp_path / "m.0-of-2.jsonl"
    changed = record(part)
    changed["settings"]["reasoning"] = False
    write_json(run_file(part), changed)
    with pytest.raises(InputError, match=r"m.1-of-2.jsonl .*m.0-of-2.jsonl"):
        answer("--num-chunks", "2", "--chunk-idx", "1", "--merge")
    (benchmark_folder / "images" / "wide.png").write_bytes(b"nothing")  # questions 3 and 6
    for index in range(4):
        more = ("--num-chunks", "4", "--chunk-idx", str(index), "--merge", "--skip-broken")
        answer(*more, name="skipped.jsonl")
    assert ids(tmp_path / "skipped.jsonl") == [4, 5, 7, 8] and record(tmp_path / "skipped.jsonl")["skipped"] == [3, 6]


def test_answers_that_depend_on_the_batch_are_counted(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    """By default in half precision only; in float32 none differs."""
    answer("--check-alone", "4", name="a.jsonl")
    assert "4 answers repeated at batch 1 in float32: 0 differ (0%)" in capsys.readouterr().out
    answers = answer("--dtype", "bfloat16", name="b.jsonl")
    assert "6 answers repeated at batch 1 in bfloat16" in capsys.readouterr().out
    assert set(record(answers)["batching"]) == {"repeated", "differ"}


def test_confidence_and_samples_are_written(answer: Answer, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="comes with the extra `constrain`")
    answers = answer("--no-reasoning", "--num-points", "2", "--max-new-tokens", "60", "--temperature", "1",
                     "--samples", "3", "--aggregate", "medoid")  # fmt: skip
    for line in lines(answers):
        confidence = line["metadata"]["point_confidence"]
        assert len(confidence) == 2 and line["confidence"] == pytest.approx(sum(confidence) / 2, abs=1e-5)
        assert len(line["metadata"]["samples"]) == 3 and line["text"] in line["metadata"]["samples"]
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "50"]) == 0
    (model,) = read_json(tmp_path / "summary.json")["models"]
    assert model["calibration"]["points"] == 12 and (tmp_path / "calibration.png").stat().st_size > 5000


def test_prompt_template(answer: Answer, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Please: {instruction} Thank you.\n")
    answers = answer("--prompt-template", str(words))
    assert lines(answers)[0]["prompt"] == "Please: Point to the red mug number 3. Thank you."
    for text, message in (("Please: {instruction}", "prompt_template"), ("Please.", "{instruction}")):
        words.write_text(text)
        with pytest.raises(InputError, match=message):
            answer("--prompt-template", str(words))
