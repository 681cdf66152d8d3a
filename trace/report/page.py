"""One page that shows a complete run: accuracy, answers with reasoning and attention, training, data, records.

    python -m trace.report.page --run output/quickstart
    python -m trace.report.page --run out --data where2place      # a folder of answer files

One HTML file that loads nothing, made of what the run's folder holds (SOURCES; scripts/quickstart.sh writes all of it).
Whatever a model wrote is text: the template escapes it, the script never makes markup of it, and a content security
policy admits this one script by its hash and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..eval import summarize_vqa
from ..eval.benchmark import run_file
from ..utils.command import InputError, Parser, existing_folder, run
from ..utils.files import replacing

ASSETS = Path(__file__).parents[1] / "assets"
SOURCES = {  # the files of a run's folder that each part is made of
    "summary": "accuracy (summary.json)",
    "comparison": "answers side by side (comparison/index.json)",
    "attention": "attention (attention/*.json)",
    "training": "training curves (train/*/run.json)",
    "data": "training data (data/data.json)",
    "records": "how it was made (run.json, generate.json)",
}
SAMPLES = 12
HEAT_COLORS = 64  # of a heat map, as the script gets them


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="One self-contained HTML page about a run.", examples=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, as scripts/quickstart.sh writes it")
    parser.add_argument("--out", type=Path, help="HTML file (default: report.html in the run's folder)")
    parser.add_argument("--title", help="title of the page (default: the folder's name)")
    parser.add_argument(
        "--data", help="the benchmark of answers that no summary.json is about yet, if no record names it"
    )
    parser.add_argument("--training-samples", type=int, default=SAMPLES, help="number of training samples to show")
    arguments = parser.parse_args(argv)
    folder = existing_folder(arguments.run, "the run's folder")
    _summarize_answers(folder, arguments.data)
    title = arguments.title or f"TRACE: {folder.resolve().name}"
    html = render(title, folder, folder / "comparison", folder / "attention", arguments.training_samples)
    print(write_html(arguments.out or folder / "report.html", html))
    return 0


def _summarize_answers(folder: Path, data: str | None) -> None:
    """Summarize the answer files of a folder that has no summary yet."""
    answers = [path for path in sorted(folder.glob("*.jsonl")) if data is not None or run_file(path).is_file()]
    if answers and not (folder / "summary.json").exists():
        named = ["--data", data] if data is not None else []
        summarize_vqa.main(["--answers", *map(str, answers), "--out", str(folder), "--runs", "single", *named])


def write_html(out: Path, html: str) -> str:
    """Write a page; return a line with its path and size."""
    with replacing(out) as temporary:
        temporary.write_bytes(html.encode("utf-8", "replace"))
    return f"{out} ({out.stat().st_size / 1e6:.1f} MB)"


def render(
    title: str, run_folder: Path | None = None, comparison: Path | None = None, attention: Path | None = None,
    samples: int = SAMPLES,
) -> str:  # fmt: skip
    """Render the page of a run, or of a comparison or attention folder alone. InputError: no part, or a broken one."""
    import numpy as np
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from matplotlib.colors import to_hex

    from ..attention.metrics import MEASURES
    from ..drawing import overlay
    from . import page_sections as sections
    from .explorer import explorer

    explored = explorer(comparison, attention)
    runs = sections.training_runs(run_folder / "train") if run_folder else []
    color_of = sections.colors(
        run_folder / "summary.json" if run_folder else None,
        explored.labels if explored else (),
        [*(path.name for path in runs), *(explored.attended if explored else ())],
    )
    parts: dict[str, Any] = {
        "summary": sections.accuracy(run_folder / "summary.json", color_of) if run_folder else None,
        "training": sections.training(run_folder / "train", color_of) if run_folder else None,
        "data": sections.training_data(run_folder / "data", samples) if run_folder else None,
        "records": sections.run_records(run_folder) if run_folder else (),
    }
    if not any(parts.values()) and explored is None:
        folder = run_folder or comparison or attention
        raise InputError(f"{folder} holds nothing to report: no summary.json, comparison, attention, train or data")
    present = {**parts, "comparison": explored and explored.labels, "attention": explored and explored.attended}
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    items = None
    if explored is not None:
        dots = {"few": overlay.FEW_DOTS, "shrink": overlay.SHRINK, "fade": overlay.FADE}
        heat = [to_hex(color) for color in overlay.heat_colormap()(np.linspace(0, 1, HEAT_COLORS))]
        measures = [title for title, _ in MEASURES.values()]
        data = {"labels": explored.labels, "questions": explored.questions, "measures": measures, "heat": heat,
                "colors": color_of, "dots": dots}  # fmt: skip
        # JSON for a script element that the browser does not run: no character can end the element
        items = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: lone surrogates are escaped too
        for character in "<>&":
            items = items.replace(character, f"\\u{ord(character):04x}")
    html: str = environment.get_template("report.html.j2").render(
        title=title,
        missing=[SOURCES[name] for name in SOURCES if not present[name]] if run_folder else [],
        marks={"truth": overlay.CYAN, "prediction": overlay.RED},
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        items=None if items is None else Markup(items),  # noqa: S704 (every character of markup was replaced)
        means=explored.means() if explored is not None and not parts["summary"] else [],
        color_of=color_of,
        explored=explored,
        outcomes=sections.outcomes(explored, color_of) if explored is not None else [],
        attention=sections.attention(attention, color_of) if attention else None,
        **parts,
    )
    return html


if __name__ == "__main__":
    raise SystemExit(run(main))
