"""The report's sections as the template takes them: accuracy, outcomes, attention, training, data, records.

A section is None (or empty) where its files are absent; broken files raise InputError. Charts are figures of
`drawing.figures`, embedded as images; only the accuracy chart is drawn by the template, to fit any width.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attention.interventions import effect_rows, read_effects
from ..attention.metrics import MEASURES
from ..attention.results import MEAN, SUMMARY
from ..attention.steps import step_titles
from ..attention.summary import CONTROLS
from ..attention.summary import tables as attention_tables
from ..core.images import Images, open_image, open_region
from ..core.prompts import bare_instruction
from ..core.reasoning import parse
from ..core.records import Sample, read_samples
from ..drawing.canvas import figure_to_image
from ..drawing.figures import draw_groups, draw_measure, draw_outcome_counts, draw_overlay, draw_training_curves
from ..drawing.overlay import model_colors
from ..eval.tables import sentences, tables
from ..utils.command import InputError
from ..utils.files import read_json, read_jsonl
from .explorer import Explorer, answer_data, small_jpeg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Groups of questions in the accuracy chart; the finer ones are in the table.
CHARTED = ("all", "category", "kind")
QUANTITIES = ("loss", "token_loss", "grounding_loss")
NOT_A_SUMMARY = "{} is not a summary of trace.eval.summarize_vqa ({!r}). Write it again."
SCANNED_SAMPLES = 3000  # from which those to show are chosen
Section = dict[str, Any]


def picture(figure: Figure, label: str) -> Section:
    """Embed a figure as PNG at twice its size: its data URI, words for a screen reader, and the width to show it at."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200, pil_kwargs={"compress_level": 6})
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "label": label, "width": round(float(figure.bbox.width))}


def colors(summary: Path | None, labels: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Choose one colour a model, by each name that a page has for it: its label, and its folder.

    A folder (a training run, a model whose attention is shown) is the model whose answer file has its name. The order
    is the summary's; models that only the comparison (`labels`) or the folders know follow.
    """
    record = read_json(summary, "the summary") if summary is not None and summary.is_file() else {"models": []}
    try:
        known = [(Path(model["answers"]).stem, str(model["label"])) for model in record["models"]]
    except (KeyError, TypeError) as error:
        raise InputError(NOT_A_SUMMARY.format(summary, error)) from None
    label_of = dict(known)
    of_model = model_colors([*(label for _, label in known), *labels, *(label_of.get(f, f) for f in folders)])
    return of_model | {folder: of_model[label_of.get(folder, folder)] for folder in folders}


# --- accuracy ------------------------------------------------------------------------------------------------------


def accuracy(path: Path, color_of: Mapping[str, str]) -> Section | None:
    """Read the summary of an evaluation: its tables and sentences, and a chart of the same numbers in percent."""
    if not path.is_file():
        return None
    summary = read_json(path, "the summary")
    try:
        blocks = tables(summary)
        names = [row[0] for row in blocks[1][1][1:]]
        fields = [entry["field"] for entry in summary["models"][0]["accuracy"]]
        rows = (_accuracy_row(summary, index, name, color_of)
                for index, (field, name) in enumerate(zip(fields, names, strict=True)) if field in CHARTED)  # fmt: skip
        chart = [row for row in rows if row["bars"]]
        models = chart[0]["bars"] if chart else ()  # each model over all questions
        return {"benchmark": summary["benchmark"], "tables": blocks, "sentences": sentences(summary), "chart": chart,
                "models": models, "hops": _by_hops(summary)}  # fmt: skip
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(NOT_A_SUMMARY.format(path, error)) from None


def _by_hops(summary: Mapping[str, Any]) -> list[Section]:
    """Draw accuracy against the number of relations in a question, if questions differ in it."""
    values: dict[str, list[tuple[float, float, float]]] = {}
    for model in summary["models"]:
        entries = [entry for entry in model["accuracy"] if entry["field"] == "hops"]
        names = [f"{entry['value']} relation{'s' * (entry['value'] != '1')}" for entry in entries]
        values[model["label"]] = [
            (100 * entry["mean"], *(100 * entry["mean" if entry[end] is None else end] for end in ("low", "high")))
            for entry in entries
        ]
    title = "Accuracy by relations, %"
    return [picture(draw_groups(values, names, title), title)] if len(names) > 1 else []


def _accuracy_row(summary: Mapping[str, Any], index: int, name: str, color_of: Mapping[str, str]) -> Section:
    bars = []
    for model in summary["models"]:
        entry = model["accuracy"][index]
        if entry["mean"] is not None:
            mean = 100 * entry["mean"]
            low, high = (mean if entry[end] is None else 100 * entry[end] for end in ("low", "high"))
            text = f"{mean:.1f}" if entry["low"] is None else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
            bars.append({"label": model["label"], "mean": mean, "low": low, "high": high, "text": text,
                         "color": color_of[model["label"]]})  # fmt: skip
    questions = summary["models"][0]["accuracy"][index]["questions"]
    # A shortcut that applies to some of these questions only says nothing about all of them.
    baselines = [(entries[index]["mean"], source) for source, entries in summary["baselines"].items()
                 if entries[index]["questions"] == questions]  # fmt: skip
    best, source = max(baselines, default=(None, ""))
    baseline = {"baseline": None if best is None else 100 * best, "baseline_name": source}
    return {"name": name, "questions": questions, "bars": bars, **baseline}


def outcomes(explored: Explorer, color_of: Mapping[str, str]) -> list[Section]:
    """Draw how many of the compared answers hit the target, and how the others failed."""
    charts = {
        "Success rates": explored.success(),
        "How the answers came out": {score.label: dict(score.outcomes) for score in explored.scores if score.outcomes},
    }
    return [picture(draw_outcome_counts(counts, title, color_of), title) for title, counts in charts.items() if counts]


# --- attention -----------------------------------------------------------------------------------------------------


def attention(folder: Path, color_of: Mapping[str, str]) -> Section | None:
    """Read the summary of an attention folder, and the effects of interventions."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary = read_json(path, "the summary of attention")
    try:
        color = color_of.get(summary["model"]) or next(iter(model_colors(["one"]).values()))
        pictures, titles = [], step_titles(summary["missing"])
        for name, (title, unit) in MEASURES.items():
            intervals = [span and (span["mean"], *(span["mean"] if span[end] is None else span[end]
                                                   for end in ("low", "high")))
                         for span in summary["measures"][MEAN][name]]  # fmt: skip
            controls = {words: summary[control].get(name) or [] for control, words in CONTROLS.items()}
            if any(intervals):
                pictures.append(picture(draw_measure(title, unit, list(titles), intervals, controls, color), title))
        missing = [f"{titles[key]} in {count}" for key, count in summary["missing"].items() if count]
        return {**{name: summary[name] for name in ("model", "questions", "images", "verdicts")}, "missing": missing,
                "color": color, "pictures": pictures, "tables": attention_tables(summary),
                "effects": effect_rows(read_effects(folder))}  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a summary of attention ({error!r}). Write it again.") from None


# --- training ------------------------------------------------------------------------------------------------------


def training_runs(folder: Path) -> list[Path]:
    """Return the folders of the training runs."""
    return sorted(path.parent for path in folder.glob("*/run.json"))


def training(folder: Path, color_of: Mapping[str, str]) -> Section | None:
    """Draw the curves of all training runs that have a log, and compare their configurations."""
    runs = training_runs(folder)
    if not runs:
        return None
    logs = {run.name: [line for _, line in read_jsonl(run / "log.jsonl", skip_partial_line=True)]
            for run in runs if (run / "log.jsonl").is_file()}  # fmt: skip
    logged = [name for name in QUANTITIES if any(name in line for lines in logs.values() for line in lines)]
    pictures = [picture(draw_training_curves(logs, [name], color_of), f"{name.replace('_', ' ')} over the optimizer steps")
                for name in logged]  # fmt: skip
    facts = {run.name: _training_facts(read_record(run / "run.json")) for run in runs}
    columns = dict.fromkeys(name for row in facts.values() for name in row)
    rows = [[name, *(row.get(column, "-") for column in columns)] for name, row in facts.items()]
    return {"pictures": pictures, "table": [["run", *columns], *rows]}


def _training_facts(record: Mapping[str, Any]) -> dict[str, str]:
    config = record.get("config") or {}
    grounding, rate = config.get("grounding_loss"), config.get("learning_rate")
    if config.get("optimizer") == "muon":  # it has a rate of its own for matrices
        rate = f"{config.get('muon_learning_rate')} matrices, {rate} the rest"
    counted = {"steps": record.get("steps"), "seconds": record.get("seconds"), "CPU seconds": record.get("cpu_seconds"),
               "samples a step": config.get("global_batch_size")}  # fmt: skip
    facts = {
        **{name: f"{value:,}" if isinstance(value, int | float) else value for name, value in counted.items()},
        "learning rate": rate,
        "grounding loss": f"weight {grounding['weight']}" if isinstance(grounding, dict) else "off",
        "starts from": config.get("model"),
        "seed": config.get("seed"),
        "state": None if record.get("finished") else "not finished",
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


# --- training data -------------------------------------------------------------------------------------------------


def training_data(folder: Path, count: int) -> Section | None:
    """Choose `count` samples of the training set, of every kind in turn."""
    file = next((path for name in ("cor.json", "data.json") if (path := folder / name).is_file()), None)
    if file is None:
        return None
    samples = list(islice(_varied(islice(read_samples(file), SCANNED_SAMPLES)), max(0, count)))
    record = read_record(folder / "generate.json") if (folder / "generate.json").is_file() else {}
    settings = record.get("settings") or {}
    counts = [(name, f"{settings[name]:,}") for name in ("scenes", "views", "seed")
              if isinstance(settings.get(name), int)]  # fmt: skip
    return {"file": file.name, "counts": counts, "samples": [_sample_view(folder, sample) for sample in samples]}


def _varied(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Samples of every kind and relation in turn, each image once as long as there are others."""
    piles: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        kind = tuple(str(sample.meta.get(name)) for name in ("task", "kind", "relation"))
        if sample.image is not None:
            piles.setdefault(kind, []).append(sample)
    seen: set[str | None] = set()
    while any(piles.values()):
        for pile in filter(None, piles.values()):
            sample = pile.pop(next((index for index, sample in enumerate(pile) if sample.image not in seen), 0))
            seen.add(sample.image)
            yield sample


def _sample_view(folder: Path, sample: Sample) -> Section:
    files = Images(folder)
    image = open_image(files.path(str(sample.image)))
    mask_file = files.find(str(sample.meta.get("mask", "")))
    mask = open_region(mask_file) if mask_file is not None else None
    turns = {turn.speaker: turn.text for turn in reversed(sample.conversations)}  # the first of each speaker
    response = parse(turns.get("gpt", ""), image.size)
    named = [str(value) for name in ("kind", "relation") if (value := sample.meta.get(name))]
    kind = " \u00b7 ".join(dict.fromkeys(named))  # "between" is both
    drawn = figure_to_image(draw_overlay(image, response.points, side=400, mask=mask))
    uri = small_jpeg(drawn, 60_000, sides=(400,))
    instruction = bare_instruction(turns.get("human", ""))
    return {"id": sample.id, "kind": kind, "instruction": instruction, "uri": uri, "answer": answer_data(response)}


# --- how it was made -----------------------------------------------------------------------------------------------


def run_records(folder: Path) -> list[Section]:
    """Read the record of every command in the run's folder, in the order in which they were run."""
    patterns = ("run.json", "data/generate.json", "data/*.run.json", "bench/generate.json", "train/*/run.json",
                "answers/*.run.json")  # fmt: skip
    entries = []
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        record = read_record(path)
        parts = (record, record.get("settings"), record.get("config"))
        seeds = [part["seed"] for part in parts if isinstance(part, dict) and part.get("seed") is not None]
        facts = [("seed", str(seed)) for seed in seeds[:1]]
        if isinstance(record.get("seconds"), int | float):
            facts.append(("seconds", f"{record['seconds']:,.0f}"))
        if isinstance(record.get("versions"), dict):
            facts.append(("versions", ", ".join(f"{key} {value}" for key, value in record["versions"].items())))
        words = [str(record.get("command", ""))]
        arguments = record.get("arguments")
        for name, value in arguments.items() if isinstance(arguments, dict) else ():
            if value is not None and value is not False:
                values = [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
                words += ["--" + name.replace("_", "-"), *values]
        entries.append({"name": path.relative_to(folder).as_posix(), "command": " ".join(words).strip(), "facts": facts,
                        "content": json.dumps(record, indent=2, ensure_ascii=False)})  # fmt: skip
    return entries


def read_record(path: Path) -> Mapping[str, Any]:
    record = read_json(path, "the record of a run")
    if not isinstance(record, dict):
        raise InputError(f"{path} is not the record of a run: it holds no JSON object")
    return record
