"""JSON files that hold one object of long lists (COCO's and LVIS's annotations), read with one chunk of them in memory.

`files.read_json_list` reads lists of records; here the lists are members of an object, and lie gigabytes apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...utils.command import InputError, existing_file

_CHUNK = 1 << 20  # characters
_BLANKS = re.compile(r"[ \t\r\n]*+")


def read_members(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a JSON object in the file's order; a member that is a list gives one pair for each of its items.

    InputError when the file is no JSON object, or is broken; pairs before the mistake have been given by then.
    """
    path = existing_file(path, "the annotation file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _Reader(file, path).members()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


class _Reader:
    def __init__(self, file: IO[str], path: Path) -> None:
        self._file, self._path = file, path
        self._buffer, self._position, self._before = "", 0, 0
        self._decoder = json.JSONDecoder()

    def members(self) -> Iterator[tuple[str, Any]]:
        self._expect("{", "a JSON object")
        if self._next() == "}":
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._broken("a key in quotes was expected")
            self._expect(":", "a colon")
            if self._next() == "[":
                yield from ((key, item) for item in self._items())
            else:
                yield key, self._value()
            if self._next() == "}":
                return
            self._expect(",", "a comma or }")

    def _items(self) -> Iterator[Any]:
        self._expect("[", "a list")
        if self._next() == "]":
            self._position += 1
            return
        while True:
            yield self._value()
            if self._next() == "]":
                self._position += 1
                return
            self._expect(",", "a comma or ]")

    def _value(self) -> Any:
        self._next()
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:
                if not (self._may_be_cut(error) and self._more(wanted)):
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                    raise self._broken(reason) from None
                wanted *= 2  # a long value is tried again with twice as much text each time: linear work
                continue
            # A number that ends with the buffer may go on behind it.
            if end == len(self._buffer) and not isinstance(value, dict | list | str) and self._more(_CHUNK):
                continue
            self._position = end
            return value

    def _may_be_cut(self, error: Exception) -> bool:
        # A cut shows at the very end of the text (16 characters hold the longest half literal), or as an open string.
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - 16
        )

    def _next(self) -> str:
        """The next character that is not blank, "" at the end of the file; it stays unread."""
        while True:
            match = _BLANKS.match(self._buffer, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._buffer) or not self._more(_CHUNK):
                return self._buffer[self._position : self._position + 1]

    def _expect(self, character: str, what: str) -> None:
        if self._next() != character:
            raise self._broken(f"{what} was expected")
        self._position += 1

    def _more(self, size: int) -> bool:
        text = self._file.read(size)
        self._before += self._position
        self._buffer, self._position = self._buffer[self._position :] + text, 0
        return bool(text)

    def _broken(self, reason: str) -> InputError:
        near = self._buffer[self._position : self._position + 30]
        place = f"character {self._before + self._position}"
        return InputError(
            f"{self._path}, {place} is broken JSON: {reason}, found {near!r}" + ("" if near else " (end)")
        )
