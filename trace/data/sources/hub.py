"""Data sets as folders: a repository of the Hugging Face Hub, its rows with pictures inside them, or a zip.

`download` fetches the files as they are (`wentao-yuan/robopoint-data`, `jink-ucla/TRACE`), resumes, skips what exists.
`read_hub` reads what `datasets.load_dataset` reads, Parquet folders and our own exports included: columns `id`, `image`
(a picture or a name), `conversations`, and everything else as `meta`. `unpack` unpacks a zip once.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...core.images import BROKEN_IMAGE, FORMATS
from ...utils.command import InputError, existing_file, install_hint, output_folder
from ...utils.files import escapes_folder, new_folder, read_json, replacing, sha256, write_json
from .sample_checks import Problem

MAX_BYTES = 32 << 30  # of an unpacked zip
MARK = ".unpacked.json"


def download(repository: str, folder: Path, revision: str | None, include: Sequence[str]) -> Path:
    """Fetch a data set's files; InputError says what is missing: the network, a login, the right name."""
    try:
        from huggingface_hub import HfApi, errors, snapshot_download
    except ModuleNotFoundError:
        raise InputError(f"downloading needs huggingface_hub; install it with: {install_hint('train')}") from None
    # Its bases: OSError, and the error of whichever HTTP library this version of huggingface_hub is built on.
    network = cast("tuple[type[Exception], ...]", (errors.LocalEntryNotFoundError, *errors.HfHubHTTPError.__bases__))
    output_folder(folder)
    try:
        # Asked for by itself: snapshot_download alone is content with any folder that has files when the Hub says no.
        commit = HfApi().dataset_info(repository, revision=revision).sha
        snapshot_download(
            repository, repo_type="dataset", revision=commit, local_dir=folder, allow_patterns=list(include) or None
        )
    except errors.GatedRepoError:
        reason = "asks for a login: accept its terms on its page, then run `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision!r}"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        reason = "is no data set on the Hub that you may read; OWNER/NAME was expected"
    except network as error:
        reason = f"could not be downloaded: {' '.join(str(error).split())[:200]} (the same command continues)"
    else:
        return folder
    raise InputError(f"{repository} {reason}")


def read_hub(path: str, image_folder: Path) -> Iterator[tuple[str, dict[str, Any] | Problem]]:
    """(where, record) of every row of the split `train`, streamed; its picture is written to `image_folder` once."""
    try:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ModuleNotFoundError:
        raise InputError(f"reading the Hub needs datasets; install it with: {install_hint('train')}") from None
    try:
        rows = load_dataset(path, split="train", streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(f"{path} cannot be loaded as a data set: {' '.join(str(error).split())[:300]}") from None
    columns = rows.features or {}
    missing = [name for name in ("id", "conversations") if name not in columns]
    if columns and missing:
        raise InputError(f"{path} has no column {' and no '.join(missing)}; it has {', '.join(columns)}")
    if isinstance(columns.get("image"), Image):
        rows = rows.cast_column("image", Image(decode=False))  # the bytes as they are: nothing is compressed twice
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", _record(row, number, image_folder)


def _record(row: Mapping[str, Any], number: int, image_folder: Path) -> dict[str, Any] | Problem:
    record = {key: value for key, value in row.items() if value is not None}
    identifier = str(row.get("id", f"#{number}"))
    if isinstance(record.get("meta"), str):  # our exports write it as JSON: a column has one type, meta has none
        try:
            record["meta"] = json.loads(record["meta"])
        except ValueError:
            return Problem(identifier, "image broken", "its meta is no JSON")
    picture = record.get("image")
    if isinstance(picture, Mapping):
        content = picture.get("bytes")
        name = str(picture.get("path")) if content is None else _store(content, image_folder)
        if name is None:
            return Problem(identifier, "image broken", "its picture cannot be identified")
        record["image"] = name
    return record


def _store(content: bytes, folder: Path) -> str | None:
    """Write a picture under the hash of its bytes, so that samples of one picture share a file; None: no picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format or "", f".{(image.format or 'img').lower()}")
    except BROKEN_IMAGE:
        return None
    name = f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    if not (folder / name).exists():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return name


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a zip, whole or not at all; a folder that holds this very archive is left as it is.

    Raises:
        InputError: the archive is broken, encrypted, larger than MAX_BYTES or names files outside the folder, or the
            folder holds something else.
    """
    path = existing_file(path, "the archive")
    mark = {"archive": path.name, "sha256": sha256(path)}
    if folder.exists():
        if (folder / MARK).is_file() and read_json(folder / MARK) == mark:
            return folder
        raise InputError(f"{path} would be unpacked to {folder}, which holds something else; remove it or use another")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if (total := sum(entry.file_size for entry in entries)) > MAX_BYTES:
                raise InputError(f"{path} would unpack to {total:,} bytes, more than {MAX_BYTES:,}; unpack it yourself")
            for entry in entries:
                if escapes_folder(entry.filename) or "\\" in entry.orig_filename:
                    raise InputError(f"{path}: the entry {entry.orig_filename!r} would leave the folder")
            with new_folder(folder, needed=total) as temporary:
                archive.extractall(temporary)
                write_json(temporary / MARK, mark)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(f"{path} is no zip that can be read: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be unpacked: {error.strerror or error}") from None
    return folder
