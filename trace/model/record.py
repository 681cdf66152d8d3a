"""How a model was trained to answer, as it is recorded beside it: its convention of coordinates, and whether it reasons."""

from __future__ import annotations

from pathlib import Path

from ..core.conventions import reasons_by_name
from ..utils.command import InputError
from ..utils.files import read_json, write_json
from .presets import is_preset, model_folder, model_name

RECORD = "trace.json"


def write_record(folder: Path, coordinates: str, reasons: bool) -> None:
    write_json(folder / RECORD, {"coordinates": coordinates, "reasoning": reasons})


def reasons(path: str | Path) -> bool:
    """Whether a model is asked to reason where nobody says: as it was trained, if that is recorded or known by its name.

    Others are asked to reason. InputError: there is no such model, or its record is broken.
    """
    if is_preset(path):
        return True
    folder = model_folder(path, "the model")
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"{folder / RECORD} must hold a JSON object")
    return bool(record.get("reasoning", reasons_by_name(model_name(folder))))
