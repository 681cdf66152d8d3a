"""Tensors in files: read one at a time when they are needed, and written one after the other.

Loading 26 GB must not take 52 GB of memory. A `LazyTensor` knows its name, shape and type; its file is mapped anew for
each read and let go afterwards, because mapped pages count as this process's memory. `.bin` files are pickles; torch's
restricted unpickler (`weights_only=True`) refuses everything but tensors.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..utils.command import InputError
from ..utils.files import read_json, write_json

SHARD_BYTES = 5_000_000_000  # of one file, as on the hub
# torch's name of a type -> safetensors' name
CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet.

    Args:
        dtype: as torch names it.
        where: the file and the tensor's name in it, for messages.
        get: gives the tensor.
        shared: whether `get` gives memory of a mapped file or of a model, which `read` copies.
        disk_dtype: the type on disk if the numbers are computed in a wider one.
    """

    shape: tuple[int, ...]
    dtype: str
    where: str
    get: Callable[[], Tensor]
    shared: bool = False
    disk_dtype: str = ""

    def read(self, dtype: str | None = None) -> Tensor:
        """The tensor in memory of its own, as `dtype` if given."""
        return self.get().detach().to(getattr(torch, dtype or self.dtype), copy=self.shared)

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()  # transformers' loader asks for `weight[...]`

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def nbytes(self, dtype: str | None = None) -> int:
        return int(self.count * getattr(torch, dtype or self.dtype).itemsize)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_memory(tensor: Tensor, where: str) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), _name(tensor.dtype), where, lambda: tensor, shared=True)


def cast(weight: LazyTensor, dtype: str) -> LazyTensor:
    """The same numbers in another type, converted while they are read."""
    if weight.dtype == dtype:
        return weight
    return LazyTensor(weight.shape, dtype, weight.where, lambda: weight.read(dtype))


def resized(weight: LazyTensor, rows: int) -> LazyTensor:
    """The first `rows` rows of a weight, filled up with zeros if it has fewer."""
    if weight.shape[0] == rows:
        return weight
    shape, kept = (rows, *weight.shape[1:]), min(rows, weight.shape[0])

    def get() -> Tensor:
        tensor = torch.zeros(shape, dtype=getattr(torch, weight.dtype))
        tensor[:kept] = weight.get()[:kept]
        return tensor

    return replace(weight, shape=shape, get=get, shared=False)


def weights_in(folder: Path, stems: tuple[str, ...] = ("model", "pytorch_model")) -> dict[str, LazyTensor]:
    """All tensors of the model files in a folder: safetensors if there are any, otherwise `.bin`; sharded or not."""
    for suffix in (".safetensors", ".bin"):
        for stem in stems:
            files = _shards(folder, stem, suffix)
            if files:
                return {name: weight for file in files for name, weight in tensors_of(file).items()}
    return {}


def _shards(folder: Path, stem: str, suffix: str) -> list[Path]:
    index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
    if index.is_file():
        content = read_json(index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise InputError(f"{index} has no weight_map from tensors to files")
        files = [folder / name for name in sorted(set(names.values()))]
        for file in files:
            if file.parent != folder:
                raise InputError(f"{index} names a file outside its own folder: {file}")
            if not file.is_file():
                raise InputError(f"{file} is missing: {index.name} lists {len(files)} files. Get the missing one")
        return files
    if single.is_file():
        return [single]
    files = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
    total = re.search(r"-of-(\d+)\.", files[0].name) if files else None
    if total and len(files) != int(total[1]):
        raise InputError(f"{folder} holds {len(files)} of {int(total[1])} files {stem}-*-of-*{suffix}. Get the rest")
    return files


def tensors_of(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one `.safetensors` or `.bin` (`.pt`) file, by name. InputError: it is broken or unsafe."""
    zipped = _is_zip(file)
    weights = {}
    for name, tensor in _map_file(file, zipped).items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            continue
        where, dtype = f"{file}: {name}", _name(tensor.dtype)
        if dtype not in CODES or tensor.layout is not torch.strided:
            raise InputError(f"{where} is a {dtype} tensor with layout {tensor.layout}. Only dense tensors are read")
        if zipped is False:  # torch before 1.6: the file cannot be mapped and was read as a whole
            weights[name] = in_memory(tensor, where)
        else:
            get = lambda name=name: _map_file(file, zipped, name)[name]  # noqa: E731
            weights[name] = LazyTensor(tuple(tensor.shape), dtype, where, get, shared=True)
    return weights


def _is_zip(file: Path) -> bool | None:
    if file.suffix == ".safetensors":
        return None
    with open(file, "rb") as stream:
        return stream.read(2) == b"PK"


def _map_file(file: Path, zipped: bool | None, name: str | None = None) -> Mapping[Any, Any]:
    """The tensors of a file by name (or only one of safetensors), in mapped memory where the format allows it."""
    try:
        if zipped is None:
            with safe_open(file, "pt") as reader:
                return {key: reader.get_tensor(key) for key in ([name] if name else reader.keys())}
        content = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"(?:GLOBAL|function|class|callable)[^\n]*?\b([A-Za-z_][\w.]*\.[\w.]+)", str(error))
        raise InputError(
            f"{file} is refused: it is a pickle that holds more than tensors and could run code when opened "
            f"({culprit[1] if culprit else 'weights_only=True'}). Get the weights as safetensors from a trusted source"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{file} cannot be read as weights: {reason}. It may be cut off ({file.stat().st_size} bytes); get it again"
        ) from None
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds a {type(content).__name__}, expected tensors by name")
    state = content.get("state_dict")
    return state if isinstance(state, Mapping) else content


def total_bytes(weights: Mapping[str, LazyTensor], dtype: str | None) -> int:
    """The size of `weights` on disk in the type `dtype` (None: each in its own)."""
    return sum(weight.nbytes(dtype) for weight in weights.values())


def write_weights(
    folder: Path, weights: Mapping[str, LazyTensor], dtype: str | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:  # fmt: skip
    """Write all weights into `folder` as `model.safetensors`, or as shards with their index.

    The library's own writer wants the tensors of a file in memory together; this one holds one.

    Args:
        dtype: of the numbers on disk, as torch names it; by default each weight's own.
        progress: called with the number of bytes just written.
    """
    split = split_state_dict_into_shards_factory(
        dict(weights), get_storage_size=lambda weight: weight.nbytes(dtype), max_shard_size=SHARD_BYTES,
        filename_pattern="model{suffix}.safetensors",
    )  # fmt: skip
    for file_name, tensors in split.filename_to_tensors.items():
        # Wide numbers first, so that every tensor starts at a multiple of its own width.
        order = sorted(tensors, key=lambda name: -getattr(torch, dtype or weights[name].dtype).itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in order:
            weight, end = weights[name], start + weights[name].nbytes(dtype)
            code = CODES[dtype or weight.dtype]
            header[name] = {"dtype": code, "shape": list(weight.shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                data = _raw(weights[name], dtype)
                file.write(memoryview(data.numpy()))
                progress(data.nbytes)
                del data
            file.flush()
            os.fsync(file.fileno())
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def _raw(weight: LazyTensor, dtype: str | None) -> Tensor:
    """The bytes of a weight, as they are written."""
    tensor = weight.get().detach().cpu().to(getattr(torch, dtype or weight.dtype))
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def largest_type(weights: Mapping[str, LazyTensor], on_disk: bool = False) -> str:
    """The type of most of the numbers, in memory or on disk."""
    totals: dict[str, int] = {}
    for weight in weights.values():
        dtype = (weight.disk_dtype if on_disk else "") or weight.dtype
        totals[dtype] = totals.get(dtype, 0) + weight.count
    return max(totals, key=lambda name: totals[name])


def differences(
    written: Mapping[str, LazyTensor], intended: Mapping[str, LazyTensor], dtype: str | None
) -> Iterator[str]:
    """Every tensor of `written` that is not bit for bit `intended` in the type `dtype`; reads one at a time."""
    for name in sorted(set(written) | set(intended)):
        if name not in written or name not in intended:
            yield f"{name} is {'missing' if name in intended else 'not expected'}"
            continue
        actual, expected = written[name], intended[name]
        if (actual.dtype, actual.shape) != (dtype or expected.dtype, expected.shape):
            yield f"{name} is {actual.dtype} {actual.shape}, expected {dtype or expected.dtype} {expected.shape}"
        elif not torch.equal(_raw(actual, None), _raw(expected, dtype)):
            yield f"{name} holds other numbers"
