"""Reading and writing files: JSON and JSONL that stream, name the line of a mistake and survive a kill.

Reading never needs a complete list in memory, writing never leaves half a file or folder under its final name, and a
JSONL file that grows line by line keeps its complete lines only. A user's mistake is an `InputError`.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from .command import InputError, existing_file

if sys.platform != "win32":
    import fcntl

CHUNK = 1 << 18  # characters or bytes read at a time


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path: str | Path, what: str = "the file") -> Any:
    """Read a JSON file; `what` describes it in the InputError for an absent or broken file."""
    path = existing_file(path, what)
    with _input_errors(path):
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}," if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(f"{path}{line} is broken JSON: {_reason(error)}") from None


def read_jsonl(path: str | Path, skip_partial_line: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of every line that is not blank; InputError names the line.

    `skip_partial_line` leaves out a last line that was cut off by a crash, instead of raising.
    """
    for number, record, _ in read_jsonl_offsets(path, skip_partial_line):
        yield number, record


def read_jsonl_offsets(path: str | Path, skip_partial_line: bool) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yield what `read_jsonl` yields, and the byte at which each line begins."""
    path, end = existing_file(path, "the file"), 0
    with _input_errors(path), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                line, start = line[3:], 3
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
                    f"{where} is broken JSON at the end of the file, perhaps cut off by a crash. Run the command that "
                    "wrote it again"
                ) from None
            if not isinstance(record, dict):
                raise InputError(f"{where} must be a JSON object, not {json_type(record)}")
            yield number, record, start


def read_json_list(path: str | Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (line number from 1, index from 0, object) of a JSON list of objects, with one chunk of the file in memory.

    InputError names the line and the index of a mistake, after the objects before it were yielded.
    """
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, encoding="utf-8-sig") as file:
        yield from _scan_list(file, path)


# (what was read last, the next character) -> what was read then
_LIST_SYNTAX = {("start", "["): "first", ("first", "]"): "end", ("between", "]"): "end", ("between", ","): "next"}
_EXPECTED = {
    "start": "a list that begins with [", "first": "a JSON object or ]", "next": "a JSON object",
    "between": "a comma or ]", "end": "nothing behind the list",
}  # fmt: skip
_BLANKS = re.compile(r"[ \t\r\n]*+")


def _scan_list(file: IO[str], path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    # A record begins with a brace and ends with its own, so one that is cut by the end of a chunk never decodes. It is
    # decoded again with more text, each time twice as much, which keeps the work linear for long records.
    decoder = json.JSONDecoder()
    buffer, position, line, index, wanted = "", 0, 1, 0, CHUNK
    state = "start"
    while True:
        blanks = _BLANKS.match(buffer, position)
        assert blanks is not None  # it may match nothing
        position, line = blanks.end(), line + blanks[0].count("\n")
        character = buffer[position : position + 1]
        if not character:
            buffer, position = file.read(CHUNK), 0
            if buffer:
                continue
            if state == "end":
                return
            raise InputError(f"{path}, line {line}: the list is not finished after {index} records")
        if character == "{" and state in ("first", "next"):
            try:
                record, end = decoder.raw_decode(buffer, position)
            except (ValueError, RecursionError) as error:
                # A cut shows at the very end of the text (16 characters hold the longest half literal,
                # "\\ud83d\\ude0"), except in a string, whose error points at its beginning.
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
                )
                more = file.read(wanted) if cut else ""
                if not more:
                    message = _reason(error)
                    if isinstance(error, json.JSONDecodeError):  # such files are often one line: no column, but text
                        line += buffer.count("\n", position, error.pos)
                        message = f"{error.msg} near {buffer[max(position, error.pos - 20) : error.pos + 10]!r}"
                    raise InputError(f"{path}, line {line}, record {index} is broken JSON: {message}") from None
                buffer, position, wanted = buffer[position:] + more, 0, wanted * 2
                continue
            yield line, index, record
            line += buffer.count("\n", position, end)
            position, index, wanted, state = end, index + 1, CHUNK, "between"
        elif (state, character) in _LIST_SYNTAX:
            state, position = _LIST_SYNTAX[state, character], position + 1
        else:
            raise InputError(f"{path}, line {line}: expected {_EXPECTED[state]}, found {character!r} (record {index})")


def first_character(path: str | Path) -> str:
    """Return a text file's first character that is not blank, which tells a JSON list from JSONL; "" without one."""
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, encoding="utf-8-sig") as file:
        while chunk := file.read(4096):
            if stripped := chunk.lstrip():
                return stripped[0]
    return ""


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    path = existing_file(path, "the file")
    with _input_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


def temporary_beside(path: Path, suffix: str) -> Path:
    """Return the name of a temporary file of this process beside `path`.

    If the process is killed, the next one of this machine that asks for such a name in the folder removes the file.
    """
    _remove_temporary(path.parent)
    return path.with_name(f".{path.stem}.{platform.node()}.{os.getpid()}.tmp{suffix}")


@functools.cache  # once a process and folder, which may hold a picture for each of a million samples
def _remove_temporary(folder: Path) -> None:
    pattern = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)\.tmp(\.[^.]+)?")
    for name in os.listdir(folder) if folder.is_dir() else ():
        if (match := pattern.fullmatch(name)) and _is_dead(match[1]):
            with suppress(OSError):
                (folder / name).unlink()


def _is_dead(pid: str) -> bool:
    """Whether a process of this machine has ended; False on systems that do not say."""
    return pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists()


@contextmanager
def replacing(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` (with its suffix) to write to; it becomes `path` when the block succeeds.

    Missing folders are created. After an error the temporary file is removed and `path` is unchanged. InputError if it
    cannot be written. Without `sync` a crash of the machine, not of the process, may leave an incomplete file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path, path.suffix)
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:  # on disk before the name points to it
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(error.filename) != temporary:
            raise  # from the block, about another file
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """InputError unless `path` is absent or an empty folder."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} is not empty. Choose another folder")


@contextmanager
def new_folder(path: Path, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path` when the block succeeds and is removed when it does not.

    Its files can be read by whom the user's umask allows, whatever wrote them (safetensors lets the owner alone read).
    What a killed process of this machine left of the same folder is removed first. InputError if the disk has fewer
    than `needed` bytes.
    """
    refuse_existing(path)
    own = f".{path.name}.{platform.node()}."
    unfinished = path.with_name(f"{own}{os.getpid()}-{uuid.uuid4().hex[:6]}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(own)}*.unfinished"):
            pid = left.name.removeprefix(own).partition("-")[0]
            if _is_dead(pid):
                shutil.rmtree(left, ignore_errors=True)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            size, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
            raise InputError(f"{path} needs {needed / size:.1f} {unit}, but {free / size:.1f} {unit} are free")
        unfinished.mkdir()
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        yield unfinished
        os.umask(umask := os.umask(0))
        for file in unfinished.rglob("*"):
            file.chmod(file.stat().st_mode | (0o666 & ~umask))
        if path.is_dir():
            path.rmdir()
        os.rename(unfinished, path)
    except OSError as error:  # a full disk, or another process wrote `path` meanwhile
        raise InputError(f"{path} was not written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON by `replacing`. ValueError for NaN and infinity, which JSON does not have."""
    with replacing(path) as temporary:
        temporary.write_bytes(_encode(value, indent=2) + b"\n")


def write_json_list(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list by `replacing`, one record a line; the records may be a stream."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        separator = b"[\n"
        for record in records:
            file.write(separator + _encode_record(record))
            separator = b",\n"
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one record a line by `replacing`. For a file that grows over hours use `JsonlWriter`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for record in records:
            file.write(_encode_record(record) + b"\n")


class JsonlWriter:
    """Appends records to a JSONL file, one complete line at a time, also after a crash of an earlier writer.

    On opening, an incomplete last line is cut off. A line is handed to the system before `write` returns, so that a
    kill loses no line. One writer at a time: a second one gets an InputError. Use it in a `with` block, or call `close`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise _not_written(self.path, error) from None
        try:
            if _lock(self._file, "flock", wait=False) is False:
                raise InputError(f"{self.path} is being written by another process. Wait for it or stop it")
            self._cut_incomplete_line()
        except BaseException:
            self._file.close()
            raise

    def write(self, record: Mapping[str, Any]) -> int:
        """Append one line and return the byte at which it begins.

        ValueError for NaN and infinity; InputError (a full disk) leaves the file as it was.
        """
        line = _encode(record) + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            _write_all(self._file, line)
        except BaseException as error:
            os.ftruncate(self._file.fileno(), size)
            if isinstance(error, OSError):
                raise _not_written(self.path, error) from None
            raise
        return size

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_incomplete_line(self) -> None:
        start = size = os.fstat(self._file.fileno()).st_size
        tail = b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - CHUNK)
            self._file.seek(start)
            tail = self._file.read(size - start)
        line = tail.rfind(b"\n") + 1
        start, tail = start + line, tail[line:].strip()
        if start == size:
            return
        if tail and not tail.startswith((b"{", b"\0")):  # a crash of the machine can leave zeros
            # Nothing that this class wrote: refuse rather than cut a file that was named by mistake.
            raise InputError(f"{self.path} does not end like a JSONL file. Give another name or remove it")
        try:
            json.loads(tail)
        except (ValueError, RecursionError):
            os.ftruncate(self._file.fileno(), start)
        else:  # only the newline is missing
            _write_all(self._file, b"\n")


class JsonlLog:
    """A JSONL file that is created with its first record; that of an earlier run is removed. Use it in a `with` block."""

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
    """Hold a lock file, which the system releases when its holder dies; yields whether it is held.

    On a file system without locks it is not, and every process continues. Children of this process do not hold it.
    `busy` is the InputError if another process holds it; None waits instead.
    """
    try:
        file = open(path, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _not_written(path, error) from None
    with file:
        held = _lock(file, "lockf", wait=busy is None)
        if held is False:
            raise InputError(busy)
        yield held is True


def _lock(file: IO[Any], kind: Literal["flock", "lockf"], wait: bool) -> bool | None:
    """Whether the lock was taken; None on a system without locks."""
    if sys.platform == "win32":
        return None
    try:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


# --- helpers ----------------------------------------------------------------------------------------------------------


def escapes_folder(name: str) -> bool:
    """Whether a name from a data file points outside the folder it is relative to (or may, on another system)."""
    pure = PurePosixPath(name.replace("\\", "/"))
    outside = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name
    return outside or re.match("[A-Za-z]:", pure.parts[0]) is not None


def json_type(value: Any) -> str:
    """Return the type of a JSON value in the words of an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may take a part only
        view = view[file.write(view) :]


def _encode(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which a remote model may write
        return re.sub("[\ud800-\udfff]", "\ufffd", text).encode("utf-8")


def _encode_record(record: Mapping[str, Any]) -> bytes:
    try:
        return _encode(record)
    except (ValueError, RecursionError) as error:
        name = record.get("id", record.get("question_id"))
        raise InputError(f"record {name!r} cannot be written as JSON: {_reason(error)}") from None


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
