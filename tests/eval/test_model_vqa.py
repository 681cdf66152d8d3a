"""model_vqa: published commands, records, kill and resume, several runs and processes, refused input."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image
from shell import ROOT
from small_benchmark import lines

from trace_vlm.eval import model_vqa, summarize_vqa
from trace_vlm.eval.answering import fingerprint
from trace_vlm.eval.benchmark import run_file
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json


@pytest.fixture
def answer(bench, tiny_model, tmp_path):
    """Run model_vqa on the benchmark and return the answer file."""

    def run(*more, name="m.jsonl", model=tiny_model):
        words = ["--model", model, "--data", bench, "--answers", tmp_path / name, "--max-new-tokens", 5, *more]
        assert model_vqa.main([str(word) for word in words]) == 0
        return tmp_path / name

    return run


def ids(path):
    return [line["question_id"] for line in lines(path)]


def record(path):
    return read_json(run_file(path))


def command(*words):
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_published_commands(bench, tiny_model, tmp_path):
    """From the root with -m, by path, and with underscores; the summary finds the benchmark through the run's record."""
    answers, questions = tmp_path / "out" / "tiny.jsonl", bench / "point_questions.jsonl"
    published = ["--model-path", tiny_model, "--image-folder", bench / "images", "--question-file", questions,
                 "--answer-file", answers, "--max-new-tokens", "5"]  # fmt: skip
    underscored = [str(w).replace("-", "_").replace("__", "--", 1) if str(w)[:2] == "--" else w for w in published]
    done = command("-m", "trace.eval.model_vqa", *underscored)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert ids(answers) == list(range(3, 9))
    again = command("trace/eval/model_vqa.py", *published)
    assert again.returncode == 0 and "6 of 6 questions" in again.stdout, again.stderr
    table = command("trace/eval/summarize_vqa.py", "--answer", answers)
    assert table.returncode == 0 and "Accuracy" in table.stdout, table.stderr
    text = questions.read_text().splitlines()
    questions.write_text("\n".join([*text[:2], text[2][:-4], *text[3:]]) + "\n")
    done = command("trace/eval/model_vqa.py", *published)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{questions}, line 3" in done.stderr


def test_answers_and_record(answer, capsys):
    answers = answer()
    written = lines(answers)
    assert [line["category"] for line in written] == ["seen"] * 4 + ["unseen"] * 2
    assert all(len(line["token_ids"]) <= 5 and line["model_id"] == "tiny" for line in written)
    assert all("number" in line["prompt"] and "Reason step by step" in line["prompt"] for line in written)
    assert len({line["answer_id"] for line in written}) == 6
    assert {line["metadata"]["finish"] for line in written} == {"length"}
    assert "6 answers were cut at 5 new tokens" in capsys.readouterr().out
    run = record(answers)
    assert run["settings"]["model"].startswith("sha256:") and run["finished"] and run["answers"] == 6
    assert {"python", "torch", "transformers"} <= set(run["versions"])


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5", "--seed", "3"]])
@pytest.mark.parametrize("family", [None, "qwen3_vl"])
def test_killed_run_continues_to_the_same_bytes(answer, tmp_path, family, sampling, monkeypatch, family_folder):
    sampling = [*sampling, "--model", family_folder(family)] if family else sampling
    complete, written = answer("--batch-size", "2", *sampling, name="complete.jsonl"), 0

    class Writer(model_vqa.JsonlWriter):
        def write(self, record):
            nonlocal written
            if written == 3:  # in the middle of the second batch
                with open(self.path, "ab") as file:
                    file.write(b'{"question_id": 3, "te')
                raise KeyboardInterrupt
            super().write(record)
            written += 1

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_vqa, "JsonlWriter", Writer)
        answer("--batch-size", "2", *sampling, name="killed.jsonl")
    assert record(tmp_path / "killed.jsonl")["finished"] is None
    assert answer("--batch-size", "2", *sampling, name="killed.jsonl").read_bytes() == complete.read_bytes()


def test_run_continues_only_under_its_own_settings(answer, bench):
    two = ["--num-questions", "2"]
    answers = answer(*two)
    for more, name in (([*two, "--no-reasoning"], "reasoning"), ([*two, "--temperature", "0.2"], "temperature"),
                       ([*two, "--dtype", "bfloat16"], "dtype"), ([], "num_questions")):  # fmt: skip
        with pytest.raises(InputError, match=name):
            answer(*more)
    questions = bench / "point_questions.jsonl"
    questions.write_text(questions.read_text().replace("mug", "cup"))
    with pytest.raises(InputError, match="questions have changed"):
        answer(*two)
    assert len(ids(answer("--overwrite"))) == 6
    written = record(answers)
    del written["settings"]["images"]  # such records were written before images and type were kept
    write_json(run_file(answers), written)
    with pytest.raises(InputError, match=r"m.run.json .* images"):
        answer()
    run_file(answers).unlink()
    with pytest.raises(InputError, match="m.run.json"):
        answer()


def test_other_images_do_not_continue_a_run(answer, bench, tmp_path):
    answers, others = answer(), shutil.copytree(bench / "images", tmp_path / "others")
    before = answers.read_bytes()
    answers.write_bytes(b"".join(before.splitlines(keepends=True)[:2]))  # as after a kill
    assert answer("--images", others, "--dtype", "auto").read_bytes() == before, "the same images elsewhere"
    Image.open(others / "wide.png").rotate(180).save(others / "wide.png")
    with pytest.raises(InputError, match="the images have changed"):
        answer("--images", others)
    (others / "unasked.png").write_bytes(b"")
    shutil.copy(bench / "images" / "wide.png", others)
    assert answer("--images", others).read_bytes() == before, "images that are not asked about do not count"


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "model.safetensors"])
def test_fingerprint_sees_weights_and_processor(name, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(tiny_model)
    data = bytearray((copy / name).read_bytes())
    data[-10] ^= 1
    (copy / name).write_bytes(data)
    assert fingerprint(copy) != fingerprint(tiny_model)


@pytest.mark.parametrize(("more", "named"), [
    (["--runs", "3"], "greedy"), (["--runs", "0"], "--runs"),
    (["--protocol", "paper", "--temperature", "0.7"], "--temperature"), (["--samples", "3"], "--samples"),
    (["--num-points", "3"], "--max-new-tokens"), (["--prompt-template", "nowhere.txt"], "nowhere.txt"),
    (["--conv-mode", "chatty"], "chatty"), (["--conv-mode", "plain"], "plain"),
    (["--num-chunks", "8", "--chunk-idx", "8"], "chunk 8 of 8"), (["--model", "nowhere"], "nowhere"),
    (["--model", "{tmp}"], "{tmp}"),  # a folder that holds no model
    (["--answers", "{tmp}/bench/point_questions.jsonl/m.jsonl"], "point_questions.jsonl"),
    (["--answers", "{tmp}/bench/point_questions.jsonl", "--overwrite"], "point_questions.jsonl"),
])  # fmt: skip
def test_refused_flags(answer, tmp_path, more, named):
    with pytest.raises(InputError, match=named.format(tmp=tmp_path)):
        answer(*(word.format(tmp=tmp_path) for word in more))
    assert not (tmp_path / "m.jsonl").exists() or not ids(tmp_path / "m.jsonl")


def test_missing_image_or_mask_is_named(answer, bench, capsys):
    (bench / "masks" / "4.png").unlink()
    answers = answer()
    assert "question 4" in capsys.readouterr().out
    with pytest.raises(InputError, match="question 4"):
        summarize_vqa.main(["--answers", str(answers)])
    shutil.rmtree(bench / "masks")
    assert len(ids(answer("--num-beams", 2, "--overwrite"))) == 6
    (bench / "images" / "tall.png").unlink()
    with pytest.raises(InputError, match=r"tall.png of question 4"):
        answer()


@pytest.mark.parametrize("content", [None, b"nothing"])  # the second does not even have a size
def test_broken_images_are_refused_or_skipped(answer, bench, tmp_path, capsys, content):
    image, answers = bench / "images" / "tall.png", tmp_path / "m.jsonl"
    image.write_bytes(content or image.read_bytes()[:-200])  # shown by questions 4 and 7
    with pytest.raises(InputError, match=r"tall.png"):
        answer()
    assert not answers.exists()
    answer("--skip-broken", "--check-alone", 3)
    run = record(answers)
    assert ids(answers) == [3, 5, 6, 8] and run["skipped"] == [4, 7]
    assert run["answers"] == 4 and run["batching"]["repeated"] == 2
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "20"]) == 0
    summary = read_json(tmp_path / "summary.json")["models"][0]
    assert summary["unanswered"] == 2 and summary["scores"]["4"] == summary["scores"]["7"] == 0
    assert "2 of 6 questions were skipped" in capsys.readouterr().out


def test_paper_protocol_is_three_seeded_runs(answer, tmp_path, capsys):
    answers = answer("--protocol", "paper", "--seed", 7)
    assert not answers.exists()
    for number in (1, 2, 3):
        path = tmp_path / f"m-{number}.jsonl"
        settings = record(path)["settings"]
        assert (settings["temperature"], settings["seed"], settings["run"]) == (0.2, 6 + number, number)
        assert {line["run"] for line in lines(path)} == {number}
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "50"]) == 0
    assert "m: 3 runs, 0.0 +- 0.0" in capsys.readouterr().out


def test_batches_of_any_size_give_the_same_answers(answer, capsys):
    with pytest.raises(SystemExit):
        answer("--batch-size", "many")
    assert "'many'" in capsys.readouterr().err
    auto = lines(answer("--check-alone", 4, name="auto.jsonl"))
    output = capsys.readouterr().out
    assert "batches of 6 answers" in output and "4 answers repeated at batch 1 in float32: 0 differ (0%)" in output
    alone = lines(answer("--batch-size", 1, name="alone.jsonl"))
    assert [line["text"] for line in auto] == [line["text"] for line in alone]
    half = answer("--dtype", "bfloat16", name="half.jsonl")  # where answers may differ, they are counted by default
    assert set(record(half)["batching"]) == {"repeated", "differ"} and record(half)["batching"]["repeated"] == 6


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5"]])
def test_torchrun_processes_share_the_questions_and_merge(answer, tmp_path, sampling, monkeypatch):
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


def test_chunks_by_hand(answer, bench, tmp_path):
    """Without --merge the given file holds the chunk; more chunks than questions leave some empty."""
    parts = [answer("--num-chunks", 8, "--chunk-idx", index, name=f"{index}.jsonl") for index in range(8)]
    assert [number for part in parts for number in ids(part)] == list(range(3, 9))
    (bench / "images" / "wide.png").write_bytes(b"nothing")  # questions 3 and 6
    for index in (1, 0):
        answer("--num-chunks", 2, "--chunk-idx", index, "--merge", "--skip-broken")
    assert ids(tmp_path / "m.jsonl") == [4, 5, 7, 8] and record(tmp_path / "m.jsonl")["skipped"] == [3, 6]
    changed = record(part := tmp_path / "m.0-of-2.jsonl")
    changed["settings"]["reasoning"] = False
    write_json(run_file(part), changed)
    with pytest.raises(InputError, match=r"m.1-of-2.jsonl .*m.0-of-2.jsonl"):
        answer("--num-chunks", 2, "--chunk-idx", 1, "--merge", "--skip-broken")


def test_confidence_and_samples_are_written(answer, tmp_path):
    pytest.importorskip("llguidance", reason="comes with the extra `constrain`")
    answers = answer("--no-reasoning", "--num-points", 2, "--max-new-tokens", 60, "--temperature", 1,
                     "--samples", 3, "--aggregate", "medoid")  # fmt: skip
    for line in lines(answers):
        confidence = line["metadata"]["point_confidence"]
        assert len(confidence) == 2 and line["confidence"] == pytest.approx(sum(confidence) / 2, abs=1e-5)
        assert len(line["metadata"]["samples"]) == 3 and line["text"] in line["metadata"]["samples"]
    assert summarize_vqa.main(["--answers", str(answers), "--resamples", "50"]) == 0
    (model,) = read_json(tmp_path / "summary.json")["models"]
    assert model["calibration"]["points"] == 12 and (tmp_path / "calibration.png").stat().st_size > 5000


def test_prompt_template(answer, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("Please: {instruction} Thank you.\n")
    assert lines(answer("--prompt-template", words))[0]["prompt"] == "Please: Point to the red mug number 3. Thank you."
    for text, named in (("Please: {instruction}", "prompt_template"), ("Please.", "words.txt|{instruction}")):
        words.write_text(text)
        with pytest.raises(InputError, match=named):
            answer("--prompt-template", words)
