"""What a run left in its folder against what another one left: records, files, and files that are half written."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

MEASURED = re.compile("second|time|timing|started|finished|memory|remote|_ms$")  # keys that differ in every run
BROKEN = ValueError, OSError, SyntaxError, EOFError, zipfile.BadZipFile  # from reading a file that is not whole


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def content(path: Path) -> Any:
    """Return what a file holds without measured values; one of `BROKEN` if it is not whole."""

    def stable(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stable(item) for key, item in value.items() if not MEASURED.search(key)}
        return [stable(item) for item in value] if isinstance(value, list) else value

    data = path.read_bytes()
    if path.suffix == ".json":
        return stable(json.loads(data))
    if (
        path.suffix == ".jsonl"
    ):  # the last line of a log may be cut, which its readers expect; answers come in any order
        return sorted(json.dumps(stable(json.loads(line)), sort_keys=True) for line in data.split(b"\n")[:-1])
    if path.suffix in (".png", ".jpg"):
        with Image.open(io.BytesIO(data)) as image:
            return image.mode, image.size, image.tobytes()
    if path.suffix in (".npz", ".pt"):  # archives that hold the times of their files
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    return data


def half_written(folder: Path, reference: Path) -> list[str]:
    """Return files under a final name that cannot be read, or are the beginning of what they should be."""
    broken, whole = [], files(reference)
    for name, path in files(folder).items():
        if any(part.startswith(".") for part in Path(name).parts):
            continue
        try:
            content(path)
            data, should_be = path.read_bytes(), whole[name].read_bytes() if name in whole else b""
            broken += [name] * (path.suffix != ".jsonl" and len(data) < len(should_be) and should_be.startswith(data))
        except BROKEN:
            broken.append(name)
    return broken


def ids(folder: Path, records: str) -> Counter[str]:
    """Count the ids in the JSON and JSONL files that match the pattern `records`."""
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob(records)):
        for value in map(json.loads, path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]):
            for record in value if isinstance(value, list) else [value]:
                key = next(key for key in ("id", "question_id", "step") if key in record)
                counts[f"{key} {record[key]}"] += key != "step" or "loss" in record  # not the summary of a log
    return counts


def compare(folder: Path, reference: Path, records: str) -> dict[str, list[str]]:
    """Name lost and repeated records, and files that are missing, left over or different."""
    before, after, wanted, written = ids(reference, records), ids(folder, records), files(reference), files(folder)
    other = [name for name in wanted if name in written and wanted[name].read_bytes() != written[name].read_bytes()]
    drawn = [name for name in other if name.endswith("curves.png")]  # a picture of measured values
    times = [name for name in other if name in drawn or content(wanted[name]) == content(written[name])]
    return {"lost": [*(before - after).elements()], "twice": [*(after - before).elements()], "times only": times,
            "differ": [name for name in other if name not in times], "missing": sorted(wanted.keys() - written),
            "left over": sorted(written.keys() - wanted)}  # fmt: skip
