"""Samples as training rows: encoded once, images opened when they are needed, several questions an image in one row.

A row is a shared beginning (system sentence and image) followed by one branch for each of its samples. Branches see
the beginning and themselves, never each other, and all count their positions from the beginning's end: the row
computes exactly what separate rows would, but the image's tokens are paid for once. With `share_image=1` a row is one
sample, as LLaVA trains.

A sample longer than `max_length` is left out, or cut where an answer ends; never inside one. A picture that cannot be
read is replaced by an empty one, and nothing is learned from its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..core.images import PAD_COLOR, Images, open_image, open_instances, patch_coverage
from ..core.prompts import IGNORE, template
from ..data.scenes.instances import on_object
from ..model.checkpoint import Checkpoint
from ..utils.command import InputError
from .collate import Collator
from .token_cache import KINDS, Record, open_records

__all__ = ["Collator", "RowDataset", "TooLong"]

MIN_COVERAGE = 0.05  # an object counts as on a patch when it covers at least this share of it
LOOKED_AT = 20  # images that are looked for before training starts
TooLong = Literal["drop", "cut"]


@dataclass(frozen=True, slots=True)
class Branch:
    """One encoded sample behind its image (a text-only sample has everything here).

    Tokens are counted from there; an answer before the image (which came with a later question) has negative numbers.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.int32]
    guides: NDArray[np.float64]
    task: int


@dataclass(frozen=True, slots=True)
class Row:
    names: tuple[str, ...]  # the ids of its samples
    image: str | None
    instances: Path | None
    prefix: NDArray[np.int32]
    branches: tuple[Branch, ...]


class RowDataset(Dataset[dict[str, Any]]):
    """Training rows of one or more LLaVA JSON files.

    Args:
        data: JSON or JSONL files of samples.
        image_folder: what the samples' image names are relative to.
        max_length: tokens a sample may have, its image's included.
        share_image: at most so many samples of one image a row.
        grounding: read instance maps so that coordinates are tied to the objects they lie on.
        too_long: leave a longer sample out, or cut it behind the last answer that fits.
    Raises:
        InputError: a file, an image folder or a conversation that cannot be used, with the sample's id.
    """

    def __init__(
        self,
        data: Sequence[str | Path],
        image_folder: str | Path,
        checkpoint: Checkpoint,
        style: str = "vicuna_v1",
        max_length: int = 2048,
        share_image: int = 1,
        grounding: bool = False,
        too_long: TooLong = "drop",
    ) -> None:
        self._checkpoint = checkpoint
        self._images = Images(Path(image_folder))
        self._max_length = max_length
        self.grounding = grounding
        self._files = [open_records(path, checkpoint.tokenizer, template(style)) for path in data]
        self._starts = np.cumsum([0, *map(len, self._files)])
        with_image = np.concatenate([file.with_image() for file in self._files])
        lengths = np.concatenate([file.column("tokens") for file in self._files])
        self._image_tokens = checkpoint.patches_per_side**2
        lengths = lengths + with_image * np.int32(self._image_tokens - 1)
        self.too_long: list[str] = []
        self.cut: list[str] = []
        kept = self._kept(lengths, too_long)
        if not len(kept):
            raise InputError(f"no usable sample in {', '.join(map(str, data))} ({len(self.too_long)} were too long)")
        self.samples = len(kept)
        self._members, self._offsets = _one_each(kept) if share_image == 1 else self._shared(kept, share_image)
        self.has_images = bool(with_image[kept].any())
        self.row_has_image = with_image[self._members[self._offsets[:-1]]]
        self.lengths = self._row_lengths(lengths)
        self._look_for_images()

    def _kept(self, lengths: NDArray[np.int32], too_long: TooLong) -> NDArray[np.int64]:
        """The samples that are used, in order; the others' ids are noted, and lengths of cut ones corrected."""
        kept = lengths <= self._max_length
        for index in np.flatnonzero(~kept):
            record = self.record(int(index))
            end = self._last_fitting(record) if too_long == "cut" else 0
            if end:
                lengths[index] = end + (record.image is not None) * (self._image_tokens - 1)
                kept[index] = True
                self.cut.append(record.id)
            else:
                self.too_long.append(record.id)
        return np.flatnonzero(kept)

    def _last_fitting(self, record: Record) -> int:
        """Ids up to the end of the last answer that fits, 0 when not even the first one does."""
        room = self._max_length - (record.image is not None) * (self._image_tokens - 1)
        ends = [int(end) for end in _answer_ends(record.learned) if record.start < end <= room]
        return ends[-1] if ends else 0

    def _shared(self, kept: NDArray[np.int64], share_image: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index in kept:
            record = self.record(int(index))
            instances = record.instances if self.grounding else None
            early = bool(record.learned[0, 0] < record.start)  # an answer before the image, which is its own
            alone = index if record.image is None or early else -1
            prefix = record.ids[: record.start].tobytes()
            groups.setdefault((record.image, instances, prefix, alone), []).append(int(index))
        rows = [group[at : at + share_image] for group in groups.values() for at in range(0, len(group), share_image)]
        members = np.array([index for row in rows for index in row], dtype=np.int64)
        return members, np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _row_lengths(self, lengths: NDArray[np.int32]) -> NDArray[np.int32]:
        """Tokens of every row: its samples' without the beginnings that they share."""
        rows = np.add.reduceat(lengths[self._members], self._offsets[:-1]).astype(np.int32)
        for row in np.flatnonzero(np.diff(self._offsets) > 1):
            shared = self.record(int(self._members[self._offsets[row]])).start + self._image_tokens - 1
            rows[row] -= shared * (self._offsets[row + 1] - self._offsets[row] - 1)
        return rows

    def _look_for_images(self) -> None:
        """InputError when none of some images exists: the folder is another one."""
        pictured = np.flatnonzero(self.row_has_image)
        if not len(pictured):
            return
        some = pictured[np.linspace(0, len(pictured) - 1, LOOKED_AT).astype(int)]
        names = {str(self.row(int(index)).image) for index in some}
        problems = [problem for name in sorted(names) if (problem := self._images.problem(name))]
        if len(problems) == len(names):
            raise InputError(f"image_folder: none of {len(names)} images was found, for example {problems[0]}")

    def _instances(self, record: Record) -> Path | None:
        if not self.grounding or record.instances is None:
            return None
        path = self._images.find(record.instances)
        if path is None:
            raise InputError(f"the instance map of {record.id}: {self._images.problem(record.instances)}")
        return path

    def record(self, index: int) -> Record:
        """A sample of the data files, counted over all of them."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._files[file][index - int(self._starts[file])]

    def names(self, rows: Sequence[int]) -> list[str]:
        """The ids of the samples of these rows."""
        return [self.record(int(index)).id for row in rows for index in self._of(row)]

    def _of(self, row: int) -> NDArray[np.int64]:
        return self._members[self._offsets[row] : self._offsets[row + 1]]

    def row(self, index: int) -> Row:
        records = [self.record(int(member)) for member in self._of(index)]
        first = records[0]
        return Row(
            tuple(record.id for record in records),
            first.image,
            self._instances(first),
            first.ids[: first.start],
            tuple(self._branch(record) for record in records),
        )

    def _branch(self, record: Record) -> Branch:
        start, learned = record.start, record.learned
        room = self._max_length - (record.image is not None) * (self._image_tokens - 1)
        end = len(record.ids) if len(record.ids) <= room else self._last_fitting(record)
        learned = learned[learned[:, 1] <= end]
        guides = record.guides[record.guides[:, 1] <= end] if self.grounding else record.guides[:0]
        return Branch(record.ids[start:end], learned - [start, start, 0], guides - [start, start, 0, 0], record.task)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A row's tensors, `[tokens]` each, with its pixels and, when its picture cannot be read, the reason."""
        row = self.row(index)
        prefix = np.array(self._checkpoint.expand_image_tokens(row.prefix.tolist()), dtype=np.int64)
        parts = [branch.ids for branch in row.branches]
        ids = np.concatenate([prefix, *parts]).astype(np.int64)
        labels, kinds = np.full(len(ids), IGNORE), np.full(len(ids), -1)
        positions = np.concatenate([np.arange(len(prefix)), *[len(prefix) + np.arange(len(part)) for part in parts]])
        branch_of = np.repeat(np.arange(len(parts) + 1), [len(prefix), *map(len, parts)])
        guided: list[tuple[int, NDArray[np.float64]]] = []
        at = len(prefix)

        def origin(first: float, branch_at: int) -> int:
            """Where tokens are counted from: what comes before the image (first < 0) is not moved by its tokens."""
            return branch_at if first >= 0 else len(row.prefix)

        for branch in row.branches:
            for first, last, kind in branch.learned:
                learned = slice(origin(first, at) + first, origin(first, at) + last)
                labels[learned] = ids[learned]
                kinds[learned] = branch.task * len(KINDS) + kind
            guided += [(origin(guide[0], at), guide) for guide in branch.guides]
            at += len(branch.ids)
        item: dict[str, Any] = {
            "row": index,
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "kinds": torch.from_numpy(kinds),
            "position_ids": torch.from_numpy(positions),
            "branch": torch.from_numpy(branch_of),
        }
        if row.image is not None:
            self._add_pixels(item, row.image)
        if self.grounding:
            item["guides"] = self._guided_patches(row, guided)
        return item

    def _add_pixels(self, item: dict[str, Any], name: str) -> None:
        try:
            path = self._images.find(name)
            if path is None:
                raise InputError(f"the image {self._images.problem(name)}")
            item["pixel_values"] = self._checkpoint.pixels([open_image(path)])[0]
        except InputError as error:
            item["broken"] = str(error)
            item["pixel_values"] = self.blank_pixels()
            item["labels"].fill_(IGNORE)
            item["kinds"].fill_(-1)

    def blank_pixels(self) -> Tensor:
        """`[3, side, side]` of a picture of the padding's colour."""
        return self._checkpoint.pixels([Image.new("RGB", (8, 8), PAD_COLOR)])[0]

    def _guided_patches(self, row: Row, guided: Sequence[tuple[int, NDArray[np.float64]]]) -> tuple[Tensor, Tensor]:
        """Row positions `[N]` and patches `[N, patches ** 2]` of the guides whose point lies on an object."""
        side = self._checkpoint.patches_per_side
        positions: list[int] = []
        patches: list[NDArray[Any]] = []
        if row.instances is not None and guided:
            instances = open_instances(row.instances)
            height, width = instances.shape
            coverage: dict[int, NDArray[Any]] = {}
            for offset, (first, last, x, y) in guided:
                instance = int(instances[min(int(y * height), height - 1), min(int(x * width), width - 1)])
                if not on_object(instance):  # the floor or a surface: a free place, which no object explains
                    continue
                if instance not in coverage:
                    share = patch_coverage(instances == instance, side).reshape(-1)
                    coverage[instance] = np.where(share >= min(MIN_COVERAGE, share.max()), 1.0, 0.0)
                positions += range(offset + int(first), offset + int(last))
                patches += [coverage[instance]] * int(last - first)
        stacked = np.stack(patches) if patches else np.zeros((0, side * side))
        return torch.tensor(positions, dtype=torch.long), torch.tensor(stacked, dtype=torch.float32)


def _one_each(kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return kept, np.arange(len(kept) + 1)


def _answer_ends(learned: NDArray[np.int32]) -> list[int]:
    """Where answers end: stretches that touch belong to one answer."""
    return [int(end) for (_, end, _), after in zip(learned, [*learned[1:, 0], -1], strict=True) if end != after]
