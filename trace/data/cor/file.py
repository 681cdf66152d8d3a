"""Reasoning that people or another tool wrote, as JSONL: `{"id": ..., "steps": {"reference": ..., ...}}` a line.

`steps` has the keys of the template (reference, target, subtype, output). Instead of it, `text` may hold the whole
reasoning under its headings; a final answer in it is left out, since the answer is always the sample's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...utils.command import InputError, existing_file
from ...utils.files import JsonlIndex, hash_key
from .checks import Rejected, as_steps, read_steps


class Written:
    """The reasoning of a JSONL file, by sample id. InputError for a line without an id, and for an id twice."""

    def __init__(self, path: Path) -> None:
        self.path = existing_file(path, "the reasoning file")
        self._lookup = JsonlIndex(path, self._key, self._twice)

    def steps(self, identifier: str) -> dict[str, str]:
        """The steps of a sample. Rejected when the file has none, or what it has is not four texts."""
        record = self._lookup.get(hash_key(identifier))
        if record is None:
            raise Rejected(f"{self.path} has no reasoning for it")
        if isinstance(record.get("steps"), Mapping):
            return as_steps(record["steps"])
        if isinstance(record.get("text"), str):
            return read_steps(record["text"])
        raise Rejected('its line has neither "steps" (an object) nor "text"')

    def close(self) -> None:
        self._lookup.close()

    def _key(self, record: Mapping[str, Any], where: str) -> bytes:
        identifier = record.get("id")
        if isinstance(identifier, bool) or not isinstance(identifier, (int, str)) or identifier == "":
            raise InputError(f'{where}: "id" must be the id of a sample')
        return hash_key(identifier)

    def _twice(self, line: int, first: int) -> None:
        raise InputError(f"{self.path}, line {line}: its id was on line {first} already; each may appear once")
