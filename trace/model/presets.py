"""Which model a name stands for: a folder, a bundled model, a preset, or a repository on the hub.

A preset is a configuration: exact dimensions, and the names of its parts on the hub. `build` makes a model of it with
random weights, `checkpoint` loads existing ones. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..utils.command import InputError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
# One that reasons, and one that points at once; the first is the default model.
BUNDLED = ("nano", "nano-direct")

CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip


def _llama(hidden: int, layers: int, heads: int, mlp: int, positions: int = 4096, vocabulary: int = 32064) -> Any:
    # Vicuna's vocabulary: 32000 pieces, the image placeholder, and padding to a multiple of 64.
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """`text` and `vision` are the keyword arguments of LlamaConfig and CLIPVisionConfig."""

    name: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    image_token_index: int = 32000
    sources: Mapping[str, str] = field(default_factory=dict)  # part -> name on the hub


_VICUNA_13B, _VICUNA_7B = _llama(5120, 40, 40, 13824), _llama(4096, 32, 32, 11008)
# Small enough to train on two CPU cores. Its vocabulary (0) is fitted to the nano tokenizer by `build`.
_NANO_TOWER = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 128,
    "patch_size": 16, "projection_dim": 128,
}  # fmt: skip
_SOURCES = {
    "llm": "lmsys/vicuna-{}-v1.5",
    "vision": "openai/clip-vit-large-patch14-336",
    "projector": "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-{}-v1.5",
}
PRESETS = {
    f"trace-{size}": Preset(
        f"trace-{size}", text, CLIP_L_336, sources={part: name.format(size) for part, name in _SOURCES.items()}
    )
    for size, text in (("13b", _VICUNA_13B), ("7b", _VICUNA_7B))
} | {
    "robopoint-13b": Preset(
        "robopoint-13b", _VICUNA_13B, CLIP_L_336, sources={"model": "wentao-yuan/robopoint-v1-vicuna-v1.5-13b"}
    ),
    "nano-random": Preset("nano-random", _llama(128, 4, 4, 352, 2048, 0), _NANO_TOWER, image_token_index=-1),
}


def bundled_models() -> dict[str, Path]:
    """Name -> folder of the models that ship with the package; the default model comes first."""
    return {name: ASSETS / name for name in BUNDLED if (ASSETS / name).is_dir()}


def default_model() -> Path:
    """The folder of the model that answers where none is named."""
    return next(iter(bundled_models().values()))


def resolve_model(path: str | Path) -> str | Path:
    """The folder of a bundled model for its name (`nano`, `nano-direct`); any other path or name unchanged."""
    return path if Path(path).exists() else bundled_models().get(str(path), path)


def is_preset(path: str | Path) -> bool:
    """Whether `path` names a preset; a folder of that name takes precedence."""
    return str(path) in PRESETS and not Path(path).exists()


HUB_SECONDS = 15.0
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_DOWNLOAD = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+$")
_FILES = [
    "*.json", "*.model", "*.jinja", "*.md", "LICENSE*", "NOTICE*", "USE_POLICY*",
    "non_lora_trainables.bin", "mm_projector.bin",
]  # fmt: skip


def is_hub_name(name: str) -> bool:
    """Whether `name` could be a repository on the hub: OWNER/NAME."""
    return _HUB_ID.match(name) is not None


def hub_repository(folder: Path) -> str | None:
    """OWNER/NAME if `folder` is a download in the hub's cache, where the folder itself is named after a commit."""
    match = _DOWNLOAD.search(str(folder.resolve()))
    return None if match is None else f"{match[1]}/{match[2]}"


def model_name(folder: Path) -> str:
    """The name of the model in `folder`: its repository's, or the folder's own."""
    return (hub_repository(folder) or folder.resolve().name).rpartition("/")[2]


def model_folder(name: str | Path, role: str, beside: Path | None = None) -> Path:
    """The folder of a model: a path, a bundled model, a folder beside a checkpoint, or a repository on the hub.

    Args:
        role: names the model in messages ("the base model").
        beside: the checkpoint that mentions a relative name: looked up in its folder, in that folder's parent, in the
            working directory, and at last on the hub.
    """
    path = Path(resolve_model(name)).expanduser()
    tried = [path] if path.is_absolute() or beside is None else [beside / path, beside.resolve().parent / path, path]
    for folder in tried:
        if folder.is_dir():
            return folder
    if is_hub_name(str(name)):
        return _download(str(name), role)
    places = ", ".join(str(folder) for folder in tried)
    raise InputError(f"{role} {name} is not found: neither a folder ({places}) nor OWNER/NAME on the hub")


def check_available(name: str | Path) -> None:
    """InputError unless a model's folder exists, or its name is in the hub's cache or on the hub; nothing is downloaded."""
    if Path(name).is_dir() or is_preset(name):
        return
    if not is_hub_name(str(name)):
        raise InputError(f"model: the folder {name} does not exist")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(str(name), allow_patterns=_FILES, local_files_only=True)
    except LocalEntryNotFoundError:
        try:
            HfApi().model_info(str(name), timeout=HUB_SECONDS)
        except _hub_errors() as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"model: {name} is neither in the hub's cache nor given by the hub: {reason}") from None


def _hub_errors() -> tuple[type[Exception], ...]:
    """OSError, and the error of the HTTP library that this version of huggingface_hub is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__))


def _download(name: str, role: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # many repositories hold both: one is enough
            folder = Path(snapshot_download(name, allow_patterns=["*.bin"]))
    except _hub_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"{role} {name} is not a folder and cannot be downloaded from the hub: {reason}"
        raise InputError(f"{problem}. Without a connection, copy the model here and give its folder") from None
    return folder
