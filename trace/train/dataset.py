"""Training rows from token ids and images, and their collation into padded or packed batches.

A row is a shared beginning (system sentence and image) followed by one branch for each of its samples. Branches see
the beginning and themselves, never each other, and continue the beginning's positions: the row computes exactly what
separate rows would, but the image's tokens are paid for once. With `share_image=1` a row is one sample, as in LLaVA.
Where the processor decides how many tokens an image has, a row is one conversation, as the processor makes it.
Axes in tensor names: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..core.images import PAD_COLOR, Images, on_object, open_image, open_instances, patch_coverage
from ..core.points import Point
from ..core.prompts import IGNORE, template
from ..model.families.base import Checkpoint
from ..utils.command import InputError
from .token_cache import BLANK_SIZE, KINDS, ConversationEncoder, TokenEncoder, learned_spans, open_cache

MIN_COVERAGE = 0.05  # an object counts as on a patch if it covers at least this share of it
IMAGES_CHECKED = 20  # before training starts
ANSWERS_READ = 200  # to see whether the samples reason
Guide = tuple[int, int, float, float]  # first position, one past the last, x, y


class RowDataset(Dataset[dict[str, Any]]):
    """Training rows of one or more LLaVA JSON files.

    Args:
        max_length: tokens of a sample, its image included.
        share_image: the most samples of one image in a row.
        grounding: read instance maps, so that coordinates are tied to the objects under them.
        too_long: leave a longer sample out, or cut it after the last answer that fits; never inside an answer.
    Raises:
        InputError: a file, an image folder or a conversation that cannot be used, with the sample's id.
    """

    def __init__(
        self, data: Sequence[str | Path], image_folder: str | Path, checkpoint: Checkpoint, style: str = "vicuna_v1",
        max_length: int = 2048, share_image: int = 1, grounding: bool = False, too_long: Literal["drop", "cut"] = "drop",
    ) -> None:  # fmt: skip
        self._checkpoint, self._images = checkpoint, Images(Path(image_folder))
        self._max_length, self.grounding = max_length, grounding
        self._by_processor = checkpoint.image_tokens is None
        self._image_tokens = checkpoint.image_tokens or 1  # 1: entries count the image's tokens themselves
        encoder: Any = TokenEncoder(checkpoint.tokenizer, template(style))
        if self._by_processor:
            encoder = ConversationEncoder(checkpoint, self._images)
        self._files = [open_cache(path, encoder) for path in data]
        self._starts = np.cumsum([0, *map(len, self._files)])
        has_image = np.concatenate([file.has_image() for file in self._files])
        lengths = np.concatenate([file.lengths() for file in self._files])
        lengths = lengths + has_image * np.int32(self._image_tokens - 1)
        self.too_long: list[str] = []
        self.cut: list[str] = []
        kept = self._select(lengths, too_long)
        if not len(kept):
            raise InputError(f"data: no usable sample in {', '.join(map(str, data))} ({len(self.too_long)} too long).")
        self.samples = len(kept)
        self._members, self._offsets = kept, np.arange(len(kept) + 1)
        if share_image > 1:
            self._members, self._offsets = self._group_by_image(kept, share_image)
        self.has_images = bool(has_image[kept].any())
        self.row_has_image = has_image[self._members[self._offsets[:-1]]]
        self.lengths = np.add.reduceat(lengths[self._members], self._offsets[:-1]).astype(np.int32)
        for row in np.flatnonzero(np.diff(self._offsets) > 1).tolist():  # a shared beginning counts once
            members = self._members_of(row)
            self.lengths[row] -= (self.sample(members[0]).start + self._image_tokens - 1) * (len(members) - 1)
        self._check_images()

    def _select(self, lengths: NDArray[np.int32], too_long: str) -> NDArray[np.int64]:
        """Choose the samples to use, in order; record the ids of the others and correct the lengths of cut ones."""
        for index in np.flatnonzero(lengths > self._max_length):
            sample = self.sample(int(index))
            end = self._end(sample) if too_long == "cut" else 0
            if end:
                lengths[index] = end + (sample.image is not None) * (self._image_tokens - 1)
            (self.cut if end else self.too_long).append(sample.id)
        return np.flatnonzero(lengths <= self._max_length)

    def _end(self, sample: Any) -> int:
        """Return how many ids are used: all, or those up to the last answer that fits; 0 if none fits."""
        room = self._max_length - (sample.image is not None) * (self._image_tokens - 1)
        if len(sample.ids) <= room:
            return len(sample.ids)
        after = [*sample.learned[1:, 0], -1]  # spans that touch belong to one answer
        ends = [int(end) for (_, end, _), begin in zip(sample.learned, after, strict=True) if end != begin]
        return max((end for end in ends if sample.start < end <= room), default=0)

    def _group_by_image(self, kept: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index in kept.tolist():
            sample = self.sample(index)
            early = bool(sample.learned[0, 0] < sample.start)  # an answer before the image cannot be shared
            alone = index if sample.image is None or early else -1
            instances, beginning = sample.instances if self.grounding else None, sample.ids[: sample.start].tobytes()
            groups.setdefault((sample.image, instances, beginning, alone), []).append(index)
        rows = [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]
        members = np.array([index for row in rows for index in row], dtype=np.int64)
        return members, np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _check_images(self) -> None:
        """Raise an InputError if none of some images exists: the folder is the wrong one."""
        rows = np.flatnonzero(self.row_has_image)
        if not len(rows):
            return
        chosen = rows[np.linspace(0, len(rows) - 1, IMAGES_CHECKED).astype(int)]
        self._images.require_any(str(self.sample(self._members_of(row)[0]).image) for row in chosen)

    def shows_reasoning(self) -> bool:
        """Return whether any of some entries, spread over the files, reasons before it answers."""
        chosen = np.linspace(0, len(self._members) - 1, ANSWERS_READ).astype(int)
        return any(self.sample(int(index)).reasons for index in np.unique(self._members[chosen]))

    def sample(self, index: int) -> Any:
        """Return an entry of the data files (`EncodedSample` or `Conversation`), counted over all of them."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._files[file][index - int(self._starts[file])]

    def _members_of(self, row: int) -> list[int]:
        members: list[int] = self._members[self._offsets[row] : self._offsets[row + 1]].tolist()
        return members

    def names(self, rows: Sequence[int]) -> list[str]:
        return [self.sample(index).id for row in rows for index in self._members_of(row)]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row's tensors, `[tokens]` each, its pixels, and the reason (`broken`) if its image is unreadable.

        A row of a processor is a batch of one: `[1, tokens]`, and its other tensors as the processor makes them.
        """
        if self._by_processor:
            return self._processed_row(index)
        samples = [self.sample(member) for member in self._members_of(index)]
        image, start = samples[0].image, samples[0].start
        beginning = np.array(self._checkpoint.expand_image_tokens(samples[0].ids[:start].tolist()), dtype=np.int64)
        ends = [self._end(sample) for sample in samples]
        branches = [sample.ids[start:end] for sample, end in zip(samples, ends, strict=True)]
        sizes = [len(branch) for branch in branches]
        ids = np.concatenate([beginning, *branches]).astype(np.int64)
        labels, kinds = np.full(len(ids), IGNORE), np.full(len(ids), -1)
        guides: list[Guide] = []
        at = len(beginning)
        for sample, end, size in zip(samples, ends, sizes, strict=True):
            for first, last, kind in sample.learned[sample.learned[:, 1] <= end].tolist():
                shift = at - start if first >= start else 0  # the image's tokens move only what comes after it
                labels[first + shift : last + shift] = ids[first + shift : last + shift]
                kinds[first + shift : last + shift] = sample.task * len(KINDS) + kind
            for first, last, x, y in sample.guides[sample.guides[:, 1] <= end].tolist() if self.grounding else ():
                shift = at - start if first >= start else 0
                guides.append((int(first) + shift, int(last) + shift, x, y))
            at += size
        positions = [np.arange(len(beginning)), *(len(beginning) + np.arange(size) for size in sizes)]
        branch = np.repeat(np.arange(len(sizes) + 1), [len(beginning), *sizes])
        arrays = {"input_ids": ids, "labels": labels, "kinds": kinds, "position_ids": np.concatenate(positions)}
        item: dict[str, Any] = {name: torch.from_numpy(array) for name, array in (arrays | {"branch": branch}).items()}
        item["row"] = index
        if image is not None:
            try:
                item["pixel_values"] = self._checkpoint.pixels([self._open(image)])[0]
            except InputError as error:  # nothing is learned from this row
                item |= {"broken": str(error), "pixel_values": self.blank_pixels()}
                item["labels"].fill_(IGNORE)
                item["kinds"].fill_(-1)
        if self.grounding:
            item["guides"] = self._guided_patches(samples[0], guides)
        return item

    def _open(self, name: str) -> Image.Image:
        path = self._images.find(name)
        if path is None:
            raise InputError(f"the image {self._images.problem(name)}")
        return open_image(path)

    def _processed_row(self, index: int) -> dict[str, Any]:
        sample, item, image = self.sample(int(self._members[index])), dict[str, Any](row=index), None
        if sample.image is not None:
            try:
                image = self._open(sample.image)
            except InputError as error:  # nothing is learned from this row
                item["broken"], image = str(error), Image.new("RGB", BLANK_SIZE, PAD_COLOR)
        example = self._checkpoint.example(sample.turns, image)
        labels = torch.tensor([example.encoded.labels])
        kinds = torch.full_like(labels, -1)
        for first, last, kind in learned_spans(example.encoded, example.rendered):
            kinds[0, first:last] = sample.task * len(KINDS) + kind
        if "broken" in item:
            labels.fill_(IGNORE)
            kinds.fill_(-1)
        positions = self._checkpoint.positions(example.inputs)
        return item | example.inputs | {"labels": labels, "kinds": kinds, "position_ids": positions}

    def blank_row(self) -> dict[str, Any]:
        """Return a row of a processor with an empty image and nothing to learn."""
        inputs = self._checkpoint.tensors([self._checkpoint.prompt("")], [Image.new("RGB", (64, 64), PAD_COLOR)])
        labels, kinds = (torch.full_like(inputs["input_ids"], value) for value in (IGNORE, -1))
        return inputs | {"labels": labels, "kinds": kinds, "position_ids": self._checkpoint.positions(inputs)}

    def blank_pixels(self) -> Tensor:
        """Return `[3, side, side]` of an image of the padding's colour."""
        return self._checkpoint.pixels([Image.new("RGB", (8, 8), PAD_COLOR)])[0]

    def _guided_patches(self, sample: Any, guides: Sequence[Guide]) -> tuple[Tensor, Tensor]:
        """Row positions `[N]` and patches `[N, patches ** 2]` of the guides (first, last, x, y) that are on an object."""
        side, positions, stack = self._checkpoint.patches_per_side, [], []
        if sample.instances is not None and guides:
            path = self._images.find(sample.instances)
            if path is None:
                raise InputError(f"instance map of {sample.id}: {self._images.problem(sample.instances)}.")
            instances = open_instances(path)
            height, width = instances.shape
            covered: dict[int, NDArray[np.bool_]] = {}
            for first, last, x, y in guides:
                pixel = Point(x, y).to_pixel(width, height)
                instance = 0 if pixel is None else int(instances[pixel[1], pixel[0]])
                if not on_object(instance):  # the floor or a surface: free space, which no object explains
                    continue
                if instance not in covered:
                    share = patch_coverage(instances == instance, side).reshape(-1)
                    covered[instance] = share >= min(MIN_COVERAGE, share.max())
                positions += range(first, last)
                stack += [covered[instance]] * (last - first)
        patches = np.stack(stack) if stack else np.zeros((0, side * side))
        return torch.tensor(positions, dtype=torch.long), torch.tensor(patches, dtype=torch.float32)


class Collator:
    """Collate rows of `RowDataset`, in two ways that compute the same.

    Padded, rows are stacked, `[rows, tokens]`, with a four-dimensional mask only if a row has branches. Packed, they
    are concatenated, `[1, tokens]`; positions start again at each row, and `row_ends` says where rows end. What depends
    on labels alone is computed here, in a worker: on a GPU each such question would make the host wait.

    Args:
        blank: pixels `[3, side, side]` and token ids of an empty image for batches without images, where other batches
            have some: every process then runs the vision tower at every step, as ZeRO's collectives expect.
    """

    def __init__(self, pad_token_id: int, blank: tuple[Tensor, Sequence[int]] | None = None, packed: bool = False):
        self.pad_token_id, self.blank, self.packed = pad_token_id, blank, packed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self._tensors(rows)
        batch["rows"] = [row["row"] for row in rows]
        labelled_BT = batch["labels"][:, 1:] != IGNORE
        # Where logits are needed: position t predicts the label at t + 1. A forward pass without labels has a loss of 0
        # at some position, so that every process runs the model.
        columns = labelled_BT.any(0).nonzero()[:, 0]
        batch["columns"] = columns if len(columns) else torch.zeros(1, dtype=torch.long)
        batch["labelled"] = int(labelled_BT.sum())
        batch["broken"] = {row["row"]: row["broken"] for row in rows if "broken" in row}
        batch["tokens"] = sum(row["labels"].numel() for row in rows)
        return batch

    @property
    def reserve(self) -> int:
        """The tokens that the blank image adds to a batch."""
        return 0 if self.blank is None else len(self.blank[1])

    def _tensors(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        items = list(rows)
        if self.blank is not None and not any("pixel_values" in row for row in rows):
            shortest = min(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
            items[shortest] = _append_image(rows[shortest], *self.blank)
        batch = self._pack(items) if self.packed else self._pad(items)
        pixels = [row["pixel_values"] for row in items if "pixel_values" in row]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        if "guides" in rows[0]:
            numbers = [torch.full_like(row["guides"][0], index) for index, row in enumerate(rows)]
            positions = [row["guides"][0] for row in rows]
            batch["guided_rows"] = torch.stack([torch.cat(numbers), torch.cat(positions)], dim=1)
            batch["guided_patches"] = torch.cat([row["guides"][1] for row in rows])
        return batch

    def _pad(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        fills = {"input_ids": self.pad_token_id, "labels": IGNORE, "kinds": -1, "position_ids": 0, "branch": -1}
        batch: dict[str, Any] = {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in fills.items()
        }
        branch_BT = batch.pop("branch")
        batch["attention_mask"] = (branch_BT >= 0).long()
        if int(branch_BT.max()) > 1:
            visible = branch_visibility(branch_BT)
            batch["attention_mask"] = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        return batch

    def _pack(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = ("input_ids", "labels", "kinds", "position_ids", "branch")
        batch: dict[str, Any] = {name: torch.cat([row[name] for row in rows])[None] for name in names}
        ends = torch.tensor([len(row["input_ids"]) for row in rows]).cumsum(0)
        batch["labels"][0, ends[:-1]] = IGNORE  # nothing predicts a row's first token
        batch["kinds"][0, ends[:-1]] = -1
        batch["row_ends"] = ends.tolist()
        if int(batch["branch"].max()) <= 1:
            del batch["branch"]
        return batch


class ProcessorCollator(Collator):
    """Collate rows of a processor, as it would make their batch itself: padded on the right, or packed.

    What is not `[1, tokens]` is concatenated, its later axes filled with zeros. `blank` is `RowDataset.blank_row()`,
    which becomes another row of a batch without images.
    """

    @property
    def reserve(self) -> int:
        return 0 if self.blank is None else self.blank["labels"].shape[1]

    def _tensors(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self.blank is not None and not any("pixel_values" in row for row in rows):
            rows = [*rows, self.blank]
        fills = {"input_ids": self.pad_token_id, "labels": IGNORE, "kinds": -1}
        lengths, batch = [row["labels"].shape[1] for row in rows], dict[str, Any]()
        names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, Tensor))
        positions = [row["position_ids"] for row in rows]
        for name in names.keys() - {"position_ids"}:
            if any(row[name].shape != row["labels"].shape for row in rows if name in row):
                batch[name] = _concatenate([row[name] for row in rows if name in row])
                continue
            tensors = [row.get(name, torch.zeros_like(row["labels"])) for row in rows]
            if not self.packed:
                pad = torch.nn.functional.pad
                tensors = [pad(row, (0, max(lengths) - row.shape[1]), value=fills.get(name, 0)) for row in tensors]
            batch[name] = torch.cat(tensors, dim=int(self.packed))
        if self.packed:
            ends = np.cumsum(lengths).tolist()
            batch["labels"][0, ends[:-1]] = IGNORE  # nothing predicts a row's first token
            batch["kinds"][0, ends[:-1]] = -1
            joined, batch["row_ends"] = torch.cat(positions, dim=2), ends
            batch["position_ids"] = joined[0] if len(joined) == 1 else joined
            del batch["attention_mask"]
        return batch


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate on the first axis; the later ones take their largest size, filled with zeros."""
    sizes = [max(axis) for axis in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    joined, at = tensors[0].new_zeros(sum(map(len, tensors)), *sizes), 0
    for tensor in tensors:
        joined[(slice(at, at + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        at += len(tensor)
    return joined


def _append_image(row: Mapping[str, Any], pixels: Tensor, ids: Sequence[int]) -> Mapping[str, Any]:
    """Append an empty image to a row, which is causal and never sees it."""
    tokens = torch.tensor(list(ids))
    added = {"input_ids": tokens, "labels": torch.full_like(tokens, IGNORE), "kinds": torch.full_like(tokens, -1)}
    added |= {"position_ids": torch.arange(len(tokens)), "branch": torch.full_like(tokens, int(row["branch"][-1]))}
    longer = {name: torch.cat([row[name], tensor]) for name, tensor in added.items()}
    return {**row, **longer, "pixel_values": pixels}


def branch_visibility(branch_BT: Tensor) -> Tensor:
    """Return `[B, 1, T, T]`, true where a query (third axis) may see a key: causal, in its branch or the beginning."""
    length = branch_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_BT.device).tril()
    visible = (branch_BT[:, :, None] == branch_BT[:, None, :]) | (branch_BT[:, None, :] == 0)
    itself = torch.eye(length, dtype=torch.bool, device=branch_BT.device)  # padding sees itself: no empty softmax
    return ((visible & causal) | itself)[:, None]
