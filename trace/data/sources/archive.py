"""A zip of samples, unpacked safely: nothing leaves the folder, no links, no bombs, whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from ...utils.command import InputError, existing_file
from ...utils.files import escapes_folder, read_json, sha256, write_json

MAX_FILES = 200_000
MAX_BYTES = 32 << 30
MAX_RATIO = 100  # of the unpacked size to the archive's; images hardly shrink, texts by a tenth to a thirtieth
FREE_BYTES = 64 << 20  # a small archive of texts may unpack to this much whatever its ratio
MARK = ".unpacked.json"


def unpack(path: Path, folder: Path) -> Path:
    """Unpack `path` to `folder`, which is left as it is when it holds this very archive already.

    Raises:
        InputError: the archive is broken or dangerous (a name that leaves the folder, a link, a bomb, encryption), or
            the folder holds something else.
    """
    path = existing_file(path, "the archive")
    mark = {"archive": path.name, "sha256": sha256(path)}
    if folder.exists():
        if (folder / MARK).is_file() and read_json(folder / MARK) == mark:
            return folder
        raise InputError(
            f"{path} would be unpacked to {folder}, which exists and is not this archive; remove it or use another"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _safe_entries(archive, path)
            temporary.mkdir(parents=True)
            for entry in entries:
                _extract(archive, entry, temporary)
        write_json(temporary / MARK, mark)
        os.replace(temporary, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is no zip that can be read: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be unpacked to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _safe_entries(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The files of the archive, once all of them are harmless. zipfile gives no more bytes than an entry declares."""
    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise InputError(f"{path} holds {len(entries):,} files; more than {MAX_FILES:,} are not unpacked")
    total = sum(entry.file_size for entry in entries)
    allowed = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))
    if total > allowed:
        raise InputError(
            f"{path} would unpack to {total:,} bytes, more than the {allowed:,} that are plausible: a bomb?"
        )
    seen: set[str] = set()
    for entry in entries:
        mode = entry.external_attr >> 16
        if escapes_folder(entry.filename) or "\\" in entry.orig_filename:
            raise InputError(f"{path}: the entry {entry.orig_filename!r} would leave the folder; nothing was unpacked")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{path}: the entry {entry.filename!r} is a link or a device; nothing was unpacked")
        if entry.flag_bits & 1:
            raise InputError(
                f"{path}: the entry {entry.filename!r} is encrypted; unpack it yourself and name the folder"
            )
        key = entry.filename.rstrip("/").casefold()
        if key in seen:
            raise InputError(f"{path}: two entries are called {entry.filename!r}; nothing was unpacked")
        seen.add(key)
    return [entry for entry in entries if not entry.is_dir()]


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*entry.filename.split("/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, open(target, "xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
