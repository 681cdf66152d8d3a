"""What a mix passes on: its card with counts, licences (licences.yaml) and hashes, and a Hugging Face data set.

The data set is a folder of Parquet shards, which `datasets.load_dataset` reads. Images are inside if every source's
licence permits it; otherwise the column holds their names. A killed export continues with the shards that are missing,
and the folder appears under its name when all of them exist.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from ..core.images import Images
from ..core.records import Sample, read_samples
from ..utils.command import InputError, install_hint
from ..utils.files import read_json, replacing, write_json
from .sources.sample_checks import part_of

WITH_IMAGES, WITHOUT_IMAGES = 500, 20_000  # samples of a shard, which is held in memory
ROW_GROUP = 100  # samples with images that a reader has to hold
MARK = "export.json"
UNKNOWN = "unknown"


class Licence(NamedTuple):
    title: str
    rank: int
    hub: str
    embed: bool
    terms: str


_TABLES = yaml.safe_load(Path(__file__).with_name("licences.yaml").read_text(encoding="utf-8"))
LICENCES = {name: Licence(**entry) for name, entry in _TABLES["licences"].items()}


def licences_of(kind: str, parts: Iterable[str], named: Iterable[str]) -> tuple[str, ...]:
    """The licences of a source: those the recipe names, else those of its kind and parts, else UNKNOWN.

    InputError for a name that is not in LICENCES.
    """
    names = tuple(named)
    for name in names:
        if name not in LICENCES and name != UNKNOWN:
            raise InputError(f"licence: unknown name {name!r}; known: {', '.join(LICENCES)}")
    known = _TABLES["sources"].get(kind, {})
    return names or tuple(sorted({known.get(part, known.get("all", UNKNOWN)) for part in parts})) or (UNKNOWN,)


def strictest(names: Iterable[str]) -> str:
    """The name of the strictest licence; UNKNOWN if there is an unknown one, which may be stricter than any."""
    ordered = sorted(set(names))
    if not ordered or UNKNOWN in ordered:
        return UNKNOWN
    return max(ordered, key=lambda name: LICENCES[name].rank)


def may_embed(names: Iterable[str]) -> bool:
    return all(name in LICENCES and LICENCES[name].embed for name in names)


def write_cards(out: Path, facts: Mapping[str, Any]) -> Path:
    """Write OUT.card.json and OUT.card.md; return the latter's path."""
    write_json(out.with_suffix(".card.json"), facts)
    card = out.with_suffix(".card.md")
    with replacing(card) as temporary:
        temporary.write_text(card_text(facts, out.stem), encoding="utf-8")
    return card


def card_text(facts: Mapping[str, Any], title: str, header: str = "") -> str:
    """Markdown with a Hugging Face header, to which the lines of `header` are added."""
    files, sources, licence = facts["files"], facts["sources"], facts["licence"]
    total, reasoned = sum(file["samples"] for file in files.values()), sum(one["with_reasoning"] for one in sources)
    hub = UNKNOWN if licence == UNKNOWN else LICENCES[licence].hub
    named = f"license_name: {licence}\nlicense_link: README.md\n" if hub == "other" else ""
    rows = [
        f"| {one['name']} | {one['kind']} | {one['taken']:,} | {one['candidates']:,} | {one['with_reasoning']:,} "
        f"| {', '.join(f'{part} {count:,}' for part, count in one['parts'].items())} | {', '.join(one['licences'])} |"
        for one in sources
    ]
    terms = [
        f"- `{name}`: {LICENCES[name].title}; {LICENCES[name].terms}."
        if name != UNKNOWN
        else "- `unknown`: the licence of a source was not named; the set must not be passed on until it is."
        for name in sorted({name for one in sources for name in one["licences"]})
    ]
    note = "" if facts["images_may_be_embedded"] else " Images are named, not included: not every source allows that."
    written = [f"| {name} | {file['samples']:,} | `{file['sha256']}` |" for name, file in files.items()]
    read = {one["file"]: one["sha256"] for source in sources for one in source["read_from"]}
    return f"""---
license: {hub}
{named}task_categories:
- visual-question-answering
language:
- en
{header}---

# {title}

{total:,} conversations over images, {reasoned:,} of them with a Chain of Reasoning before the points.
Made by {facts["made_by"]} from `{facts["recipe"]}` (seed {facts["seed"]}, {facts["cor_share"]:g} % of the \
reasoning kept, scale {facts["scale"]:g}).

| source | kind | taken | of | with reasoning | parts | licence |
| --- | --- | ---: | ---: | ---: | --- | --- |
{_lines(rows)}
## Terms

The set is under the strictest of its sources' licences: **{licence}**.{note}

{_lines(terms)}
## Files

| file | samples | SHA-256 |
| --- | ---: | --- |
{_lines(written)}
Read from:

| file | SHA-256 |
| --- | --- |
{_lines(f"| {name} | `{digest}` |" for name, digest in read.items())}"""


def _lines(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)


def refuse_unknown(licences: Mapping[str, Sequence[str]]) -> None:
    """InputError names the sources without a licence."""
    unknown = [source for source, names in licences.items() if UNKNOWN in names]
    if unknown:
        raise InputError(
            f"an export needs the licence of every source, and that of {', '.join(unknown)} is unknown: read its page "
            "and write `licence: NAME` into the recipe (names are in docs/data.md)"
        )


def export(folder: Path, train: Path, held_out: Path | None, image_root: Path, facts: Mapping[str, Any]) -> None:
    """Write the data set to `folder`, which is replaced if an earlier export made it.

    Raises:
        InputError: an unknown licence, an image that cannot be read, or a folder that is something else.
    """
    if importlib.util.find_spec("datasets") is None:  # pyarrow comes with it
        raise InputError(f"--parquet needs datasets; install it with: {install_hint('train')}")
    refuse_unknown({source["name"]: source["licences"] for source in facts["sources"]})
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no earlier export; name another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    mark = {"files": facts["files"], "image_root": str(image_root), "images": facts["images_may_be_embedded"]}
    if partial.exists() and (not (partial / MARK).is_file() or read_json(partial / MARK) != mark):
        shutil.rmtree(partial)
    (partial / "data").mkdir(parents=True, exist_ok=True)
    write_json(partial / MARK, mark)
    embed = image_root if mark["images"] else None
    splits = {"train": train} if held_out is None else {"train": train, "validation": held_out}
    for split, path in splits.items():
        _write_split(partial / "data", split, path, facts["files"][path.name]["samples"], embed)
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    header = f"configs:\n- config_name: default\n  data_files:\n{files}"
    with replacing(partial / "README.md") as temporary:
        temporary.write_text(card_text(facts, folder.name, header), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def _write_split(folder: Path, split: str, path: Path, total: int, embed: Path | None) -> None:
    from datasets import Dataset, Features, Image, Value

    features = Features(
        {
            "id": Value("string"),
            "image": Value("string") if embed is None else Image(),
            "conversations": [{"from": Value("string"), "value": Value("string")}],
            "source": Value("string"),
            "part": Value("string"),
            "meta": Value("string"),  # JSON: a column has one type, what samples carry has none
        }
    )
    size = WITHOUT_IMAGES if embed is None else WITH_IMAGES
    shards = max(1, -(-total // size))
    samples = read_samples(path)
    with tqdm(total=total, desc=f"export {split}", unit=" samples", mininterval=0.5) as bar:
        for number in range(shards):
            target = folder / f"{split}-{number:05d}-of-{shards:05d}.parquet"
            part = list(islice(samples, size))
            if not target.exists():  # one that exists is complete: it was renamed to this name at its end
                with replacing(target) as temporary:
                    rows = Dataset.from_list([_row(sample, embed) for sample in part], features=features)
                    rows.to_parquet(str(temporary), batch_size=ROW_GROUP)
            bar.update(len(part))


def _row(sample: Sample, embed: Path | None) -> dict[str, Any]:
    image: Any = sample.image
    if embed is not None and sample.image is not None:
        path = Images(embed).path(sample.image)
        try:
            image = {"bytes": path.read_bytes(), "path": sample.image}
        except OSError as error:
            raise InputError(f"sample {sample.id}: the image {path} cannot be read: {error.strerror}") from None
    meta = dict(sample.meta)
    source = meta.pop("source", None)
    record = {**sample.as_json(), "image": image, "source": source, "part": part_of(sample)}
    return {**record, "meta": json.dumps(meta, ensure_ascii=False)}
