"""Load a model from a folder, recognised by its contents, and save one in the standard formats.

A checkpoint of ours is what `LlavaForConditionalGeneration.save_pretrained` and `LlavaProcessor.save_pretrained`
write, or a PEFT adapter (with the projector as a saved module) over such a folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from ..command import InputError
from ..prompts import IMAGE_ID, IMAGE_TAG, Rendered, encode
from ..records import read_json
from . import build as building
from .presets import PRESETS


@dataclass
class Checkpoint:
    """A model with everything that turns pictures and text into its inputs."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    name: str
    path: str

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_index)

    @property
    def patches(self) -> int:
        """Patches along a side of the padded square; an image is `patches ** 2` tokens."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """`[images, 3, side, side]`: padded to a square, resized and normalised as CLIP's."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def expand(self, ids: Sequence[int]) -> list[int]:
        """Encoded ids with every image placeholder replaced by the image's tokens."""
        image = [self.image_token_id] * self.patches**2
        return [token for one in ids for token in (image if one == IMAGE_ID else (one,))]

    def inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """A left-padded batch for `generate`, on the model's device: one image and one open prompt a row."""
        rows = [self.expand(encode(self.tokenizer, Rendered(prompt, ())).input_ids) for prompt in prompts]
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
            "pixel_values": self.pixels(images).to(self.model.dtype),
        }
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}


def load(
    path: str | Path, base: str | Path | None = None, dtype: str = "float32", device: str = "cpu", **options: Any
) -> Checkpoint:
    """Load a checkpoint for inference.

    Args:
        path: a folder in Hugging Face's LLaVA format, a PEFT adapter over one, or the name of a preset for random
            weights (`nano`).
        base: the folder an adapter belongs to; by default the one it names.
        dtype: the weights' type in memory, as torch names it.
        options: passed on to `from_pretrained` (attn_implementation, device_map, ...).
    Raises:
        InputError: the folder is no model, or of a kind that is not read; the message says what was found.
    """
    path = Path(path)
    if str(path) in PRESETS and not path.exists():
        return from_preset(str(path), device=device, dtype=dtype)
    if not path.is_dir():
        raise InputError(f"the model {path} is no folder; presets are {', '.join(PRESETS)}")
    if (path / "adapter_config.json").is_file():
        return _load_adapter(path, base, dtype, device, options)
    kind = _model_type(path)
    if kind != "llava":
        raise InputError(
            f"{path}/config.json describes a {kind!r} model; expected 'llava' (Hugging Face's LLaVA format)"
        )
    try:
        model = LlavaForConditionalGeneration.from_pretrained(path, dtype=getattr(torch, dtype), **options)
        processor = LlavaProcessor.from_pretrained(path, backend="pil")
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
    return Checkpoint(model.to(device).eval(), processor, path.resolve().name, str(path))


def from_preset(name: str, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> Checkpoint:
    """A model with random weights; only presets whose tokenizer ships with the package can speak."""
    preset = PRESETS[name]
    if name != "nano":
        raise InputError(f"{name} needs weights: give a folder or the names of its parts ({dict(preset.sources)})")
    tokenizer = building.nano_tokenizer()
    model = building.build(preset, tokenizer, seed=seed)
    processor = building.processor(tokenizer, model.config.vision_config)
    return Checkpoint(model.to(device, getattr(torch, dtype)).eval(), processor, name, name)


def compose(llm: str, vision: str, projector: str | None = None, seed: int = 0, **options: Any) -> Checkpoint:
    """A starting point for training: a language model, a CLIP vision tower, and LLaVA's pre-trained projector.

    Args:
        llm, vision: folders or names on the hub (Llama architecture; CLIP).
        projector: folder or name that holds `mm_projector.bin`; random weights from `seed` when absent.
    """
    try:
        text = LlamaForCausalLM.from_pretrained(llm, dtype=torch.float32, **options)
        tower = CLIPVisionModel.from_pretrained(vision, dtype=torch.float32)
        tokenizer = building.with_image_token(AutoTokenizer.from_pretrained(llm))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{llm} with {vision} cannot be loaded: {str(error).splitlines()[0]}") from None
    text.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=building.VOCABULARY_MULTIPLE)
    config = building.llava_configuration(text.config, tower.config, tokenizer.convert_tokens_to_ids(IMAGE_TAG))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model, model.lm_head, model.model.vision_tower = text.model, text.lm_head, tower
    model.model.multi_modal_projector = building.random_projector(config, seed)
    if projector is not None:
        _load_projector(model.model.multi_modal_projector, projector)
    model.generation_config = text.generation_config
    name = f"{Path(llm).name}+{Path(vision).name}"
    return Checkpoint(model.eval(), building.processor(tokenizer, tower.config), name, name)


def _load_projector(module: torch.nn.Module, source: str) -> None:
    """LLaVA's `mm_projector.bin`: keys `model.mm_projector.{0,2}.{weight,bias}` of the two linear layers."""
    file = Path(source) / "mm_projector.bin"
    if not file.is_file():
        file = Path(hf_hub_download(source, "mm_projector.bin"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    names = {"0": "linear_1", "2": "linear_2"}
    found = {f"{names[layer]}.{kind}": tensor.float() for layer, kind, tensor in _projector_layers(weights, file)}
    wanted = module.state_dict()
    for key in sorted(set(wanted) | set(found)):
        if key not in found or key not in wanted or found[key].shape != wanted[key].shape:
            have = tuple(found[key].shape) if key in found else "nothing"
            raise InputError(
                f"{file}: {key} is {have}, expected {tuple(wanted[key].shape) if key in wanted else 'nothing'}"
            )
    module.load_state_dict(found)


def _projector_layers(weights: dict[str, Tensor], file: Path) -> Iterator[tuple[str, str, Tensor]]:
    for key, tensor in weights.items():
        *_, owner, layer, kind = ["", *key.split(".")]
        if owner != "mm_projector" or layer not in ("0", "2"):
            raise InputError(
                f"{file}: {key} is no weight of a two-layer MLP projector (mm_projector.0, mm_projector.2)"
            )
        yield layer, kind, tensor


def _model_type(path: Path) -> str:
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is no model: it holds neither config.json nor adapter_config.json")
    found = read_json(config)
    return str(found.get("model_type", "unnamed")) if isinstance(found, dict) else "unnamed"


def _load_adapter(path: Path, base: str | Path | None, dtype: str, device: str, options: dict[str, Any]) -> Checkpoint:
    from peft import PeftModel

    named = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if base is None and not named:
        raise InputError(f"{path} is an adapter that names no base model; give one with --model-base")
    under = load(base or named, None, dtype, device, **options)
    try:
        adapted = PeftModel.from_pretrained(under.model, str(path)).merge_and_unload()
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"the adapter {path} does not fit {base or named}: {str(error).splitlines()[0]}") from None
    return Checkpoint(adapted.eval(), under.processor, path.resolve().name, str(path))


def save(checkpoint: Checkpoint, path: str | Path, dtype: str | None = None) -> None:
    """Write model and processor as one folder that plain transformers loads; appears whole or not at all.

    Args:
        path: must not exist, or be an empty folder.
        dtype: the type on disk; by default the one in memory.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise InputError(f"{path} is not empty; choose another folder for the model")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        model = checkpoint.model
        state = None
        if dtype is not None:
            state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
        model.save_pretrained(unfinished, state_dict=state)
        checkpoint.processor.save_pretrained(unfinished)
        if dtype is not None:
            _declare_dtype(unfinished / "config.json", dtype)
        unfinished.chmod(0o755)
        if path.exists():
            path.rmdir()
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _declare_dtype(config: Path, dtype: str) -> None:
    found = json.loads(config.read_text())
    found["dtype"] = dtype
    config.write_text(json.dumps(found, indent=2) + "\n")
