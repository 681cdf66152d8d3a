"""A run whose every text tries to be more than text: what the tests of the report and of its page share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from trace_vlm.attention import results
from trace_vlm.attention.capture import Capture, Captured
from trace_vlm.attention.steps import MILESTONES, MilestoneMaps
from trace_vlm.attention.summary import write_summary
from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.core.reasoning import parse, render
from trace_vlm.core.records import Question
from trace_vlm.drawing.figures import Panel
from trace_vlm.eval import summarize_vqa
from trace_vlm.report import comparison_files
from trace_vlm.utils.command import run
from trace_vlm.utils.files import write_json, write_jsonl

EVIL = "<script>document.title = 'harmed'; fetch('https://example.org')</script><img src=x onerror=alert(1)>'\"&amp;"
STEPS = {"reference": f"The red mug. {EVIL}", "target": "Left of it.", "subtype": "Free space.", "output": "Points."}
COR = render(STEPS, [Point(0.2, 0.5), Point(1.4, 0.5)])
RATES = {"optimizer": "muon", "learning_rate": 0.0015, "muon_learning_rate": 0.005}
INSTRUCTION = "Point left of the <b>mug</b> & the $x$."


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


def left_half(size: tuple[int, int] = (60, 40)) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), bool)
    mask[:, : size[0] // 2] = True
    return mask


def make_benchmark(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = []
    for number in range(8):
        picture(number).save(folder / "images" / f"{number}.png")
        Image.fromarray(left_half().astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
        kind = "direct" if number % 2 else "free"
        meta = {"kind": kind, "shortcuts": {"left_edge": [0.0, 0.5], "midpoint": None if number else [0.9, 0.9]}}
        lines.append({"question_id": number, "image": f"{number}.png", "text": f"{INSTRUCTION} {number}", "meta": meta})
    write_jsonl(folder / "point_questions.jsonl", lines)


def make_run(folder: Path) -> Path:
    """A run in which every text that a model or a user chose tries to be more than text."""
    make_benchmark(folder / "bench")
    for arm, texts in {"cor": [COR] * 8, "no_cor": ["(0.2, 0.5)", EVIL] * 4}.items():
        path = folder / "answers" / f"{arm}.jsonl"
        write_jsonl(path, [{"question_id": number, "text": text} for number, text in enumerate(texts)])
        arguments = {"model_path": EVIL, "answer_file": str(path), "reasoning": True, "overwrite": False}
        write_json(path.with_suffix(".run.json"), {"command": "model_vqa", "arguments": arguments, "seconds": 12.3,
                   "settings": {"seed": 77}, "versions": {"torch": "2.13.0"}})  # fmt: skip
        train = folder / "train" / arm
        write_jsonl(train / "log.jsonl", [{"step": step, "loss": 1 / (1 + step)} for step in range(20)])
        write_json(
            train / "run.json", {"config": {"seed": 4242, "model": EVIL, **RATES}, "steps": 1234, "finished": True}
        )
    words = [
        "--answer",
        *(str(folder / f"answers/{arm}.jsonl") for arm in ("cor", "no_cor")),
        "--labels",
        f"CoR {EVIL}",
    ]
    assert run(summarize_vqa.main, [*words, "no CoR", "--data-dir", str(folder / "bench"), "--output", str(folder),
                                    "--resamples", "50"]) == 0  # fmt: skip
    question = Question(EVIL, "0.png", f"{INSTRUCTION} {POINTS_SUFFIX}", category=EVIL)
    panels = [
        Panel(EVIL, parse(COR), 0.5, outcome="right"),
        Panel("plain", parse(EVIL), 0.0, outcome=EVIL, confidence=0.25),
        Panel("box", parse("(0.1, 0.2, 0.3, 0.4)")),
    ]
    compared = comparison_files.write_compared(folder / "comparison", question, picture(0), left_half(), panels)
    scores = (
        comparison_files.Score(EVIL, 8, 0.512, (("right", 5), (EVIL, 3))),
        comparison_files.Score("plain", 8, None),
        comparison_files.Score("box", 8, None),
    )
    comparison_files.write_comparisons(folder / "comparison", comparison_files.ComparisonGallery(scores, (compared,)))
    make_attention(folder / "attention", question)
    make_data(folder / "data")
    return folder


def make_attention(folder: Path, question: Question) -> None:
    maps = np.full((2, 5, 4, 4), 0.01, np.float32)
    maps[:, :, 0, 0] = 0.03
    maps[:, 1] = np.nan
    spans = {key: (3 * place, 3 * place + 3) for place, key in enumerate(MILESTONES) if key != "target"}
    captured = Captured((1, 2, 3), np.zeros((2, 15, 16), np.float16), {}, (0, 2), np.arange(15), True, Capture())
    found = MilestoneMaps(parse(COR), (1, 2, 3), spans, maps, (0, 2), np.full(5, 0.5, np.float32), captured)
    results.write_attended(folder, 0, question, picture(0), (left_half(), None), found, EVIL, {})
    results.write_attention_index(folder)
    write_summary(folder)
    effect = {"step": "target", "kind": EVIL, "edits": 3, "unreadable": 0, "distance": None, "follows": None,
              "moved": {"mean": 0.5, "low": None, "high": None, "questions": 3}}  # fmt: skip
    write_json(folder / "interventions.json", {"effects": [effect]})


def make_data(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    samples = []
    for number in range(30):
        picture(number).save(folder / "images" / f"{number}.png")
        Image.fromarray(left_half().astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
        said = [{"from": "human", "value": f"<image>\n{INSTRUCTION} {number}. {POINTS_SUFFIX}"},
                {"from": "gpt", "value": "[(0.25, 0.50)]"}]  # fmt: skip
        meta = {"kind": "rare" if number == 29 else "direct", "relation": EVIL, "mask": f"masks/{number}.png"}
        samples.append({"id": str(number), "image": f"images/{number}.png", "conversations": said, "meta": meta})
    (folder / "data.json").write_text(json.dumps(samples))
    write_json(folder / "generate.json", {"settings": {"scenes": 5678, "seed": 9}, "versions": {"mujoco": "4.0.0"}})
