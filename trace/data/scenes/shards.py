"""What an unfinished data set has on disk: a line for every finished scene, in one file for each shard.

A scene is finished when its line is whole and every picture that the line names can be read. Lines are only ever
appended; a broken one is passed over, and of two lines of one scene the later counts. So a crash costs the scenes that
it broke and nothing else, and it does not matter how the scenes were shared among shards.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...utils.command import InputError

Scene = dict[str, Any]
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
FILE_KEYS = ("image", "instances", "depth", "mask")  # of a view and of a sample's meta: paths in the data set's folder


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count` (from 1) of a data set: every `count`-th scene."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n"; InputError for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise InputError(f"--shard must be i/n with i from 1 to n, such as 1/8, not {text!r}")
        return cls(int(index), int(count))

    def scenes(self, total: int) -> range:
        return range(self.index - 1, total, self.count)

    def file(self, out: Path) -> Path:
        """Where its lines go."""
        return out / ("parts.jsonl" if self.count == 1 else f"parts.{self.index}-of-{self.count}.jsonl")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def part_files(out: Path) -> list[Path]:
    return sorted(out.glob("parts*.jsonl"))


class Parts:
    """The finished scenes of a folder, read one at a time in the order of their numbers.

    What is kept in memory is 16 bytes a scene: the file and the place in it.
    """

    def __init__(self, out: Path, total: int) -> None:
        self.out = out
        self.paths = part_files(out)
        self._places: NDArray[np.int64] = np.full((total, 2), -1, np.int64)
        for index, path in enumerate(self.paths):
            with open(path, "rb") as file:
                offset = 0
                for line in file:
                    scene = _whole(line)
                    if scene is not None and scene["scene"] < total:
                        self._places[scene["scene"]] = index, offset
                    offset += len(line)

    def __len__(self) -> int:
        return int((self._places[:, 0] >= 0).sum())

    def __contains__(self, number: int) -> bool:
        return bool(self._places[number, 0] >= 0)

    def __iter__(self) -> Iterator[Scene]:
        for number in np.flatnonzero(self._places[:, 0] >= 0):
            yield self[int(number)]

    def __getitem__(self, number: int) -> Scene:
        index, offset = self._places[number]
        with open(self.paths[index], "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def unfinished(self, numbers: Sequence[int]) -> list[int]:
        """Those of the scenes that have no line, or a picture that is missing or broken."""
        return [number for number in numbers if number not in self or not pictures_whole(self.out, self[number])]


def pictures_whole(out: Path, scene: Scene) -> bool:
    """Whether every picture that a scene's line names can be read (its checksums are compared)."""
    names = {
        record[key]
        for record in [*scene["views"], *(sample["meta"] for sample in scene["samples"])]
        for key in FILE_KEYS
        if record.get(key)
    }
    return all(_readable(out / name) for name in names)


def _readable(path: Path) -> bool:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, struct.error):  # what PIL raises for cuts, wrong checksums and nonsense
        return False
    return content.endswith(PNG_END)


def _whole(line: bytes) -> Scene | None:
    try:
        scene = json.loads(line)
    except ValueError:
        return None
    if not line.endswith(b"\n") or not isinstance(scene, dict) or not {"views", "samples", "rejects"} <= set(scene):
        return None
    number = scene.get("scene")
    return scene if isinstance(number, int) and number >= 0 else None
