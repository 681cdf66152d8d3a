"""A mix as a Hugging Face data set: a folder of Parquet shards with a card, which `datasets.load_dataset` reads.

Images are inside if every source's licence permits it; otherwise the column holds their names. A killed export
continues with the shards that are missing, and the folder appears under its name when all of them exist.
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

from tqdm import tqdm

from ..core.images import Images
from ..core.records import Sample, read_samples
from ..utils.command import InputError, install_hint
from ..utils.files import escapes_folder, read_json, replacing, write_json
from .cards import UNKNOWN, card_text
from .sources.sample_checks import part_of

WITH_IMAGES, WITHOUT_IMAGES = 500, 20_000  # samples of a shard, which is held in memory
ROW_GROUP = 100  # samples with images that a reader has to hold
MARK = "export.json"


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
        if escapes_folder(sample.image):
            raise InputError(f"sample {sample.id}: the image name {sample.image!r} leaves the image folder")
        path = Images(embed).path(sample.image)
        try:
            image = {"bytes": path.read_bytes(), "path": sample.image}
        except OSError as error:
            raise InputError(f"sample {sample.id}: the image {path} cannot be read: {error.strerror}") from None
    meta = dict(sample.meta)
    source = meta.pop("source", None)
    record = {**sample.as_json(), "image": image, "source": source, "part": part_of(sample)}
    return {**record, "meta": json.dumps(meta, ensure_ascii=False)}
