"""Compose a model from a preset: an ordinary `LlavaForConditionalGeneration` and its processor.

The nano model starts from weights drawn here, with the scales that let two million parameters learn in minutes:
linear layers at 0.7 / sqrt(fan-in), what writes into the residual stream divided by sqrt(2 * layers), visible
embeddings, a small head, and position embeddings of the vision tower that start as two-dimensional sinusoids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed as deepspeed_integration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..core.prompts import IMAGE_TAG
from ..utils.command import InputError
from .llava_layout import hub_name
from .presets import Preset
from .processor import make_processor, with_image_token
from .vision_tower import pixel_settings

NANO_TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "nano-tokenizer"
VOCABULARY_MULTIPLE = 64


def build_model(
    preset: Preset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    weights: str | Mapping[str, str] = "random",
) -> LlavaForConditionalGeneration:
    """A model of the preset's dimensions, float32; with random weights on torch's current default device.

    Args:
        tokenizer: fits the vocabulary of a preset that leaves it open (`nano`); its image token must be in place.
        seed: of the random weights; torch's global generator is left as it was.
        weights: "random", or folders or names on the hub by part: `{"model": M}`, or `{"llm": L, "vision": V}` with a
            "projector" or a random one. `preset.sources` are the published ones.
    Raises:
        InputError: the weights are of other dimensions than the preset, or cannot be loaded.
    """
    if weights != "random":
        return _from_names(preset, weights, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(configuration(preset, tokenizer))
        if preset.name == "nano-random":
            _initialise_nano(model)
    return model


def _from_names(preset: Preset, weights: str | Mapping[str, str], seed: int) -> LlavaForConditionalGeneration:
    from .checkpoint import compose, load

    parts = {"model": weights} if isinstance(weights, str) else dict(weights)
    unknown = set(parts) - {"model", "llm", "vision", "projector"}
    if unknown or not ({"model"} == set(parts) or {"llm", "vision"} <= set(parts)):
        raise InputError(f"weights are {sorted(parts)}; expected model, or llm and vision with or without projector")
    model = (load(parts["model"]) if "model" in parts else compose(**parts, seed=seed)).model
    for wanted, config in ((preset.text, model.config.text_config), (preset.vision, model.config.vision_config)):
        for key, value in wanted.items():
            found = getattr(config, key)
            if value and found != value:
                raise InputError(f"{', '.join(parts.values())}: {key} is {found}, the preset {preset.name} has {value}")
    return model


def configuration(preset: Preset, tokenizer: PreTrainedTokenizerBase | None = None) -> LlavaConfig:
    text, image_token = dict(preset.text), preset.image_token_index
    if not text["vocab_size"]:
        if tokenizer is None:
            raise ValueError(f"the preset {preset.name} takes its vocabulary from a tokenizer: give one")
        text["vocab_size"] = math.ceil(len(tokenizer) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        image_token = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    vision = CLIPVisionConfig(**preset.vision)
    return llava_configuration(LlamaConfig(**text, bos_token_id=1, eos_token_id=2, pad_token_id=0), vision, image_token)


def llava_configuration(text: LlamaConfig, vision: CLIPVisionConfig, image_token: int) -> LlavaConfig:
    """LLaVA-1.5's composition: the tower's penultimate layer without the class token, a two-layer GELU projector."""
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def random_projector(config: LlavaConfig, seed: int) -> LlavaMultiModalProjector:
    """The projector of a composed model, drawn as torch draws linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaMultiModalProjector(config)


def nano_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer that ships with the package, with its image token."""
    return with_image_token(LlamaTokenizer.from_pretrained(NANO_TOKENIZER))


def build_processor(tokenizer: PreTrainedTokenizerBase, vision: CLIPVisionConfig) -> LlavaProcessor:
    """Pixels as LLaVA makes them (padded square, CLIP's resize and colours) and the training template for chats."""
    return make_processor(tokenizer, vision.patch_size, pixel_settings({}, vision.image_size, pad=True))


def expected_tensors(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Name (as on the hub) and shape of every tensor of a model of this configuration; nothing is allocated."""
    with torch.device("meta"), _without_zero3():
        state = LlavaForConditionalGeneration(config).state_dict()
    return {str(hub_name(name)): tuple(tensor.shape) for name, tensor in state.items()}


@contextmanager
def _without_zero3() -> Iterator[None]:
    """Inside, transformers makes whole models: under ZeRO-3 it would initialise a model that has shapes only."""
    found = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = found


@torch.no_grad()
def _initialise_nano(model: LlavaForConditionalGeneration) -> None:
    text, vision = model.config.text_config, model.config.vision_config
    residual = {"o_proj": text, "down_proj": text, "out_proj": vision, "fc2": vision}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            into_stream = residual.get(name.rsplit(".", 1)[-1])
            depth = math.sqrt(2 * into_stream.num_hidden_layers) if into_stream is not None else 1.0
            nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features) / depth)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    embeddings: Any = model.model.vision_tower.embeddings
    fan_in = embeddings.patch_embedding.weight[0].numel()
    nn.init.normal_(embeddings.patch_embedding.weight, std=0.7 / math.sqrt(fan_in))
    embeddings.position_embedding.weight[1:] = _sinusoids(vision.image_size // vision.patch_size, vision.hidden_size)


def _sinusoids(side: int, width: int) -> torch.Tensor:
    """Two-dimensional sin-cos positions, `[side * side, width]`, half the width for each axis."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies[None, :]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)
