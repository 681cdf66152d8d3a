"""One page that shows a whole run: accuracy, answers with reasoning, attention, training, data, how it was made.

    python -m trace.report --run output/quickstart

The page is a single HTML file that opens from disk without network and without JavaScript; pictures are inside it.
It is made of what the run's folder holds, each part optional, and says which parts were not there:

    RUN/data/            generated scenes: data.json (or cor.json, with reasoning), images/, masks/, generate.json
    RUN/bench/           the benchmark: generate.json
    RUN/train/ARM/       run.json, log.jsonl (or curves.png) of each training run
    RUN/answers/         ARM.jsonl with ARM.run.json beside it
    RUN/summary.json     of trace.eval.summarize_vqa
    RUN/comparison/      of visualization/visualize_results.py
    RUN/attention/       of visualization/attention_map.py

Whatever a model wrote is escaped, and a content security policy forbids scripts altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command import InputError, Parser, existing_folder, run

TEMPLATE = "report.html.j2"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each kind goes into the page."""

    comparisons: int = 12
    attention: int = 6
    samples: int = 12


def main(argv: Sequence[str] | None = None) -> int:
    limits = Limits()
    parser = Parser(prog="trace.report", description="One self-contained HTML page about a run.")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder (see the top of trace/report.py)")
    parser.add_argument("--out", "--output", type=Path, help="the page; by default report.html in the run's folder")
    parser.add_argument("--title", help="by default the folder's name")
    parser.add_argument("--comparisons", type=int, default=limits.comparisons, help="questions with all answers")
    parser.add_argument("--attention", type=int, default=limits.attention, help="questions with attention")
    parser.add_argument("--samples", type=int, default=limits.samples, help="training samples")
    arguments = parser.parse_args(argv)
    folder = existing_folder(arguments.run, "the run's folder")
    out = arguments.out or folder / "report.html"
    title = arguments.title or f"TRACE: {folder.resolve().name}"
    page = render(folder, title, Limits(arguments.comparisons, arguments.attention, arguments.samples))
    from .files import replacing

    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


def render(folder: Path, title: str, limits: Limits) -> str:
    """The page about the run in `folder`.

    Raises:
        InputError: the folder holds none of the parts, or one of them is broken.
    """
    from . import report_history as history
    from . import report_parts as parts

    sections = {
        "summary": parts.accuracy(folder / "summary.json"),
        "comparisons": parts.comparisons(folder / "comparison", limits.comparisons),
        "attention": parts.attention(folder / "attention", limits.attention),
        "training": history.training(folder / "train"),
        "data": history.data(folder / "data", limits.samples),
        "records": history.records(folder),
    }
    if not any(sections.values()):
        raise InputError(f"{folder} holds nothing to report: no summary.json, comparison, attention, train or data")
    missing = [parts.SOURCES[name] for name, section in sections.items() if not section]
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(title=title, missing=missing, width=parts.WIDTH, heat=parts.heat_gradient(), **sections)
    )


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "assets")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
