"""Weights into files: safetensors, one tensor after the other, and the comparison of what was written with its source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..utils.files import write_json
from .lazy_tensors import CODES, Weight, cast

SHARD_BYTES = 5_000_000_000  # of one file, as the hub has them


def plan_shards(weights: Mapping[str, Weight], dtype: str | None, limit: int = SHARD_BYTES) -> list[list[str]]:
    """The names of the weights, in files of at most `limit` bytes, in order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        one = weight.count * CODES[dtype or weight.dtype][1]
        if shards[-1] and size + one > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += one
    return shards


def planned_bytes(weights: Mapping[str, Weight], dtype: str | None) -> int:
    """What `weights` take on disk in the type `dtype` (None: each in its own)."""
    return sum(weight.count * CODES[dtype or weight.dtype][1] for weight in weights.values())


def write_weights(
    folder: Path,
    weights: Mapping[str, Weight],
    dtype: str | None = None,
    limit: int = SHARD_BYTES,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Path]:
    """Write all weights into `folder` as `model.safetensors`, or as shards with their index.

    Args:
        dtype: of the numbers on disk, as torch names it; by default each weight's own.
        progress: called with the number of bytes just written.
    """
    shards = plan_shards(weights, dtype, limit)
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file_name, shard in zip(names, shards, strict=True):
        _write_file(folder / file_name, {name: weights[name] for name in shard}, dtype, progress)
    if len(shards) > 1:
        total = planned_bytes(weights, dtype)
        where = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return [folder / name for name in names]


def _write_file(
    path: Path, weights: Mapping[str, Weight], dtype: str | None, progress: Callable[[int], object]
) -> None:
    import torch

    # Wide numbers first, so that every tensor lies at a multiple of its own width.
    order = sorted(weights, key=lambda name: -CODES[dtype or weights[name].dtype][1])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        code, width = CODES[dtype or weights[name].dtype]
        end = position + weights[name].count * width
        header[name] = {"dtype": code, "shape": list(weights[name].shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = cast(weights[name], dtype or weights[name].dtype).read().cpu().contiguous()
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            progress(tensor.nbytes)
            del tensor
        file.flush()
        os.fsync(file.fileno())


def largest_type(weights: Mapping[str, Weight], stored: bool = False) -> str:
    """The type that most of the numbers come in, or with `stored` the one that most of them have on disk."""
    totals: dict[str, int] = {}
    for weight in weights.values():
        kind = weight.stored if stored else weight.dtype
        totals[kind] = totals.get(kind, 0) + weight.count
    return max(totals, key=lambda name: totals[name])


def differences(written: Mapping[str, Weight], intended: Mapping[str, Weight], dtype: str | None) -> Iterator[str]:
    """What of `written` is not bit for bit what `intended` is in the type `dtype`; reads both, a tensor at a time."""
    import torch

    for name in sorted(set(written) | set(intended)):
        if name not in written or name not in intended:
            yield f"{name} is {'missing' if name in intended else 'not expected'}"
            continue
        wanted = cast(intended[name], dtype or intended[name].dtype)
        one, other = written[name].read().contiguous(), wanted.read().cpu().contiguous()
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{name} is {one.dtype} {tuple(one.shape)}, expected {other.dtype} {tuple(other.shape)}"
        elif not torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)):
            yield f"{name} holds other numbers"
