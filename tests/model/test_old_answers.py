"""Who points --model-path at an old checkpoint gets the old model's answers: the evaluation command, as it is typed."""

from __future__ import annotations

import json

import pytest

from trace_vlm.eval.model_vqa import main
from trace_vlm.utils.files import read_jsonl

CASES = ("plain", "eval_template")  # training's template and the original evaluation script's


@pytest.mark.parametrize("name", ["full", "lora"])
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_tokens_come_back(recorded, tmp_path, name, case):
    asked = recorded.prompts[case]
    words = asked["turns"][0].removeprefix("<image>\n")
    question = {"question_id": 7, "image": asked["image"], "text": words, "category": "seen"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "template.txt").write_text("{instruction}")  # the question alone, as it was recorded
    base = recorded.bases[name]
    main(
        [
            "--model-path", str(recorded.folder / name), *(["--model-base", str(base)] if base else []),
            "--image-folder", str(recorded.folder / "images"), "--question-file", str(tmp_path / "questions.jsonl"),
            "--answers-file", str(tmp_path / "answers.jsonl"), "--conv-mode", asked["template"], "--temperature", "0",
            "--max-new-tokens", "24", "--prompt-template", str(tmp_path / "template.txt"),
        ]
    )  # fmt: skip
    ((_, answer),) = read_jsonl(tmp_path / "answers.jsonl")
    assert answer["token_ids"] == recorded.arrays[f"{name}__{case}__greedy"].tolist()
