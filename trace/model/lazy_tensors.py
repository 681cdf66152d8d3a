"""Weights in files: tensors that know their name, shape and type, and are read only when somebody needs them.

Loading 26 GB must not take 52 GB of memory. A `Weight` is a promise of one tensor; whoever needs it calls `read()`, and
what comes back is the only copy. Files are read with plain reads into the tensor's own memory: pages of a mapped file
would count as this process's memory until somebody else needs them.

`.bin` files are pickles. Their tables are read by torch's restricted unpickler (`weights_only=True`), which refuses
anything that is not a tensor; there is no way around it.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..utils.command import InputError
from ..utils.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 26  # bytes of one read
_PIECE = 1 << 22  # bytes that are cast at a time

# safetensors' name of a type -> (torch's name, bytes of a number)
TYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip
CODES = {name: (code, size) for code, (name, size) in TYPES.items()}


class Weight:
    """One tensor that has not been read yet. `where` names the file and the tensor for messages."""

    shape: tuple[int, ...]
    dtype: str  # as torch names it
    where: str

    def read(self) -> Tensor:
        """The tensor, in memory of its own, in the type it is stored in."""
        raise NotImplementedError

    def read_into(self, target: Tensor) -> None:
        """Fill `target`, contiguous, on the CPU and of this shape, converting to its type."""
        target.copy_(self.read())

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()  # transformers' loader asks for `weight[...]`

    @property
    def stored(self) -> str:
        """The type on disk of the numbers, also where they are computed in a wider one."""
        return self.dtype

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * CODES[self.dtype][1]


@dataclass(frozen=True)
class Stored(Weight):
    """A contiguous tensor at `offset` bytes of a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int
    where: str

    def read(self) -> Tensor:
        import torch

        tensor = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        self.read_into(tensor)
        return tensor

    def read_into(self, target: Tensor) -> None:
        import torch

        dtype, flat = getattr(torch, self.dtype), target.view(-1)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset)
            if target.dtype == dtype:
                self._fill(file, flat)
                return
            piece = _piece().view(dtype)  # a cast holds one piece twice, not the tensor
            for start in range(0, self.count, len(piece)):
                part = piece[: self.count - start]
                self._fill(file, part)
                flat[start : start + len(part)] = part

    def _fill(self, file: IO[bytes], flat: Tensor) -> None:
        import torch

        view = memoryview(flat.view(torch.uint8).numpy())
        while view:
            got = file.readinto(view[:_CHUNK])  # type: ignore[attr-defined]
            if not got:
                raise InputError(f"{self.where} ends too early: the file was cut off; get it again")
            view = view[got:]


_STAGE = threading.local()


def _piece() -> Tensor:
    """Bytes to read into before a cast, kept for each thread: freed ones would lie scattered between the weights."""
    import torch

    if not hasattr(_STAGE, "piece"):
        _STAGE.piece = torch.empty(_PIECE, dtype=torch.uint8)
    return _STAGE.piece


@dataclass(frozen=True)
class Held(Weight):
    """A tensor that is in memory already."""

    tensor: Any
    where: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return str(self.tensor.dtype).removeprefix("torch.")

    def read(self) -> Tensor:
        return self.tensor.detach()


@dataclass(frozen=True)
class Computed(Weight):
    """A tensor that is made from others when it is read."""

    shape: tuple[int, ...]
    dtype: str
    where: str
    make: Callable[[], Any]
    source: Weight | None = None  # whose type on disk it has

    @property
    def stored(self) -> str:
        return self.dtype if self.source is None else self.source.stored

    def read(self) -> Tensor:
        return self.make()


def cast(weight: Weight, dtype: str) -> Weight:
    """The same numbers in another type, read straight into it."""
    if weight.dtype == dtype:
        return weight

    def make() -> Tensor:
        import torch

        tensor = torch.empty(weight.shape, dtype=getattr(torch, dtype))
        weight.read_into(tensor)
        return tensor

    return Computed(weight.shape, dtype, weight.where, make)


def resized(weight: Weight, rows: int) -> Weight:
    """The first `rows` rows of a weight, with rows of zeros behind where it has fewer."""
    if weight.shape[0] == rows:
        return weight

    def make() -> Tensor:
        import torch

        whole = torch.zeros(max(rows, weight.shape[0]), *weight.shape[1:], dtype=getattr(torch, weight.dtype))
        weight.read_into(whole[: weight.shape[0]])
        return whole[:rows]

    return Computed((rows, *weight.shape[1:]), weight.dtype, weight.where, make, weight)


# --- reading --------------------------------------------------------------------------------------


def weights_in(folder: Path, stems: tuple[str, ...] = ("model", "pytorch_model")) -> dict[str, Weight]:
    """All tensors of the model files of a folder: safetensors if there are any, otherwise `.bin`; sharded or not.

    Raises:
        InputError: a shard is missing, cut off, no such file, or a pickle that holds more than tensors.
    """
    for suffix in (".safetensors", ".bin"):
        for stem in stems:
            files = _shards(folder, stem, suffix)
            if files:
                return {name: weight for file in files for name, weight in tensors_of(file).items()}
    return {}


def _shards(folder: Path, stem: str, suffix: str) -> list[Path]:
    index = folder / f"{stem}{suffix}.index.json"
    if index.is_file():
        listed = read_json(index)
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise InputError(f"{index} has no weight_map that says which file holds which tensor")
        files = [folder / name for name in sorted(set(names.values()))]
        if any(file.parent != folder for file in files):
            raise InputError(f"{index} names files outside its own folder")
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is missing: {index.name} lists {len(files)} files; get the missing one")
        found = {name: file.name for file in files for name in tensors_of(file)}
        for name, file_name in names.items():
            if found.get(name) is None:
                raise InputError(f"{folder / file_name} does not hold {name}, which {index.name} expects there")
        return files
    whole = folder / f"{stem}{suffix}"
    if whole.is_file():
        return [whole]
    files = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
    if files:
        match = re.search(r"-of-(\d+)\.", files[0].name)
        expected = int(match[1]) if match else len(files)
        if len(files) != expected:
            raise InputError(f"{folder} holds {len(files)} of the {expected} files {stem}-*-of-*{suffix}; get the rest")
    return files


def tensors_of(file: Path) -> dict[str, Weight]:
    """The tensors of one `.safetensors` or `.bin` (`.pt`) file, by name."""
    return _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> dict[str, Weight]:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8 or length > 100_000_000:
            raise InputError(f"{file} is cut off or no safetensors file ({size} bytes); get it again")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise InputError(f"{file} is no safetensors file: its header is no JSON object")
    found: dict[str, Weight] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, width = TYPES[entry["dtype"]]
            shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
            sound = all(isinstance(one, int) and one >= 0 for one in (*shape, start, stop))
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise InputError(f"{file}: {name} is of a kind that is not read: {entry}")
        if stop - start != math.prod(shape) * width:
            raise InputError(f"{file}: {name} takes {stop - start} bytes, not what its shape {shape} needs")
        found[name] = Stored(file, shape, dtype, 8 + length + start, f"{file}: {name}")
        end = max(end, stop)
    if 8 + length + end != size:
        what = "is cut off" if size < 8 + length + end else "has bytes that belong to no tensor"
        raise InputError(f"{file} {what}: {8 + length + end} bytes are described, {size} are there; get it again")
    return found


def _pickled(file: Path) -> dict[str, Weight]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    zipped = _is_torch_zip(file)
    try:
        if zipped:
            with FakeTensorMode():  # the table alone: names, shapes, and where each tensor lies in the file
                content = torch.load(file, map_location="cpu", weights_only=True)
        else:  # torch before 1.6: no table; the file is read whole
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} is refused: it is a pickle that holds more than tensors and could run code when opened "
            f"({_culprit(str(error))}). Get the weights as safetensors from a source that you trust"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200] or "it is empty or cut off; get it again"
        raise InputError(f"{file} cannot be read as weights: {reason}") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds a {type(content).__name__}, expected tensors by name")
    content = content.get("state_dict", content) if isinstance(content.get("state_dict"), Mapping) else content
    return {
        name: _entry(file, name, one, zipped)
        for name, one in content.items()
        if isinstance(name, str) and isinstance(one, torch.Tensor)
    }


def _is_torch_zip(file: Path) -> bool:
    """Whether the tensors lie in the file as they are in memory, at places that its table tells."""
    with open(file, "rb") as stream:
        if stream.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    except zipfile.BadZipFile:
        raise InputError(
            f"{file} is cut off ({file.stat().st_size} bytes): its table at the end is missing; get it again"
        ) from None
    if packed:
        raise InputError(f"{file} was compressed after torch saved it ({packed[0]}); save it again with torch.save")
    return True


def _entry(file: Path, name: str, tensor: Any, zipped: bool) -> Weight:
    where, shape, dtype = f"{file}: {name}", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if dtype not in CODES or str(tensor.layout) != "torch.strided":
        raise InputError(f"{where} is a {dtype} tensor, laid out as {tensor.layout}; dense plain numbers are read")
    if not zipped:
        return Held(tensor, where)
    width, start = CODES[dtype][1], tensor.untyped_storage()._checkpoint_offset
    if tensor.is_contiguous():
        return Stored(file, shape, dtype, start + tensor.storage_offset() * width, where)
    length = tensor.untyped_storage().nbytes() // width
    storage = Stored(file, (length,), dtype, start, where)
    stride, offset = tensor.stride(), tensor.storage_offset()
    return Computed(shape, dtype, where, lambda: storage.read().as_strided(shape, stride, offset).contiguous())


def _culprit(message: str) -> str:
    match = re.search(r"(?:GLOBAL|function|class|callable)[^\n]*?\b([A-Za-z_][\w.]*\.[\w.]+)", message)
    return match[1] if match else "torch's weights_only=True does not read it"
