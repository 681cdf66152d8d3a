"""The README's picture, from a finished quickstart: accuracy by the number of relations, beside one answer.

    python scripts/assets/readme_picture.py output/quickstart docs/images/quickstart.png

The answer is the reasoning model's to the first question about an object that follows three relations: nobody chose it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from trace_vlm.core.conventions import CONVENTIONS
from trace_vlm.drawing.canvas import figure_to_image
from trace_vlm.drawing.figures import AnswerPanel, draw_comparison, draw_groups
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.eval.scoring import read_single_run, score_response
from trace_vlm.utils.files import read_json

HOPS = 3


def main(folder: Path, out: Path) -> None:
    summary, benchmark = read_json(folder / "summary.json"), open_benchmark(folder / "bench")
    values, names = {}, []
    for model in summary["models"]:
        entries = [entry for entry in model["accuracy"] if entry["field"] == "hops"]
        names = [f"{entry['value']} relation{'s' * (entry['value'] != '1')}" for entry in entries]
        values[model["label"]] = [tuple(100 * entry[name] for name in ("mean", "low", "high")) for entry in entries]
    chart = figure_to_image(draw_groups(values, names, "Point accuracy, %"))
    question = next(one for one in benchmark.questions if one.meta.get("kind") == f"chain {HOPS}")
    run = read_single_run(folder / "answers" / "cor.jsonl", "reasoning", benchmark, CONVENTIONS["unit"].name)
    response, mask = run.responses[str(question.question_id)], benchmark.mask(question)
    panel = AnswerPanel("reasoning", response, accuracy=score_response(response, question, mask))
    with Image.open(benchmark.image_path(question)) as image:
        drawn = draw_comparison(image.convert("RGB"), question.text.partition(" Your answer")[0], [panel], mask)
    answer = figure_to_image(drawn)
    height = max(chart.height, answer.height)
    picture = Image.new("RGB", (chart.width + 30 + answer.width, height), "white")
    picture.paste(chart, (0, (height - chart.height) // 2))
    picture.paste(answer, (chart.width + 30, (height - answer.height) // 2))
    picture.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
