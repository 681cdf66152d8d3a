"""Checkpoints in LLaVA's layout written by hand, and what they compute, in plain torch by the original's names."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    width: int = 40
    mlp: int = 72
    layers: int = 3
    heads: int = 5
    groups: int = 5
    vocabulary: int = 1000
    vision: int = 24
    vision_heads: int = 3
    vision_layers: int = 3
    image: int = 42
    patch: int = 14
    eps: float = 1e-5
    theta: float = 10000.0


def draw(shape: Shape, seed: int, dtype: torch.dtype, linear: bool) -> tuple[Tensors, Tensors]:
    """(language model and projector, vision tower) by the original's names; the tower as `vision_model.*`."""
    generator = torch.Generator().manual_seed(seed)

    def make(*sizes: int, scale: float | None = None, shift: float = 0.0) -> torch.Tensor:
        scale = 1 / math.sqrt(sizes[-1]) if scale is None else scale
        return (torch.randn(*sizes, generator=generator) * scale + shift).to(dtype)

    head = shape.width // shape.heads
    text = {
        "model.embed_tokens.weight": make(shape.vocabulary, shape.width, scale=1.0),
        "model.norm.weight": make(shape.width, scale=0.1, shift=1.0),
        "lm_head.weight": make(shape.vocabulary, shape.width),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", shape.heads), ("k", shape.groups), ("v", shape.groups)):
            text[f"{prefix}self_attn.{name}_proj.weight"] = make(rows * head, shape.width)
        text[f"{prefix}self_attn.o_proj.weight"] = make(shape.width, shape.heads * head)
        text[f"{prefix}self_attn.rotary_emb.inv_freq"] = torch.ones(head // 2)  # as old versions stored it
        for name in ("gate", "up"):
            text[f"{prefix}mlp.{name}_proj.weight"] = make(shape.mlp, shape.width)
        text[f"{prefix}mlp.down_proj.weight"] = make(shape.width, shape.mlp)
        for name in ("input_layernorm", "post_attention_layernorm"):
            text[f"{prefix}{name}.weight"] = make(shape.width, scale=0.1, shift=1.0)
    if linear:
        text["model.mm_projector.weight"] = make(shape.width, shape.vision)
        text["model.mm_projector.bias"] = make(shape.width, scale=0.1)
    else:
        text["model.mm_projector.0.weight"] = make(shape.width, shape.vision)
        text["model.mm_projector.0.bias"] = make(shape.width, scale=0.1)
        text["model.mm_projector.2.weight"] = make(shape.width, shape.width)
        text["model.mm_projector.2.bias"] = make(shape.width, scale=0.1)
    return text, _draw_tower(shape, make)


def _draw_tower(shape: Shape, make: Any) -> Tensors:
    side = shape.image // shape.patch
    tower = {
        "embeddings.class_embedding": make(shape.vision, scale=0.5),
        "embeddings.patch_embedding.weight": make(shape.vision, 3, shape.patch, shape.patch, scale=0.05),
        "embeddings.position_embedding.weight": make(side * side + 1, shape.vision, scale=0.5),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(shape.vision_layers):
        prefix = f"encoder.layers.{layer}."
        norms += [f"{prefix}layer_norm1", f"{prefix}layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tower[f"{prefix}self_attn.{name}.weight"] = make(shape.vision, shape.vision)
            tower[f"{prefix}self_attn.{name}.bias"] = make(shape.vision, scale=0.1)
        for name, sizes in (("fc1", (4 * shape.vision, shape.vision)), ("fc2", (shape.vision, 4 * shape.vision))):
            tower[f"{prefix}mlp.{name}.weight"] = make(*sizes)
            tower[f"{prefix}mlp.{name}.bias"] = make(sizes[0], scale=0.1)
    for name in norms:
        tower[f"{name}.weight"] = make(shape.vision, scale=0.1, shift=1.0)
        tower[f"{name}.bias"] = make(shape.vision, scale=0.1)
    return {f"vision_model.{name}": tensor for name, tensor in tower.items()}


# --- folders --------------------------------------------------------------------------------------


def llama_config(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": shape.width, "intermediate_size": shape.mlp, "hidden_act": "silu",
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.groups,
        "vocab_size": shape.vocabulary, "rms_norm_eps": shape.eps, "rope_theta": shape.theta, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": -1, "max_position_embeddings": 512, "tie_word_embeddings": False,
    }  # fmt: skip


def llava_config(shape: Shape, tower: str, linear: bool) -> dict[str, Any]:
    return {
        **llama_config(shape), "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"],
        "mm_projector_type": "linear" if linear else "mlp2x_gelu", "mm_vision_tower": tower, "mm_hidden_size": shape.vision,
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "use_mm_proj": True,
    }  # fmt: skip


def write_clip(folder: Path, shape: Shape, tower: Tensors) -> None:
    """As the published CLIP repositories: one .bin, text half and position ids included."""
    folder.mkdir(parents=True)
    rest = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.tensor(2.6)}
    ids = torch.arange((shape.image // shape.patch) ** 2 + 1)[None]
    torch.save({**tower, **rest, "vision_model.embeddings.position_ids": ids}, folder / "pytorch_model.bin")
    vision = {
        "hidden_size": shape.vision, "intermediate_size": 4 * shape.vision, "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads, "image_size": shape.image, "patch_size": shape.patch,
        "hidden_act": "quick_gelu", "model_type": "clip_vision_model", "projection_dim": 8,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    pixels = {
        "size": shape.image, "crop_size": shape.image, "do_center_crop": True, "do_normalize": True, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


def write_tokenizer(folder: Path, source: Path, legacy: bool | None) -> None:
    shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("legacy")
    if legacy is not None:
        settings["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_bin_shards(folder: Path, tensors: Tensors, count: int) -> None:
    names = sorted(tensors)
    files = [f"pytorch_model-{number:05d}-of-{count:05d}.bin" for number in range(1, count + 1)]
    where = {name: files[index % count] for index, name in enumerate(names)}
    for file in files:
        torch.save({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


# --- what it computes -----------------------------------------------------------------------------


def original_logits(shape: Shape, text: Tensors, tower: Tensors, ids: list[int], pixels: torch.Tensor) -> torch.Tensor:
    """Logits `[positions, vocabulary]` of a prompt whose ids hold -200 for the image, in float32."""
    text = {name: tensor.float() for name, tensor in text.items()}
    features = _vision(shape, {name: tensor.float() for name, tensor in tower.items()}, pixels)
    if "model.mm_projector.weight" in text:
        image = features @ text["model.mm_projector.weight"].T + text["model.mm_projector.bias"]
    else:
        hidden = functional.gelu(features @ text["model.mm_projector.0.weight"].T + text["model.mm_projector.0.bias"])
        image = hidden @ text["model.mm_projector.2.weight"].T + text["model.mm_projector.2.bias"]
    place = ids.index(-200)
    embedding = text["model.embed_tokens.weight"]
    x = torch.cat([embedding[ids[:place]], image, embedding[ids[place + 1 :]]])
    for layer in range(shape.layers):
        x = _block(shape, text, f"model.layers.{layer}.", x)
    return _rms(x, text["model.norm.weight"], shape.eps) @ text["lm_head.weight"].T


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _block(shape: Shape, text: Tensors, prefix: str, x: torch.Tensor) -> torch.Tensor:
    length, head = len(x), shape.width // shape.heads
    y = _rms(x, text[f"{prefix}input_layernorm.weight"], shape.eps)
    rows = {}
    for name, count in (("q", shape.heads), ("k", shape.groups), ("v", shape.groups)):
        rows[name] = (y @ text[f"{prefix}self_attn.{name}_proj.weight"].T).view(length, count, head).transpose(0, 1)
    angles = torch.arange(length)[:, None] / shape.theta ** (torch.arange(0, head, 2) / head)[None]
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def turn(z: torch.Tensor) -> torch.Tensor:
        first, second = z.chunk(2, -1)
        return z * cos + torch.cat([-second, first], -1) * sin

    repeat = shape.heads // shape.groups
    q, k = turn(rows["q"]), turn(rows["k"]).repeat_interleave(repeat, 0)
    scores = q @ k.transpose(1, 2) / math.sqrt(head)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ rows["v"].repeat_interleave(repeat, 0)).transpose(0, 1).reshape(length, -1)
    x = x + mixed @ text[f"{prefix}self_attn.o_proj.weight"].T
    y = _rms(x, text[f"{prefix}post_attention_layernorm.weight"], shape.eps)
    gate = functional.silu(y @ text[f"{prefix}mlp.gate_proj.weight"].T) * (y @ text[f"{prefix}mlp.up_proj.weight"].T)
    return x + gate @ text[f"{prefix}mlp.down_proj.weight"].T


def _vision(shape: Shape, tower: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """Hidden states of the last layer but one, `[patches, width]`, without the class token."""
    t = {name.removeprefix("vision_model."): tensor for name, tensor in tower.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (shape.vision,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    patches = functional.conv2d(pixels, t["embeddings.patch_embedding.weight"], stride=shape.patch)[0].flatten(1).T
    x = torch.cat([t["embeddings.class_embedding"][None], patches]) + t["embeddings.position_embedding.weight"]
    x = norm(x, "pre_layrnorm")
    head = shape.vision // shape.vision_heads
    for layer in range(shape.vision_layers - 1):
        prefix = f"encoder.layers.{layer}."
        y = norm(x, f"{prefix}layer_norm1")
        q, k, v = (
            linear(y, f"{prefix}self_attn.{name}_proj").view(len(x), -1, head).transpose(0, 1)
            for name in ("q", "k", "v")
        )
        weights = (q @ k.transpose(1, 2) / math.sqrt(head)).softmax(-1)
        mixed = (weights @ v).transpose(0, 1).reshape(len(x), -1)
        x = x + linear(mixed, f"{prefix}self_attn.out_proj")
        y = linear(norm(x, f"{prefix}layer_norm2"), f"{prefix}mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{prefix}mlp.fc2")
    return x[1:]
