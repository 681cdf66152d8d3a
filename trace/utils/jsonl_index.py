"""Look-up of single records in a JSONL file that may hold millions: caches of answers, reasoning written elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from .files import read_jsonl_offsets


def hash_key(*parts: object) -> bytes:
    """16 bytes that stand for these values; two different keys do not collide in practice."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class JsonlIndex:
    """The records of a JSONL file by `key(record, "FILE, line N")`; memory holds a digest and a position each.

    An absent file has no records. Of two records with one key the later counts, unless `twice(line, first line)` raises.
    InputError for broken lines except a partial last one. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        path: str | Path,
        key: Callable[[Mapping[str, Any], str], bytes],
        twice: Callable[[int, int], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self._offsets: dict[bytes, int] = {}
        self._file: IO[bytes] | None = None
        lines: dict[bytes, int] = {}
        for line, record, offset in read_jsonl_offsets(self.path, True) if self.path.exists() else ():
            digest = key(record, f"{self.path}, line {line}")
            if twice is not None and lines.setdefault(digest, line) != line:
                twice(line, lines[digest])
            self._offsets[digest] = offset

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, key: bytes) -> dict[str, Any] | None:
        """Read the record of this key from the file; None if there is none."""
        if (offset := self._offsets.get(key)) is None:
            return None
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        self._file.seek(offset)
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def add(self, key: bytes, offset: int) -> None:
        """Add a record that was just written at byte `offset`."""
        self._offsets[key] = offset

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> JsonlIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
