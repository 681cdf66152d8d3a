"""model_vqa as it is used: written, killed, continued, summarised, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trace_vlm.eval import model_vqa, summarize_vqa
from trace_vlm.eval.answering import fingerprint
from trace_vlm.eval.benchmark import run_file
from trace_vlm.model.checkpoint import load, loaded_dtype, save
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import write_jsonl

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--max-new-tokens", "5", "--batch-size", "2"]


def arguments(folder: Path, model: Path | str, answers: Path, *more: str) -> list[str]:
    return ["--model-path", str(model), "--image-folder", str(folder / "images"), "--question-file",
            str(folder / "point_questions.jsonl"), "--answer-file", str(answers), *FAST, *more]  # fmt: skip


def command(*words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=120)


def ids(path: Path) -> list[Any]:
    return [json.loads(line)["question_id"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_published_commands(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """From the root with -m, by path, and with underscores; the second finds the benchmark through the run's record."""
    answers = tmp_path / "out" / "tiny.jsonl"
    words = arguments(benchmark_folder, tiny_model, answers)
    underscored = [word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word for word in words]
    done = command("-m", "trace.eval.model_vqa", *underscored)
    assert done.returncode == 0, done.stderr
    assert "questions/min" in done.stderr and "accuracy" in done.stderr and "Traceback" not in done.stderr
    assert ids(answers) == list(range(3, 9))
    again = command("trace/eval/model_vqa.py", *words)
    assert again.returncode == 0 and "6 of 6 questions are already answered" in again.stdout, again.stderr
    table = command("trace/eval/summarize_vqa.py", "--answer", answers)
    assert table.returncode == 0 and "Accuracy" in table.stdout, table.stderr
    assert json.loads((answers.parent / "summary.json").read_text())["benchmark"]["questions"] == 6


def test_a_mistake_is_one_line_and_exit_code_2(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    question_file = benchmark_folder / "point_questions.jsonl"
    lines = question_file.read_text().splitlines()
    question_file.write_text("\n".join([*lines[:2], lines[2][:-4], *lines[3:]]) + "\n")
    done = command("-m", "trace_vlm.eval.model_vqa", *arguments(benchmark_folder, tiny_model, tmp_path / "a.jsonl"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{question_file}, line 3" in done.stderr


def test_answers_and_their_record(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "tiny.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers)) == 0
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [line["category"] for line in lines] == ["seen"] * 4 + ["unseen"] * 2
    assert all(len(line["token_ids"]) <= 5 and line["model_id"] == "tiny" for line in lines)
    assert all("number" in line["prompt"] and "Reason step by step" in line["prompt"] for line in lines)
    assert len({line["answer_id"] for line in lines}) == 6
    assert {line["metadata"]["finish"] for line in lines} == {"length"}
    told = capsys.readouterr().out
    assert "6 answers were cut at 5 new tokens" in told
    record = json.loads(run_file(answers).read_text(encoding="utf-8"))
    assert record["settings"]["model"].startswith("sha256:") and record["finished"] and record["answers"] == 6
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    first = answers.read_bytes()
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--overwrite")) == 0
    assert answers.read_bytes() == first


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5", "--seed", "3"]])
def test_a_killed_run_goes_on_and_ends_the_same(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, sampling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, whole, *sampling)) == 0

    written = 0

    class Killed(BaseException):
        pass

    class Writer(model_vqa.JsonlWriter):
        def write(self, record: Any) -> None:
            nonlocal written
            if written == 3:  # in the middle of the second batch
                self._file.write(b'{"question_id": 3, "te')
                raise Killed
            super().write(record)
            written += 1

    with monkeypatch.context() as patch:
        patch.setattr(model_vqa, "JsonlWriter", Writer)
        with pytest.raises(Killed):
            model_vqa.main(arguments(benchmark_folder, tiny_model, broken, *sampling))
    assert json.loads(run_file(broken).read_text())["finished"] is None
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, broken, *sampling)) == 0
    assert broken.read_bytes() == whole.read_bytes()


def test_a_run_is_only_continued_under_its_own_settings(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "m.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--num-questions", "2")) == 0
    for more, name in ((["--no-reasoning"], "reasoning"), (["--temperature", "0.2"], "temperature"), ([], "questions")):
        with pytest.raises(InputError, match=f"was begun with .*{name}"):
            model_vqa.main(arguments(benchmark_folder, tiny_model, answers, *more, *(
                [] if name == "questions" else ["--num-questions", "2"])))  # fmt: skip
    question_file = benchmark_folder / "point_questions.jsonl"
    question_file.write_text(question_file.read_text().replace("mug", "cup"))
    with pytest.raises(InputError, match="question_sha256"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--num-questions", "2"))
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--overwrite")) == 0
    assert len(ids(answers)) == 6
    run_file(answers).unlink()
    with pytest.raises(InputError, match=r"no m.run.json says how they were made"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers))


def test_other_pictures_or_another_type_do_not_continue_a_run(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Half a file about other pictures, or in another type, would be one accuracy of two things."""
    answers = tmp_path / "m.jsonl"
    words = arguments(benchmark_folder, tiny_model, answers)
    assert model_vqa.main(words) == 0
    before = answers.read_bytes()
    answers.write_bytes(b"".join(before.splitlines(keepends=True)[:2]))  # as after a kill
    assert json.loads(run_file(answers).read_text())["settings"]["dtype"] == "float32"
    with pytest.raises(InputError, match=r"was begun with dtype float32, not bfloat16"):
        model_vqa.main([*words, "--dtype", "bfloat16"])
    others = tmp_path / "others"
    shutil.copytree(benchmark_folder / "images", others)
    assert model_vqa.main([*words, "--image-folder", str(others), "--dtype", "auto"]) == 0, "the same, elsewhere"
    assert answers.read_bytes() == before
    Image.open(others / "wide.png").rotate(180).save(others / "wide.png")
    with pytest.raises(InputError, match=r"was begun with images sha256:.*, not sha256:.*--overwrite"):
        model_vqa.main([*words, "--image-folder", str(others)])
    (others / "unasked.png").write_bytes(b"")
    shutil.copy(benchmark_folder / "images" / "wide.png", others)
    assert model_vqa.main([*words, "--image-folder", str(others)]) == 0, (
        "pictures that are not asked about do not count"
    )
    assert answers.read_bytes() == before


def test_the_type_in_memory_is_known_before_a_model_is_loaded(tiny_checkpoint: Any, tmp_path: Path) -> None:
    save(tiny_checkpoint, tmp_path / "half", dtype="bfloat16")
    asked = (("auto", "bfloat16"), ("float32", "float32"), ("half", "float16"))
    assert all(loaded_dtype(tmp_path / "half", None, dtype) == name for dtype, name in asked)
    assert all(str(load(tmp_path / "half", dtype=dtype).model.dtype) == f"torch.{name}" for dtype, name in asked)
    assert loaded_dtype("nano-random", None, "auto") == "float32"  # the preset: random weights
    with pytest.raises(InputError, match="'int8' is no type of weights"):
        loaded_dtype(tmp_path / "half", None, "int8")


def test_a_record_that_does_not_name_a_setting_is_not_trusted(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Such records were written before pictures and type were kept."""
    answers = tmp_path / "m.jsonl"
    words = arguments(benchmark_folder, tiny_model, answers)
    assert model_vqa.main(words) == 0
    record = json.loads(run_file(answers).read_text())
    del record["settings"]["images"]
    run_file(answers).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"m.run.json .* images .*--overwrite"):
        model_vqa.main(words)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_what_stands_between_weights_and_answers_belongs_to_the_model(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / name).write_text((copy / name).read_text() + "\n")
    assert fingerprint(copy) != fingerprint(tiny_model)


def test_other_weights_under_the_same_name_are_noticed(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert fingerprint(copy) == fingerprint(tiny_model)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != fingerprint(tiny_model)


def test_chunks_share_the_questions(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """More chunks than questions leave some with nothing to do, which is no mistake."""
    found = []
    for index in range(8):
        answers = tmp_path / f"{index}.jsonl"
        more = ["--num-chunks", "8", "--chunk-idx", str(index)]
        assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, *more)) == 0
        found += ids(answers)
    assert found == list(range(3, 9))
    with pytest.raises(InputError, match="no chunk 8 of 8"):
        more = ["--num-chunks", "8", "--chunk-idx", "8"]
        model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "x.jsonl", *more))


def test_what_model_vqa_refuses(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    answers = tmp_path / "m.jsonl"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="nowhere"):
        model_vqa.main(arguments(benchmark_folder, "nowhere", answers))
    with pytest.raises(InputError, match="empty is no model"):
        model_vqa.main(arguments(benchmark_folder, empty, answers))
    with pytest.raises(InputError, match="unknown conversation template"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--conv-mode", "chatty"))
    with pytest.raises(InputError, match="cannot be written"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, benchmark_folder / "point_questions.jsonl" / "m.jsonl"))
    questions = benchmark_folder / "point_questions.jsonl"
    with pytest.raises(InputError, match="is the question file, which answers would replace"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, questions, "--overwrite"))
    with pytest.raises(InputError, match="'plain' is an image and its caption"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--conv-mode", "plain"))
    (benchmark_folder / "images" / "tall.png").unlink()
    with pytest.raises(InputError, match=r"tall.png of question 4 does not exist"):
        model_vqa.main(arguments(benchmark_folder, tiny_model, answers))
    assert not answers.exists() or not answers.read_text()


def test_a_mask_that_cannot_be_used_stops_the_summary_and_not_the_answers(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmark_folder / "masks" / "4.png").unlink()
    answers = tmp_path / "m.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers)) == 0
    assert "not scored: question 4 has no mask" in capsys.readouterr().out
    with pytest.raises(InputError, match="question 4 has no mask"):
        summarize_vqa.main(["--answer", str(answers)])


def test_a_folder_without_masks_is_answered(benchmark_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    for mask in (benchmark_folder / "masks").iterdir():
        mask.unlink()
    (benchmark_folder / "masks").rmdir()
    answers = tmp_path / "m.jsonl"
    assert model_vqa.main(arguments(benchmark_folder, tiny_model, answers, "--num-beams", "2")) == 0
    assert len(ids(answers)) == 6


def test_broken_pictures_are_told_first_and_skipped_when_asked(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, answers = benchmark_folder / "images", tmp_path / "m.jsonl"
    whole = (images / "tall.png").read_bytes()  # shown by questions 4 and 7
    (images / "tall.png").write_bytes(whole[:-200])
    with pytest.raises(InputError, match=r"1 of 3 images cannot be read \(.*tall.png: .*--skip-broken"):
        model_vqa.main(arguments(benchmark_folder, "nowhere", answers))
    assert not answers.exists()
    for content in (whole[:-200], b"nothing"):  # the second has not even a size
        (images / "tall.png").write_bytes(content)
        words = arguments(benchmark_folder, tiny_model, answers, "--skip-broken", "--check-alone", "3", "--overwrite")
        assert model_vqa.main(words) == 0
        assert ids(answers) == [3, 5, 6, 8]
        record = json.loads(run_file(answers).read_text())
        assert record["skipped"] == [4, 7] and record["answers"] == 4 and record["batching"]["repeated"] == 2
        assert summarize_vqa.main(["--answer", str(answers), "--resamples", "20"]) == 0
        summary = json.loads((tmp_path / "summary.json").read_text())["models"][0]
        assert summary["unanswered"] == 2 and summary["scores"]["4"] == summary["scores"]["7"] == 0
        assert "2 of 6 questions were skipped" in capsys.readouterr().out
    (images / "tall.png").write_bytes(whole)  # mended: these are other pictures, which --overwrite asks about
    with pytest.raises(InputError, match="begun with images"):
        model_vqa.main([word for word in words if word != "--overwrite"])
    assert model_vqa.main(words) == 0
    assert ids(answers) == list(range(3, 9)) and json.loads(run_file(answers).read_text())["skipped"] == []


def test_processes_that_share_the_work_put_together_what_they_skipped(
    benchmark_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (benchmark_folder / "images" / "wide.png").write_bytes(b"nothing")  # questions 3 and 6
    for index in range(4):
        more = ["--num-chunks", "4", "--chunk-idx", str(index), "--merge", "--skip-broken"]
        assert model_vqa.main(arguments(benchmark_folder, tiny_model, tmp_path / "m.jsonl", *more)) == 0
    assert ids(tmp_path / "m.jsonl") == [4, 5, 7, 8]
    assert json.loads(run_file(tmp_path / "m.jsonl").read_text())["skipped"] == [3, 6]


def test_only_some_broken_pictures_are_named(benchmark_folder: Path, tmp_path: Path) -> None:
    lines = [{"question_id": number, "image": f"{number}.png", "text": "q"} for number in range(8)]
    write_jsonl(benchmark_folder / "point_questions.jsonl", lines)
    for number in range(8):
        (benchmark_folder / "images" / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="8 of 8 images cannot be read") as told:
        model_vqa.main(arguments(benchmark_folder, "nowhere", tmp_path / "m.jsonl"))
    assert "4.png" in str(told.value) and "5.png" not in str(told.value)
    with pytest.raises(InputError, match="there is nothing to ask"):
        model_vqa.main(arguments(benchmark_folder, "nowhere", tmp_path / "m.jsonl", "--skip-broken"))
