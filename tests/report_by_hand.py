"""A run whose every text tries to be more than text: what the tests of the report and of its page share."""

import numpy as np
from small_benchmark import left_half, picture, write_pictures

from trace_vlm.attention import results
from trace_vlm.attention.capture import CaptureConfig, CapturedAnswer
from trace_vlm.attention.steps import STEP_TITLES, AnswerAttention
from trace_vlm.attention.summary import write_summary
from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import parse, render
from trace_vlm.core.records import Question
from trace_vlm.drawing.figures import AnswerPanel
from trace_vlm.eval import summarize_vqa
from trace_vlm.report.comparison import ModelScore, write_comparison, write_panels
from trace_vlm.utils.command import run
from trace_vlm.utils.files import write_json, write_jsonl

EVIL = "<script>document.title = 'harmed'; fetch('https://example.org')</script><img src=x onerror=alert(1)>'\"&amp;"
STEPS = {"reference": f"The red mug. {EVIL}", "target": "Left of it.", "subtype": "Free space.", "output": "Points."}
COR = render(STEPS, [Point(0.2, 0.5), Point(1.4, 0.5)])
INSTRUCTION = "Point left of the <b>mug</b> & the $x$."


def make_run(folder):
    bench = folder / "bench"
    write_pictures(bench, {f"{number}.png": (60, 40) for number in range(8)})
    write_jsonl(bench / "point_questions.jsonl", [
        {"question_id": number, "image": f"{number}.png", "text": f"{INSTRUCTION} {number}",
         "meta": {"kind": "direct" if number % 2 else "free", "hops": [{"instance": None}] * (1 + number % 2),
                  "shortcuts": {"left_edge": [0.0, 0.5], "midpoint": None if number else [0.9, 0.9]}}}
        for number in range(8)
    ])  # fmt: skip
    rates = {"optimizer": "muon", "learning_rate": 0.0015, "muon_learning_rate": 0.005}
    for model, texts in {"cor": [COR] * 8, "no_cor": ["(0.2, 0.5)", EVIL] * 4}.items():
        path, train = folder / "answers" / f"{model}.jsonl", folder / "train" / model
        write_jsonl(path, [{"question_id": number, "text": text} for number, text in enumerate(texts)])
        arguments = {"model_path": EVIL, "answer_file": str(path), "reasoning": True, "overwrite": False}
        write_json(path.with_suffix(".run.json"), {"command": "model_vqa", "arguments": arguments, "seconds": 12.3,
                   "settings": {"seed": 77}, "versions": {"torch": "2.13.0"}})  # fmt: skip
        write_jsonl(train / "log.jsonl", [{"step": step, "loss": 1 / (1 + step)} for step in range(20)])
        config = {"seed": 4242, "model": EVIL, **rates}
        write_json(train / "run.json", {"config": config, "steps": 1234, "finished": True})
    answers = [f"{folder}/answers/{model}.jsonl" for model in ("cor", "no_cor")]
    words = ["--answers", *answers, "--labels", f"CoR {EVIL}", "no CoR", "--data", str(bench)]
    assert run(summarize_vqa.main, [*words, "--out", str(folder), "--resamples", "50"]) == 0
    question = Question(EVIL, "0.png", f"{INSTRUCTION} {POINTS_SUFFIX}", category=EVIL)
    panels = [AnswerPanel(EVIL, parse(COR), 0.5, outcome="right"), AnswerPanel("box", parse("(0.1, 0.2, 0.3, 0.4)"))]
    panels.insert(1, AnswerPanel("plain", parse(EVIL), 0.0, outcome=EVIL, confidence=0.25))
    scores = [ModelScore(panel.label, 8, None) for panel in panels]
    scores[0] = ModelScore(EVIL, 8, 0.512, (("right", 5), (EVIL, 3)))
    compared = write_panels(folder / "comparison", question, picture(0), left_half(), panels)
    write_comparison(folder / "comparison", scores, [compared])
    maps = np.full((2, 5, 4, 4), 0.01, np.float32)
    maps[:, :, 0, 0], maps[:, 1] = 0.03, np.nan
    spans = {key: (3 * index, 3 * index + 3) for index, key in enumerate(STEP_TITLES) if key != "target"}
    captured = CapturedAnswer((1, 2, 3), np.zeros((2, 15, 16), np.float16), {}, (0, 2), np.arange(15), CaptureConfig())
    attention = AnswerAttention(parse(COR), spans, maps, np.full(5, 0.5, np.float32), captured)
    results.write_record(folder / "attention", 0, question, picture(0), (left_half(), None), attention, EVIL, {})
    write_summary(folder / "attention")
    effect = {"step": "target", "kind": EVIL, "edits": 3, "unreadable": 0, "distance": None, "follows": None,
              "moved": {"mean": 0.5, "low": None, "high": None, "questions": 3}}  # fmt: skip
    write_json(folder / "attention/interventions.json", {"effects": [effect]})
    data = folder / "data"
    write_pictures(data, {f"{number}.png": (60, 40) for number in range(30)})
    write_json(data / "data.json", [
        {"id": str(number), "image": f"images/{number}.png",
         "conversations": [{"from": "human", "value": f"<image>\n{INSTRUCTION} {number}. {POINTS_SUFFIX}"},
                           {"from": "gpt", "value": "[(0.25, 0.50)]"}],
         "meta": {"kind": "rare" if number == 29 else "direct", "relation": EVIL, "mask": f"masks/{number}.jpg"}}
        for number in range(30)
    ])  # fmt: skip
    write_json(data / "generate.json", {"settings": {"scenes": 5678, "seed": 9}, "versions": {"mujoco": "4.0.0"}})
    return folder
