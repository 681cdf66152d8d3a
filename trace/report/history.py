"""How a run came about, for the report: training curves, the training data, and the record of every step.

As in `report_parts`, a part that is not there gives None (or nothing) and a broken one an InputError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..core.images import Images, open_image, open_region
from ..core.prompts import bare_instruction
from ..core.reasoning import parse
from ..core.records import Sample, read_samples
from ..drawing import figures
from ..utils.command import InputError
from ..utils.files import read_json, read_jsonl
from .comparison_files import Outline, outline
from .sections import AnswerView, answer_view, data_uri, marks

# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """One run in one panel: `raw` and `smooth` as points of an SVG polyline."""

    name: str
    color: str
    raw: str
    smooth: str


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """One quantity over the optimizer steps; `ticks` are (y, text), `last` is the number of the last step."""

    title: str
    curves: Sequence[Curve]
    ticks: Sequence[tuple[float, str]]
    last: str


@dataclass(frozen=True, slots=True)
class Training:
    panels: Sequence[CurvePanel]
    table: Sequence[Sequence[str]]  # a header, then a row for each run


COUNTED = ("steps", "seconds", "CPU seconds", "samples a step")  # numbers that get a comma for the thousands
QUANTITIES = ("loss", "token_loss", "grounding_loss")
CURVE = (420, 200)  # width and height of a panel's plot
DRAWN = 400  # points of a curve: more than its pixels would only make the page larger


def arms_of(folder: Path) -> list[Path]:
    """The folders of the training runs."""
    return sorted(path.parent for path in folder.glob("*/run.json"))


def training(folder: Path, colors: Mapping[str, str]) -> Training | None:
    """Curves of all arms whose logs are there, and what one compares between them; `colors` by the arms' names."""
    arms = arms_of(folder)
    if not arms:
        return None
    logs = {
        arm.name: [line for _, line in read_jsonl(arm / "log.jsonl", skip_partial_line=True)]
        for arm in arms
        if (arm / "log.jsonl").is_file()
    }
    panels = [panel for name in QUANTITIES if (panel := _curves(logs, name, colors)) is not None]
    facts = {arm.name: _facts(_read_record(arm / "run.json")) for arm in arms}
    columns = dict.fromkeys(name for row in facts.values() for name in row)
    rows = [[name, *(row.get(column, "-") for column in columns)] for name, row in facts.items()]
    return Training(panels, [["run", *columns], *rows])


def _curves(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], quantity: str, colors: Mapping[str, str]
) -> CurvePanel | None:
    """One quantity of all runs that logged it, under a linear scale from 0."""
    found = {
        name: np.asarray([(line["step"], line[quantity]) for line in lines if quantity in line], dtype=float)
        for name, lines in logs.items()
    }
    found = {name: pairs for name, pairs in found.items() if len(pairs)}
    if not found:
        return None
    last = max(float(pairs[:, 0].max()) for pairs in found.values()) or 1.0
    top = max(float(np.quantile(pairs[:, 1], 0.995)) for pairs in found.values()) or 1.0
    curves = [
        Curve(name, colors[name], _polyline(pairs[:, 0], pairs[:, 1], last, top),
              _polyline(pairs[:, 0], figures.smooth(pairs[:, 1]), last, top))
        for name, pairs in found.items()
    ]  # fmt: skip
    ticks = [(round(CURVE[1] * (1 - part), 1), f"{part * top:.2g}") for part in (0, 0.5, 1)]
    return CurvePanel(quantity.replace("_", " "), curves, ticks, f"{last:,.0f}")


def _polyline(steps: np.ndarray, values: np.ndarray, last: float, top: float) -> str:
    chosen = np.unique(np.linspace(0, len(steps) - 1, DRAWN).astype(int))
    x, y = CURVE[0] * steps[chosen] / last, CURVE[1] * (1 - np.clip(values[chosen] / top, 0, 1))
    return " ".join(f"{one:.1f},{other:.1f}" for one, other in zip(x, y, strict=True))


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What one compares between training runs."""
    config = record.get("config") or {}
    grounding = config.get("grounding_loss")
    wanted = {
        "steps": record.get("steps"),
        "seconds": record.get("seconds"),
        "CPU seconds": record.get("cpu_seconds"),
        "samples a step": config.get("global_batch_size"),
        "learning rate": _learning_rate(config),
        "grounding loss": f"weight {grounding['weight']}" if isinstance(grounding, dict) else "off",
        "starts from": config.get("model"),
        "seed": config.get("seed"),
        "state": None if record.get("finished") else "not finished",
    }
    return {
        name: f"{value:,}" if isinstance(value, int | float) and name in COUNTED else str(value)
        for name, value in wanted.items()
        if value is not None
    }


def _learning_rate(config: Mapping[str, Any]) -> Any:
    """Under Muon there are two: its own for matrices, and that of everything else."""
    rate = config.get("learning_rate")
    if config.get("optimizer") != "muon":
        return rate
    return f"{config.get('muon_learning_rate')} matrices, {rate} the rest"


# --- training data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SampleView:
    id: str
    kind: str
    instruction: str
    uri: str
    answer: AnswerView


@dataclass(frozen=True, slots=True)
class Data:
    file: str
    counts: Sequence[tuple[str, str]]
    samples: tuple[SampleView, ...]


LOOKED_AT = 3000  # samples from which those to show are chosen


def data(folder: Path, count: int) -> Data | None:
    """A contact sheet of the training set, of every kind in turn."""
    file = next((path for name in ("cor.json", "data.json") if (path := folder / name).is_file()), None)
    if file is None:
        return None
    chosen = list(islice(_varied(islice(read_samples(file), LOOKED_AT)), max(0, count)))
    record = _read_record(folder / "generate.json") if (folder / "generate.json").is_file() else {}
    settings = record.get("settings") or {}
    counts = [
        (name, f"{settings[name]:,}") for name in ("scenes", "views", "seed") if isinstance(settings.get(name), int)
    ]
    return Data(file.name, counts, tuple(_sample(folder, sample) for sample in chosen))


def _varied(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Samples of every kind and relation in turn, each picture once as long as there are others."""
    piles: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        kind = tuple(str(sample.meta.get(name)) for name in ("task", "kind", "relation"))
        if sample.image is not None:
            piles.setdefault(kind, []).append(sample)
    seen: set[str | None] = set()
    while any(piles.values()):
        for pile in piles.values():
            if pile:
                place = next((index for index, sample in enumerate(pile) if sample.image not in seen), 0)
                sample = pile.pop(place)
                seen.add(sample.image)
                yield sample


def _sample(folder: Path, sample: Sample) -> SampleView:
    files = Images(folder)
    image = open_image(files.path(str(sample.image)))
    mask_file = files.find(str(sample.meta.get("mask", "")))
    region: Outline = outline(open_region(mask_file)) if mask_file is not None else ()
    said = [turn.text for turn in sample.conversations if turn.speaker == "gpt"]
    asked = [turn.text for turn in sample.conversations if turn.speaker == "human"]
    response = parse(said[0] if said else "", image.size)
    named = [str(value) for name in ("kind", "relation") if (value := sample.meta.get(name))]
    kind = " \u00b7 ".join(dict.fromkeys(named))  # "between" is both
    answer = answer_view(response, marks(image.size, region, response.points))
    return SampleView(sample.id, kind, bare_instruction(asked[0]) if asked else "", data_uri(image, 300), answer)


# --- how it was made -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One step of the run: the file that tells of it, its command where known, its seed and time, and all of it."""

    name: str
    command: str
    facts: Sequence[tuple[str, str]]
    content: str


def records(folder: Path) -> tuple[RunRecord, ...]:
    """Every record of a step that the run's folder holds, in the order in which they are made."""
    patterns = ("run.json", "data/generate.json", "data/*.run.json", "bench/generate.json", "train/*/run.json",
                "answers/*.run.json")  # fmt: skip
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return tuple(_record(path.relative_to(folder).as_posix(), _read_record(path)) for path in paths)


def _read_record(path: Path) -> Mapping[str, Any]:
    found = read_json(path, "the record of a run")
    if not isinstance(found, dict):
        raise InputError(f"{path} is not the record of a run: it holds no JSON object")
    return found


def _record(name: str, found: Mapping[str, Any]) -> RunRecord:
    facts: list[tuple[str, str]] = []
    for part in (found, found.get("settings"), found.get("config")):
        if isinstance(part, dict) and not facts and part.get("seed") is not None:
            facts.append(("seed", str(part["seed"])))
    if isinstance(found.get("seconds"), int | float):
        facts.append(("seconds", f"{found['seconds']:,.0f}"))
    if isinstance(found.get("versions"), dict):
        facts.append(("versions", ", ".join(f"{key} {value}" for key, value in found["versions"].items())))
    return RunRecord(name, _command(found), facts, json.dumps(found, indent=2, ensure_ascii=False))


def _command(found: Mapping[str, Any]) -> str:
    arguments = found.get("arguments")
    if not isinstance(arguments, dict):
        return str(found.get("command", ""))
    flags = []
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        flags.append(
            flag if value is True else f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        )
    return " ".join([str(found.get("command", "")), *flags]).strip()
