"""One page that shows a whole run: accuracy, every answer with its reasoning and attention, training, data, records.

    python -m trace.report.page --run output/quickstart

The page is a single HTML file that opens from disk without network: pictures, data and its one script are inside. It
is made of what the run's folder holds, each part optional, and says which parts were not there:

    RUN/data/            generated scenes: data.json (or cor.json, with reasoning), images/, masks/, generate.json
    RUN/bench/           the benchmark: generate.json
    RUN/train/ARM/       run.json and log.jsonl of each training run
    RUN/answers/         ARM.jsonl with ARM.run.json beside it
    RUN/summary.json     of trace.eval.summarize_vqa
    RUN/comparison/      of visualization/visualize_results.py
    RUN/attention/       of visualization/attention_map.py

Whatever a model wrote is text: the template escapes it, the script never makes markup of it, and a content security
policy admits this one script by its hash and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command import InputError, Parser, existing_folder, run

if TYPE_CHECKING:
    from .charts import Stack
    from .items import Explorer

ASSETS = Path(__file__).parents[1] / "assets"
TEMPLATE, SCRIPT, STYLE = "report.html.j2", "report.js", "report.css"
SOURCES = {  # what a part is made of, for the line that says that it is missing
    "summary": "accuracy (summary.json)",
    "comparison": "answers side by side (comparison/index.json)",
    "attention": "attention (attention/index.json)",
    "training": "training curves (train/*/run.json)",
    "data": "training data (data/data.json)",
    "records": "how it was made (run.json, generate.json)",
}
HEAT = 64  # colours of a heat-map, as the script gets them


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a page are; None for what it does not have. `run` holds training, data and records."""

    run: Path | None = None
    comparison: Path | None = None
    attention: Path | None = None
    samples: int = 12


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.report.page", description="One self-contained HTML page about a run.")
    parser.add_argument(
        "--run", type=Path, required=True, help="the run's folder (see the top of trace/report/page.py)"
    )
    parser.add_argument("--out", "--output", type=Path, help="the page; by default report.html in the run's folder")
    parser.add_argument("--title", help="by default the folder's name")
    parser.add_argument("--samples", type=int, default=Parts().samples, help="training samples")
    arguments = parser.parse_args(argv)
    folder = existing_folder(arguments.run, "the run's folder")
    title = arguments.title or f"TRACE: {folder.resolve().name}"
    page = render(Parts(folder, folder / "comparison", folder / "attention", arguments.samples), title)
    print(_write(arguments.out or folder / "report.html", page))
    return 0


def write_page(out: Path, title: str, comparison: Path | None = None, attention: Path | None = None) -> str:
    """A page about compared answers, or about attention, alone; returns a line that names it and its size."""
    return _write(out, render(Parts(None, comparison, attention), title))


def _write(out: Path, page: str) -> str:
    from ..utils.files import replacing

    with replacing(out) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return f"{out} ({out.stat().st_size / 1e6:.1f} MB)"


def render(parts: Parts, title: str) -> str:
    """The page.

    Raises:
        InputError: none of the parts is there, or one of them is broken.
    """
    from ..drawing.overlay import COLORS, CYAN, FADE, FEW, RED, SHRINK
    from . import charts as charts
    from . import history as history
    from .items import explorer, means
    from .sections import WIDTH, accuracy, colors, heat_gradient

    whole = parts.run
    explored = explorer(parts.comparison, parts.attention)
    attention = charts.attention_charts(parts.attention) if parts.attention else None
    color_of = colors(
        whole / "summary.json" if whole else None,
        explored.labels if explored else (),
        [
            *(arm.name for arm in (history.arms_of(whole / "train") if whole else ())),
            *(explored.attended if explored else ()),
        ],
    )
    sections: dict[str, Any] = {
        "summary": accuracy(whole / "summary.json", color_of) if whole else None,
        "training": history.training(whole / "train", color_of) if whole else None,
        "data": history.data(whole / "data", parts.samples) if whole else None,
        "records": history.records(whole) if whole else (),
    }
    if not any(sections.values()) and explored is None:
        place = whole or parts.comparison or parts.attention
        raise InputError(f"{place} holds nothing to report: no summary.json, comparison, attention, train or data")
    there = {**sections, "comparison": explored and explored.labels,
             "attention": explored and any(one["attention"] for one in explored.questions)}  # fmt: skip
    script = (ASSETS / SCRIPT).read_text(encoding="utf-8")
    return str(
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            missing=[SOURCES[name] for name in SOURCES if not there[name]] if whole else [],
            width=WIDTH,
            marks={"heat": heat_gradient(7), "truth": CYAN, "prediction": RED},
            style=(ASSETS / STYLE).read_text(encoding="utf-8"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data_items=_embedded(
                {
                    **explored.data,
                    "heat": heat_gradient(HEAT),
                    "colors": color_of,
                    "crowding": {"few": FEW, "shrink": SHRINK, "fade": FADE},
                }
            )
            if explored
            else None,
            means=means(explored) if explored and not sections["summary"] else [],
            color_of=color_of,
            explored=explored,
            questions=len(explored.questions) if explored else 0,
            stacks=_stacks(explored) if explored else [],
            attention=attention,
            attention_color=color_of.get(attention.model, COLORS[0]) if attention else None,
            effects=charts.effects(parts.attention) if parts.attention else [],
            panel=(charts.WIDE, charts.HIGH),
            curve=history.CURVE,
            **sections,
        )
    )


def _stacks(explored: Explorer) -> list[Stack]:
    """The charts about all compared answers: how many hit, and how the others failed."""
    from .charts import stack
    from .items import success

    counted = [(score.label, score.outcomes) for score in explored.scores if score.outcomes]
    found = [
        stack("Success rates", success(explored)),
        stack("How the answers came out (right: at least half of the points in the target)", counted),
    ]
    return [one for one in found if one is not None]


def _embedded(data: Any) -> Any:
    """JSON for a script element that the browser does not run: nothing in it can end the element."""
    from markupsafe import Markup

    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: half a surrogate pair is written too
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 (every character that means something in HTML was replaced)


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
