"""lmms-eval at its boundary: its samples in our statistics, our tasks, our model; with the program itself in a slow test."""

import importlib
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from small_benchmark import lines, make_benchmark, picture

from trace_vlm.cli import main as trace_vlm
from trace_vlm.core.conventions import CONVENTIONS, read
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import read_answers
from trace_vlm.eval import lmms_eval_tasks, model_vqa, summarize_vqa
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.eval.lmms_eval_model import TraceVLM, answer_text
from trace_vlm.eval.published_benchmarks import PUBLISHED
from trace_vlm.inference.predictor import Prediction
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, read_jsonl, write_jsonl

GOLDEN = Path(__file__).with_name("golden") / "lmms_eval_samples.jsonl"  # of `make_benchmark`, by lmms-eval 0.7.3
TASKS = sorted(Path(lmms_eval_tasks.__file__).parent.glob("*.yaml"))
GRID = POINTS_SUFFIX.replace("between 0 and 1,", "integers between 0 and 999, representing")


def summary(folder, *words):
    assert summarize_vqa.main([str(word) for word in ("--resamples", 50, "--out", folder / "out", *words)]) == 0
    return read_json(folder / "out/summary.json")["models"]


# --- their samples ----------------------------------------------------------------------------------------------------


def test_the_samples_that_lmms_eval_writes_are_scored_as_it_scored_them(tmp_path):
    folder, samples = make_benchmark(tmp_path / "b"), [record for _, record in read_jsonl(GOLDEN)]
    (model,) = summary(tmp_path, "--answers", GOLDEN, "--data", folder)
    scores = {str(sample["accuracy"]["question_id"]): sample["accuracy"]["score"] for sample in samples}
    assert model["scores"] == pytest.approx(scores, abs=1e-9) and len(scores) == 3 and model["unanswered"] == 0
    assert model["mean_tokens"] == pytest.approx(sum(one["token_counts"][0]["output_tokens"] for one in samples) / 3)
    for answer, sample in zip(read_answers(GOLDEN), samples, strict=True):
        assert answer.prompt == sample["input"]
        assert answer.text == sample["resps"] and len(parse(answer.text).steps) == 4  # with the reasoning


SAMPLE = {"doc_id": 5, "target": "", "filtered_resps": "[(0.1, 0.2)]", "input": "Point.", "token_counts": [None]}


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"where2place_acc": {"id": 7, "pred": "[(0.1, 0.2)]", "accuracy": 1.0}}, ["[(0.1, 0.2)]"]),
        ({"doc": {"question_id": 7, "question": "Point."}, "acc": {"id": "other"}}, ["[(0.1, 0.2)]"]),
        ({"acc": {"question_id": 7}, "resps": ["raw"], "token_counts": True}, ["raw"]),
        ({"acc": {"question_id": 7}, "resps": ["a", "b", "c"]}, ["a", "b", "c"]),  # --repeats 3
    ],
)
def test_ids_come_from_the_document_or_a_metric_and_repeats_are_runs(fields, texts, tmp_path):
    write_jsonl(path := tmp_path / "samples.jsonl", [SAMPLE | fields])
    answers = read_answers(path)
    assert [answer.text for answer in answers] == texts and [answer.run for answer in answers] == [*range(len(texts))]
    assert {answer.question_id for answer in answers} == {7} and answers[0].prompt == "Point."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"score": 1.0},
            'line 1: neither "doc" nor a metric of this sample of lmms-eval holds a "question_id" or "id"',
        ),
        (
            {"acc": {"id": 1}, "resps": [["(-0.5, True)"], ["(-0.7, False)"]]},
            'line 1: "text" must be a text, not a list',
        ),
        ({"acc": {"id": 1}, "resps": []}, 'line 1: "resps" is empty'),
    ],
)
def test_a_sample_without_a_usable_field_is_refused_by_name(fields, message, tmp_path):
    write_jsonl(path := tmp_path / "samples.jsonl", [SAMPLE | fields])
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        read_answers(path)


# --- our tasks --------------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Reads `!function module.name` as lmms-eval does for a module that is no file beside the task."""


def _function(loader, node):
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


Loader.add_constructor("!function", _function)


def load_task(path):
    task = yaml.load(path.read_text(), Loader)
    return yaml.load((path.parent / task.pop("include")).read_text(), Loader) | task


def test_the_command_prints_the_folder_of_the_tasks_alone(capsys):
    assert trace_vlm(["lmms-eval-tasks"]) == 0
    folder = Path(capsys.readouterr().out.removesuffix("\n"))
    tasks = {path.stem for path in folder.glob("*.yaml")}
    assert tasks == {"tabletop", "tabletop_chain", "tabletop_absent", "roborefit"}


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_gives_the_questions_of_its_benchmark_and_our_scores(path, tmp_path, monkeypatch):
    task = load_task(path)
    stub = json.loads((path.parent / task["dataset_kwargs"]["data_files"][task["test_split"]]).read_text())
    folder = make_benchmark(tmp_path / PUBLISHED[stub["benchmark"]].folder)
    monkeypatch.setenv("TRACE_DATASETS", str(tmp_path))
    lmms_eval_tasks.benchmark_and_questions.cache_clear()
    pytest.importorskip("datasets")
    docs, questions = task["process_docs"]([stub]), open_benchmark(folder).questions
    assert len(docs) == len(questions) == 3 and task["doc_to_target"] == "" and task["task"] == path.stem
    for doc, question in zip(docs, questions, strict=True):
        assert task["doc_to_text"](doc) == question.text and doc["category"] == question.category
        (image,) = task["doc_to_visual"](doc)
        assert image.size == Image.open(folder / "images" / question.image).size
        right = task["process_results"](doc, ["**Final Answer:**\n[(0.1, 0.5), (0.9, 0.5)]"])["accuracy"]
        assert right == {"question_id": question.question_id, "score": 0.5}
    mean = next(metric["aggregation"] for metric in task["metric_list"] if metric["metric"] == "accuracy")
    assert mean([{"score": 0.5}, {"score": 1.0}]) == 0.75


def test_where_nothing_is_there_the_answer_none_is_right(tmp_path, monkeypatch):
    folder = make_benchmark(tmp_path / "tabletop_absent")
    picture(9).save(folder / "images/empty.png")
    Image.new("L", (60, 40)).save(folder / "masks/empty.jpg")
    absent = {"question_id": 9, "image": "empty.png", "text": "Point to the mug.", "meta": {"absent": True}}
    write_jsonl(folder / "point_questions.jsonl", [*lines(folder / "point_questions.jsonl"), absent])
    monkeypatch.setenv("TRACE_DATASETS", str(tmp_path))
    lmms_eval_tasks.benchmark_and_questions.cache_clear()
    doc = {"benchmark": "tabletop-absent", "question_id": "9"}
    answers = {"None: there is no mug.": 1.0, "[(0.1, 0.5)]": 0.0, "": 0.0}
    assert {text: lmms_eval_tasks.score_answer(doc, [text])["accuracy"]["score"] for text in answers} == answers
    there = lmms_eval_tasks.score_answer({**doc, "question_id": "0"}, ["None: there is no mug."])
    assert there["accuracy"]["score"] == 0


def test_a_missing_benchmark_ends_the_program_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRACE_DATASETS", raising=False)
    pytest.importorskip("datasets")
    with pytest.raises(SystemExit, match=r"^error: the benchmark roborefit is not in any of .*Fetch it with: gdown"):
        lmms_eval_tasks.load_questions([{"benchmark": "roborefit"}])


# --- our model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    model = TraceVLM("nano", device="cpu", batch_size=2)
    pictures = [[picture(0)], [picture(1)], [picture(2)], [], [picture(0), picture(1)]]
    model.task_dict = {"task": {"test": pictures}}
    return model


def request(text, document, **settings):
    return SimpleNamespace(args=(text, settings, lambda pictures: pictures, document, "task", "test"))


def test_tasks_that_ask_for_points_are_asked_in_our_words_and_others_in_theirs(model):
    questions = [
        (f"Point to the mug. {POINTS_SUFFIX} Return only list of tuples, don't add anything else.", 0),
        ("Is there a mug?\nAnswer yes or no.", 1),
        (f"Point to the free space. {POINTS_SUFFIX}", 2),
        (f"Point to the mug. {GRID}", 0),
    ]
    answers = model.generate_until([request(*question, max_new_tokens=16, until=["\n\n"]) for question in questions])
    images = [picture(number) for _, number in questions]
    own = model.predictor.predict(images, ["Point to the mug.", "", "Point to the free space.", "Point to the mug."])
    plain = model.predictor.predict(images[1:2], [questions[1][0]], template="{instruction}")[0]
    assert [text for text, _ in answers] == [
        answer_text(own[0]), answer_text(plain), answer_text(own[2]), answer_text(own[3], grid=True)
    ]  # fmt: skip
    assert [counts["output_tokens"] for _, counts in answers[::2]] == [len(own[0].token_ids), len(own[2].token_ids)]


@pytest.mark.parametrize(("document", "number"), [(3, 0), (4, 2)])
def test_a_question_without_a_picture_or_with_two_is_an_error(model, document, number):
    with pytest.raises(InputError, match=f"document {document} of the task task has {number} pictures"):
        model.generate_until([request("Point to the mug.", document)])


REASONED = "**Reasoning Process:**\n1. **Identify the reference object:** At (0.9, 0.9).\n\n**Final Answer:**\n{}"
NONE = REASONED.format("None: there is no mug.")


@pytest.mark.parametrize(
    ("text", "convention", "grid", "answer"),
    [
        (REASONED.format("[(0.25, 0.5)]"), "unit", False, "**Final Answer:**\n[(0.25, 0.5)]"),
        (REASONED.format("[(0.25, 0.5)]"), "unit", True, "**Final Answer:**\n[(250, 500)]"),
        (REASONED.format('[{"point_2d": [250, 500]}]'), "qwen3-vl", False, "**Final Answer:**\n[(0.250000, 0.500000)]"),
        ("[(0.25, 0.5)]", "unit", False, "[(0.25, 0.5)]"),
        (NONE, "unit", True, "**Final Answer:**\nNone: there is no mug."),
        ("yes", "unit", False, "yes"),
    ],
)
def test_an_answer_holds_points_as_they_were_asked_for_and_the_reasoning_apart(text, convention, grid, answer):
    response = read(text, (100, 100), CONVENTIONS[convention])
    prediction = Prediction(text, (), response, "", None, 0.0, convention=convention)
    thoughts, end, rest = answer_text(prediction, grid).rpartition("</think>\n\n")
    assert rest == answer and bool(end) == ("Reasoning" in text)
    assert not end or thoughts == f"<think>\n{text.partition('**Final')[0].strip()}\n"
    if not grid:
        assert parse(thoughts + end + rest).points == response.points


# --- the program itself -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lmms_eval_gives_the_accuracy_of_our_summary(tmp_path):
    python = os.environ.get("LMMS_EVAL_PYTHON")
    if not python:
        pytest.skip("LMMS_EVAL_PYTHON names no Python with lmms-eval and this package")
    command = [python, "-m", "lmms_eval", "--model", "trace_vlm", "--model_args", "pretrained=nano", "--device",
               "cpu", "--include_path", str(TASKS[0].parent), "--tasks", "tabletop", "--batch_size", "16",
               "--log_samples", "--output_path", str(tmp_path / "theirs")]  # fmt: skip
    data = Path(__file__).parents[2] / "data_samples"
    environment = os.environ | {"TRACE_DATASETS": str(data), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "theirs").rglob("*_results.json")
    (samples,) = (tmp_path / "theirs").rglob("*_samples_tabletop.jsonl")
    own = tmp_path / "own.jsonl"
    words = f"--model nano --device cpu --data tabletop --batch-size 16 --answers {own}".split()
    assert model_vqa.main(words) == 0
    ours, theirs = summary(tmp_path, "--answers", own, samples, "--data", "tabletop")
    accuracy = ours["accuracy"][0]["mean"]
    assert read_json(results)["results"]["tabletop"]["accuracy,none"] == pytest.approx(accuracy, abs=1e-6)
    assert theirs["accuracy"][0]["mean"] == pytest.approx(accuracy, abs=1e-6) and accuracy > 0
    assert theirs["scores"] == ours["scores"]
