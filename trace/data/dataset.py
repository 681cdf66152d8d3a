"""Samples as training rows: encoded once, images opened when they are needed, several questions an image in one row.

A row is a shared beginning (system sentence and image) followed by one branch for each of its samples. Branches see
the beginning and themselves, never each other, and all count their positions from the beginning's end: the row
computes exactly what separate rows would, but the image's tokens are paid for once. With `share_image=1` a row is one
sample, as LLaVA trains.

A sample longer than `max_length` is left out and reported with its id; nothing is cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..command import InputError
from ..images import open_image, patch_coverage
from ..model.checkpoint import Checkpoint
from ..prompts import IGNORE, IMAGE_ID, Encoded, encode, render, template
from ..records import Sample, read_samples

# A coordinate pair as our own texts write it; what is guided are the tokens between its parentheses.
COORDINATES = re.compile(r"\((\d*\.\d+), (\d*\.\d+)\)")
MIN_COVERAGE = 0.05  # an object counts as on a patch when it covers at least this share of it


@dataclass(frozen=True, slots=True)
class Guide:
    """A stretch of token positions (of a branch, before its first coordinate digit) and where their object is seen."""

    positions: tuple[int, ...]
    place: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Branch:
    """One encoded sample, split behind its image (a text-only sample has everything in `ids`)."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    guides: tuple[Guide, ...]


@dataclass(frozen=True, slots=True)
class Row:
    image: Path | None
    instances: Path | None
    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]


class RowDataset(Dataset[dict[str, Any]]):
    """Training rows of one or more LLaVA JSON files.

    Args:
        data: JSON or JSONL files of samples.
        image_folder: what the samples' image names are relative to.
        share_image: at most so many samples of one image a row.
        grounding: read instance maps so that coordinates are tied to the objects they lie on.
    Raises:
        InputError: a file, an image name or a conversation that cannot be used, with the sample's id.
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
    ) -> None:
        self._checkpoint = checkpoint
        self._folder = Path(image_folder)
        self._style = template(style)
        self._max_length = max_length
        self.grounding = grounding
        self.too_long: list[str] = []
        self.rows = self._rows(_read_all(data), share_image)
        if not self.rows:
            raise InputError(f"no usable sample in {', '.join(map(str, data))} ({len(self.too_long)} were too long)")

    def _rows(self, samples: Iterable[Sample], share_image: int) -> list[Row]:
        groups: dict[tuple[Any, ...], list[Branch]] = {}
        for number, sample in enumerate(tqdm(samples, desc="tokenise", unit=" samples", leave=False)):
            prefix, branch = self._encode(sample)
            if len(prefix) + self._checkpoint.patches**2 + len(branch.ids) > self._max_length:
                self.too_long.append(sample.id)
                continue
            instances = self._file(sample.meta["instances"]) if self.grounding and "instances" in sample.meta else None
            image = self._file(sample.image) if sample.image is not None else None
            key = (image, instances, prefix, number if share_image == 1 or image is None else 0)
            groups.setdefault(key, []).append(branch)
        return [
            Row(image, instances, prefix, tuple(part))
            for (image, instances, prefix, _), branches in groups.items()
            for part in (branches[start : start + share_image] for start in range(0, len(branches), share_image))
        ]

    def _file(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file() and (self._folder.parent / name).is_file():  # names that carry the folder themselves
            return self._folder.parent / name
        return path

    def _encode(self, sample: Sample) -> tuple[tuple[int, ...], Branch]:
        try:
            rendered = render(sample.conversations, self._style)
        except InputError as error:
            raise InputError(f"sample {sample.id}: {error}") from None
        encoded = encode(self._checkpoint.tokenizer, rendered)
        images = encoded.input_ids.count(IMAGE_ID)
        if images != (sample.image is not None):
            raise InputError(f"sample {sample.id}: {images} <image> tags for {int(sample.image is not None)} images")
        start = encoded.input_ids.index(IMAGE_ID) + 1 if images else 0
        guides = tuple(_guides(encoded, rendered.text, start)) if self.grounding else ()
        branch = Branch(tuple(encoded.input_ids[start:]), tuple(encoded.labels[start:]), guides)
        return tuple(encoded.input_ids[:start]), branch

    @property
    def samples(self) -> int:
        return sum(len(row.branches) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        expand = self._checkpoint.expand
        prefix = expand(row.prefix)
        ids, labels, positions, branch_of = (
            list(prefix),
            [IGNORE] * len(prefix),
            list(range(len(prefix))),
            [0] * len(prefix),
        )
        guided: list[tuple[int, Guide]] = []
        for number, branch in enumerate(row.branches, start=1):
            guided += [(len(ids), guide) for guide in branch.guides]
            ids += branch.ids
            labels += branch.labels
            positions += range(len(prefix), len(prefix) + len(branch.ids))
            branch_of += [number] * len(branch.ids)
        item: dict[str, Any] = {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "position_ids": torch.tensor(positions),
            "branch": torch.tensor(branch_of),
        }
        if row.image is not None:
            item["pixel_values"] = self._checkpoint.pixels([open_image(row.image)])[0]
        if self.grounding:
            item["guides"] = self._guided_patches(row, guided)
        return item

    def _guided_patches(self, row: Row, guided: list[tuple[int, Guide]]) -> tuple[Tensor, Tensor]:
        """Row positions `[N]` and patches `[N, patches ** 2]` of the guides whose point lies on an object."""
        side = self._checkpoint.patches
        positions: list[int] = []
        patches: list[np.ndarray[Any, Any]] = []
        if row.instances is not None and guided:
            with Image.open(row.instances) as picture:
                instances = np.asarray(picture)
            height, width = instances.shape
            coverage: dict[int, np.ndarray[Any, Any]] = {}
            for offset, guide in guided:
                x, y = guide.place
                instance = int(instances[min(int(y * height), height - 1), min(int(x * width), width - 1)])
                if instance < 2:  # the floor or the surface: a free place, which no object explains
                    continue
                if instance not in coverage:
                    share = patch_coverage(instances == instance, side).reshape(-1)
                    coverage[instance] = np.where(share >= min(MIN_COVERAGE, share.max()), 1.0, 0.0)
                positions += [offset + position for position in guide.positions]
                patches += [coverage[instance]] * len(guide.positions)
        stacked = np.stack(patches) if patches else np.zeros((0, side * side))
        return torch.tensor(positions, dtype=torch.long), torch.tensor(stacked, dtype=torch.float32)


def _read_all(data: Sequence[str | Path]) -> Iterable[Sample]:
    for path in data:
        yield from read_samples(path)


def _guides(encoded: Encoded, text: str, start: int) -> Iterable[Guide]:
    """The rows that predict a learned coordinate's digits: for `(0.46, 0.52)` those of `(0.`, 4, 6, `, 0.` and 5."""
    for match in COORDINATES.finditer(text):
        inside = [
            token - 1 - start
            for token, (begin, _) in enumerate(encoded.spans)
            if match.start() < begin < match.end() - 1 and encoded.labels[token] != IGNORE
        ]
        if inside:
            yield Guide(tuple(inside), (float(match[1]), float(match[2])))


class Collator:
    """Pads rows to a batch; writes a four-dimensional mask only when a row has more than one branch."""

    def __init__(self, pad_token_id: int, dtype: torch.dtype = torch.float32) -> None:
        self._pad, self._dtype = pad_token_id, dtype

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        def padded(name: str, value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

        batch: dict[str, Any] = {
            "input_ids": padded("input_ids", self._pad),
            "labels": padded("labels", IGNORE),
            "position_ids": padded("position_ids", 0),
        }
        branch = padded("branch", -1)
        shared = int(branch.max()) > 1
        batch["attention_mask"] = self._branch_mask(branch) if shared else (branch >= 0).long()
        pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        if "guides" in rows[0]:
            numbers = [torch.full_like(row["guides"][0], index) for index, row in enumerate(rows)]
            positions = [row["guides"][0] for row in rows]
            batch["guided_rows"] = torch.stack([torch.cat(numbers), torch.cat(positions)], dim=1)
            batch["guided_patches"] = torch.cat([row["guides"][1] for row in rows])
        return batch

    def _branch_mask(self, branch: Tensor) -> Tensor:
        """`[batch, 1, tokens, tokens]`, 0 or the type's lowest value: causal, within a branch or to the beginning."""
        length = branch.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        allowed = (visible & causal) | torch.eye(length, dtype=torch.bool)  # padding sees itself: no empty softmax
        mask = torch.zeros(len(branch), 1, length, length, dtype=self._dtype)
        return mask.masked_fill(~allowed[:, None], torch.finfo(self._dtype).min)
