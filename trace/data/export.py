"""A mix as a Hugging Face data set: a folder of Parquet shards with a card, which `datasets.load_dataset` reads.

Images are inside when every source's licence permits it; otherwise the column holds their names. A killed export goes
on with the shards that are missing, and the folder appears under its name when all of them are there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.images import Images
from ..core.records import Sample, read_samples
from ..utils.command import InputError, install_hint
from ..utils.files import escapes_folder, read_json, replacing, write_json
from .cards import card_text
from .licences import UNKNOWN
from .sources.sample_checks import part_of

WITH_IMAGES, WITHOUT_IMAGES = 500, 20_000  # samples in a shard, which is held in memory
ROWS = 100  # in a row group with images: what a reader has to hold
MARK = "export.json"


def refuse_unknown(licences: Mapping[str, Sequence[str]]) -> None:
    """InputError names the sources without a licence."""
    unknown = [name for name, found in licences.items() if UNKNOWN in found]
    if unknown:
        raise InputError(
            f"an export needs the licence of every source, and that of {', '.join(unknown)} is unknown: read its page "
            "and write `licence: NAME` into the recipe (names are in docs/data.md)"
        )


def export(folder: Path, train: Path, held_out: Path | None, image_root: Path, facts: Mapping[str, Any]) -> None:
    """Write the data set to `folder`, which is replaced when an earlier export made it.

    Raises:
        InputError: an unknown licence, an image that cannot be read, or a folder that is something else.
    """
    if importlib.util.find_spec("datasets") is None:  # pyarrow comes with it
        raise InputError(f"--parquet needs datasets; install it with: {install_hint('train')}")
    refuse_unknown({one["name"]: one["licences"] for one in facts["sources"]})
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
    with replacing(partial / "README.md") as temporary:
        temporary.write_text(_readme(facts, folder.name, splits), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def _write_split(folder: Path, split: str, path: Path, total: int, embed: Path | None) -> None:
    from tqdm import tqdm

    size = WITHOUT_IMAGES if embed is None else WITH_IMAGES
    shards = max(1, -(-total // size))
    samples = read_samples(path)
    with tqdm(total=total, desc=f"export {split}", unit=" samples", mininterval=0.5) as bar:
        for number in range(shards):
            target = folder / f"{split}-{number:05d}-of-{shards:05d}.parquet"
            part = list(islice(samples, size))
            if not target.exists():  # one that exists is whole: it was renamed to this name at its end
                _write_shard(target, [_row(sample, embed) for sample in part], embed is not None)
            bar.update(len(part))


def _write_shard(target: Path, rows: list[dict[str, Any]], embed: bool) -> None:
    from datasets import Dataset, Features, Image, Value

    features = Features(
        {
            "id": Value("string"),
            "image": Image() if embed else Value("string"),
            "conversations": [{"from": Value("string"), "value": Value("string")}],
            "source": Value("string"),
            "part": Value("string"),
            "meta": Value("string"),  # JSON: a column has one type, what samples carry has none
        }
    )
    with replacing(target) as temporary:
        Dataset.from_list(rows, features=features).to_parquet(str(temporary), batch_size=ROWS)


def _row(sample: Sample, embed: Path | None) -> dict[str, Any]:
    meta = {key: value for key, value in sample.meta.items() if key != "source"}
    return {
        **sample.as_json(),
        "image": sample.image if embed is None else _picture(sample, embed),
        "source": sample.meta.get("source"),
        "part": part_of(sample),
        "meta": json.dumps(meta, ensure_ascii=False),
    }


def _picture(sample: Sample, root: Path) -> dict[str, Any] | None:
    if sample.image is None:
        return None
    if escapes_folder(sample.image):
        raise InputError(f"sample {sample.id}: the image name {sample.image!r} leaves the image folder")
    path = Images(root).path(sample.image)
    try:
        return {"bytes": path.read_bytes(), "path": sample.image}
    except OSError as error:
        raise InputError(f"sample {sample.id}: the image {path} cannot be read: {error.strerror}") from None


def _readme(facts: Mapping[str, Any], title: str, splits: Mapping[str, Path]) -> str:
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    head, rest = card_text(facts, title).split("\n---\n", 1)
    return f"{head}\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n{rest}"
