"""Records of a JSONL file by key: memory holds a digest and a position for each, never the records.

For files that are asked for single records in any order and may hold millions: the cache of a remote model's answers,
reasoning that was written elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .files import read_jsonl


def key_of(*parts: object) -> bytes:
    """16 bytes that stand for these values; no two different keys share them in practice."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Lookup:
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
            for (line, record), start in zip(read_jsonl(self.path, half_line_ends=True), starts, strict=False):
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

    def __enter__(self) -> Lookup:
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
