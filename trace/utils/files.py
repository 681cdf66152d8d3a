"""How this project touches files: JSON and JSONL that stream, name the line of a mistake and survive a kill.

Reading never needs a whole list in memory, writing never leaves half a file under its final name, and a JSONL file that
grows line by line loses no whole line and keeps no half one. A user's mistake is an `InputError`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

from .command import InputError, existing_file

if sys.platform != "win32":
    import fcntl

_CHUNK = 1 << 18  # characters or bytes read at a time


def read_json_list(path: str | Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number from 1, index from 0, object) of a JSON list of objects, with one chunk of the file in memory.

    InputError names the line and the index of a mistake. Objects before it have been given by then.
    """
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, encoding="utf-8-sig") as file:
        yield from _scan_list(file, path)


def read_jsonl(path: str | Path, skip_partial_line: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank; InputError names the line.

    A last line that was cut off by a crash is an error too, unless `skip_partial_line` is set: then it is left out.
    """
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if line.endswith(b"\n"):
                    raise InputError(f"{where} is broken JSON: {_reason(error)}") from None
                if skip_partial_line:
                    return
                raise InputError(
                    f"{where} is broken JSON at the end of the file, cut off by a crash perhaps; "
                    "run the command that wrote it again"
                ) from None
            if not isinstance(record, dict):
                raise InputError(f"{where} must be a JSON object, not {json_type(record)}")
            yield number, record


def read_json(path: str | Path, what: str = "the file") -> Any:
    """The content of a JSON file; InputError when it is absent (`what` says what it is) or broken."""
    path = existing_file(path, what)
    with _input_errors(path):
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}," if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(f"{path}{line} is broken JSON: {_reason(error)}") from None


def first_character(path: str | Path) -> str:
    """The first character of a text file that is not blank, by which a list is told from JSONL; "" when all are."""
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, encoding="utf-8-sig") as file:
        while chunk := file.read(4096):
            if stripped := chunk.lstrip():
                return stripped[0]
    return ""


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` (with its suffix) to write to; moved to `path` when the block ends well.

    Missing folders are made. After an error the temporary file is removed and `path` is what it was. InputError when
    it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        yield temporary
        with open(temporary, "rb") as file:  # on disk before the name points to it
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) != temporary:
            raise  # the block's own business, another file
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """InputError unless `path` is free: absent, or an empty folder."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} is not empty; choose another folder for the model")


@contextmanager
def new_folder(path: Path, needed: int = 0) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well and vanishes when it does not.

    Args:
        needed: bytes that will be written; InputError when the disk has fewer.
    """
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise InputError(f"{path} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
        own = f"{platform.node()}.{os.getpid()}-{uuid.uuid4().hex[:6]}"
        unfinished = path.parent / f".{path.name}.{own}.unfinished"
        unfinished.mkdir()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    try:
        yield unfinished
        if path.is_dir():
            path.rmdir()
        os.rename(unfinished, path)
    except OSError as error:  # a full disk, or somebody else wrote `path` meanwhile
        raise InputError(f"{path} was not written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what a killed process of this machine left of the same folder."""
    mine = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(mine)}*.unfinished"):
        pid = left.name.removeprefix(mine).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON, whole or not at all. ValueError for NaN and infinity, which JSON does not have."""
    with replacing(path) as temporary:
        temporary.write_bytes(_encode(value, indent=2) + b"\n")


def write_json_list(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list, one record a line, whole or not at all; the records may be a stream."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        separator = b"[\n"
        for record in records:
            try:
                line = _encode(record)
            except ValueError as error:
                raise InputError(f"record {record.get('id')!r} cannot be written as JSON: {error}") from None
            file.write(separator + line)
            separator = b",\n"
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one record a line, whole or not at all. A file that grows over hours is `JsonlWriter`'s."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for record in records:
            file.write(_encode(record) + b"\n")


class JsonlWriter:
    """Appends records to a JSONL file, one whole line at a time, also after a crash of an earlier writer.

    On opening, an incomplete last line is cut off. A line is handed to the system before `write` returns, so that a
    kill loses no line that was written. One writer at a time: a second one gets an InputError. Use it in a `with`
    block, or call `close`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise _not_written(self.path, error) from None
        try:
            self._lock()
            self._cut_incomplete_line()
        except BaseException:
            self._file.close()
            raise

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line. ValueError for NaN and infinity; OSError (a full disk) leaves the file as it was."""
        self.append(record)

    def append(self, record: Mapping[str, Any]) -> int:
        """`write`, and the byte at which the line begins."""
        line = _encode(record) + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            _write_all(self._file, line)
        except BaseException:
            os.ftruncate(self._file.fileno(), size)
            raise
        return size

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is being written by another process; wait for it or stop it") from None
        except OSError:  # a file system without locks: go on as if alone
            pass

    def _cut_incomplete_line(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        start = _last_line_start(self._file, size)
        if start == size:
            return
        self._file.seek(start)
        tail = self._file.read(size - start).strip()
        if tail and not tail.startswith((b"{", b"\0")):  # a crash of the machine can leave zeros
            # Nothing that this class wrote: rather refuse than cut a file that was named by mistake.
            raise InputError(f"{self.path} does not end like a JSONL file; give another name or remove it")
        try:
            json.loads(tail)
        except ValueError:
            os.ftruncate(self._file.fileno(), start)
        else:  # only the newline is missing
            _write_all(self._file, b"\n")


class JsonlLog:
    """A JSONL file that is made when its first record comes; one of an earlier run is removed. For a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: JsonlWriter | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = JsonlWriter(self.path)
        self._writer.write(record)

    def __enter__(self) -> JsonlLog:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(self.path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[bool]:
    """Hold a lock file, which the system drops when its holder dies; whether it is held.

    Where a file system has no locks, False, and all go on as if alone. Children of this process do not hold it.

    Args:
        busy: what an InputError says when another process has it; None waits for that.
    """
    try:
        file = open(path, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _not_written(path, error) from None
    with file:
        held = sys.platform != "win32"
        try:
            if held:
                fcntl.lockf(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except (BlockingIOError, PermissionError):
            raise InputError(busy) from None
        except OSError:
            held = False
        yield held


# --- the small parts --------------------------------------------------------------------------------------------------


def _scan_list(file: IO[str], path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    # Every record begins with a brace and ends with its own, so one that is cut by the end of a chunk never decodes. It
    # is tried again with more text, each time twice as much, which keeps the work linear for long records.
    decoder = json.JSONDecoder()
    buffer, position, line, index, wanted = "", 0, 1, 0, _CHUNK
    state = "start"
    while True:
        blank_from, position = position, _skip_blanks(buffer, position)
        line += buffer.count("\n", blank_from, position)
        character = buffer[position : position + 1]
        if not character:
            buffer, position = file.read(_CHUNK), 0
            if buffer:
                continue
            if state == "end":
                return
            raise InputError(f"{path}, line {line}: the list is not finished after {index} records")
        if character == "{" and state in ("first", "next"):
            try:
                record, end = decoder.raw_decode(buffer, position)
            except (ValueError, RecursionError) as error:
                more = file.read(wanted) if _may_be_cut(error, buffer) else ""
                if not more:
                    raise InputError(_broken_record(path, line, index, error, buffer, position)) from None
                buffer, position, wanted = buffer[position:] + more, 0, wanted * 2
                continue
            yield line, index, record
            line += buffer.count("\n", position, end)
            position, index, wanted, state = end, index + 1, _CHUNK, "between"
        elif (state, character) in _LIST_SYNTAX:
            state, position = _LIST_SYNTAX[state, character], position + 1
        else:
            raise InputError(f"{path}, line {line}: expected {_EXPECTED[state]}, found {character!r} (record {index})")


# (what was read last, the next character) -> what was read then
_LIST_SYNTAX = {
    ("start", "["): "first",
    ("first", "]"): "end",
    ("between", "]"): "end",
    ("between", ","): "next",
}
_EXPECTED = {
    "start": "a list that begins with [",
    "first": "a JSON object or ]",
    "next": "a JSON object",
    "between": "a comma or ]",
    "end": "nothing behind the list",
}
_BLANKS = re.compile(r"[ \t\r\n]*+")


def _skip_blanks(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    return position if match is None else match.end()


def _may_be_cut(error: Exception, buffer: str) -> bool:
    # A cut shows up at the very end of the text (16 characters hold the longest half literal, "\\ud83d\\ude0"), except
    # in a string, whose error points at its beginning.
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
    )


def _broken_record(path: Path, line: int, index: int, error: Exception, buffer: str, position: int) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"{path}, line {line}, record {index} is broken JSON: {_reason(error)}"
    line += buffer.count("\n", position, error.pos)
    near = buffer[max(position, error.pos - 20) : error.pos + 10]  # such files are often one line: a column says little
    return f"{path}, line {line}, record {index} is broken JSON: {error.msg} near {near!r}"


def _last_line_start(file: IO[bytes], size: int) -> int:
    end = size
    while end > 0:
        start = max(0, end - _CHUNK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may take a part only
        view = view[file.write(view) :]


_SURROGATE = re.compile("[\ud800-\udfff]")


def _encode(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which a remote model may write
        return _SURROGATE.sub("\ufffd", text).encode("utf-8")


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written: {error.strerror or error}")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def json_type(value: Any) -> str:
    """What a JSON value is, in the words of an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_DRIVE = re.compile("[A-Za-z]:")


def escapes_folder(name: str) -> bool:
    """Whether a name from a data file points outside the folder that it is relative to (or may, on another system)."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        return True
    return _DRIVE.match(pure.parts[0]) is not None


def hash_key(*parts: object) -> bytes:
    """16 bytes that stand for these values; no two different keys share them in practice."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class JsonlIndex:
    """The records of a JSONL file by the key that `key(record, where)` gives; an absent file has none.

    Of two records with one key the later counts, unless `twice(line, first line)` raises. Broken lines are InputError,
    save for half a line at the end. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        path: str | Path,
        key: Callable[[Mapping[str, Any], str], bytes],
        twice: Callable[[int, int], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self._places: dict[bytes, int] = {}
        if self.path.exists():
            lines: dict[bytes, int] = {}
            starts = _line_starts(self.path)
            for (line, record), start in zip(read_jsonl(self.path, skip_partial_line=True), starts, strict=False):
                found = key(record, f"{self.path}, line {line}")
                if twice is not None and lines.setdefault(found, line) != line:
                    twice(line, lines[found])
                self._places[found] = start
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def get(self, key: bytes) -> dict[str, Any] | None:
        """The record of this key, read from the file; None when there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        self._file.seek(place)
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def add(self, key: bytes, place: int) -> None:
        """Remember a record that was just appended at byte `place`."""
        self._places[key] = place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> JsonlIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line_starts(path: Path) -> Iterator[int]:
    """Where each line that is not blank begins, in bytes: the lines that `read_jsonl` gives."""
    place = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            mark = 3 if number == 0 and line.startswith(b"\xef\xbb\xbf") else 0
            if line[mark:].strip():
                yield place + mark
            place += len(line)
