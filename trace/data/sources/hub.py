"""Data sets on the Hugging Face Hub: a whole repository as a folder, or rows with pictures inside them.

`download` takes the files as they are (`wentao-yuan/robopoint-data`, `jink-ucla/TRACE`), resumes, skips what is there.
`read_hub` reads what `datasets.load_dataset` understands, Parquet folders on disk and our own exports included: columns
`id`, `image` (a picture or a name), `conversations`, and whatever else there is as `meta`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...core.images import BROKEN_IMAGE
from ...utils.command import InputError, install_hint, output_folder
from ...utils.files import replacing
from .problems import BROKEN, Problem

SPLIT = "train"


def download(repository: str, folder: Path, revision: str | None, include: Sequence[str]) -> Path:
    """A data set's files in `folder`; InputError says what is missing: the network, a login, the right name."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ModuleNotFoundError:
        raise InputError(f"downloading needs huggingface_hub; install it with: {install_hint('train')}") from None
    # Its bases: OSError, and the error of whichever HTTP library this version of huggingface_hub is built on.
    network = cast("tuple[type[Exception], ...]", (LocalEntryNotFoundError, *HfHubHTTPError.__bases__))
    output_folder(folder)
    try:
        # Asked for by itself: snapshot_download alone is content with any folder that has files when the Hub says no.
        commit = HfApi().dataset_info(repository, revision=revision).sha
        snapshot_download(
            repository, repo_type="dataset", revision=commit, local_dir=folder, allow_patterns=list(include) or None
        )
    except GatedRepoError:
        raise InputError(
            f"{repository} asks for a login: accept its terms on its page, then run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{repository} has no revision {revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"there is no data set {repository!r} on the Hub that you may read; OWNER/NAME was expected"
        ) from None
    except network as error:
        raise InputError(
            f"{repository} could not be downloaded: {' '.join(str(error).split())[:200]} "
            "(the same command continues where it stopped)"
        ) from None
    return folder


def read_hub(path: str, image_folder: Path) -> Iterator[tuple[str, dict[str, Any] | Problem]]:
    """(where, record) of every row of the split `train`, streamed; its picture is written to `image_folder` once."""
    try:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ModuleNotFoundError:
        raise InputError(f"reading the Hub needs datasets; install it with: {install_hint('train')}") from None
    try:
        rows = load_dataset(path, split=SPLIT, streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(f"{path} cannot be loaded as a data set: {' '.join(str(error).split())[:300]}") from None
    columns = rows.features or {}
    missing = [name for name in ("id", "conversations") if name not in columns]
    if columns and missing:
        raise InputError(f"{path} has no column {' and no '.join(missing)}; it has {', '.join(columns)}")
    if isinstance(columns.get("image"), Image):
        rows = rows.cast_column("image", Image(decode=False))  # the bytes as they are: nothing is compressed twice
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        yield where, _record(row, number, image_folder)


def _record(row: Mapping[str, Any], number: int, image_folder: Path) -> dict[str, Any] | Problem:
    record = {key: value for key, value in row.items() if value is not None}
    if isinstance(record.get("meta"), str):  # our exports write it as JSON: a column has one type, meta has none
        try:
            record["meta"] = json.loads(record["meta"])
        except ValueError:
            return Problem(str(row.get("id", f"#{number}")), BROKEN, "its meta is no JSON")
    picture = record.get("image")
    if isinstance(picture, Mapping):
        content, name = picture.get("bytes"), picture.get("path")
        if content is None:
            record["image"] = str(name)
        else:
            stored = _store(content, image_folder)
            if stored is None:
                return Problem(str(row.get("id", f"#{number}")), BROKEN, "its picture cannot be identified")
            record["image"] = stored
    return record


def _store(content: bytes, folder: Path) -> str | None:
    """Write the picture under the hash of its bytes, so that samples of one picture share a file; None: no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format or "", f".{(image.format or 'img').lower()}")
    except BROKEN_IMAGE:
        return None
    name = f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    path = folder / name
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return name
