"""Checkpoints in LLaVA's layout: drawn tensors by the original's names, the files they come in, and their logits.

`draw_checkpoint(seed, ...)` writes one of a kind drawn from a seed: shapes, types, files, tokenizer, and where the tower is.
"""

import json
import random
import shutil
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

Tensors = dict[str, torch.Tensor]
KINDS = ("whole", "lora", "lora over a LLaVA", "projector", "projector over a LLaVA")
# Prefixes of transformers' names, and the original's.
PREFIXES = {
    "model.language_model.": "model.", "model.vision_tower.": "vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.", "model.multi_modal_projector.": "model.mm_projector.",
}  # fmt: skip


SHAPE = {
    "width": 40, "mlp": 72, "layers": 3, "heads": 5, "groups": 5, "vocabulary": 1000, "vision": 24, "vision_heads": 3,
    "vision_layers": 3, "image": 42, "patch": 14, "eps": 1e-5, "theta": 10000.0,
}  # fmt: skip
Shape = namedtuple("Shape", SHAPE, defaults=SHAPE.values())


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


def clip_config(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.vision, "intermediate_size": 4 * shape.vision, "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads, "image_size": shape.image, "patch_size": shape.patch,
        "hidden_act": "quick_gelu", "model_type": "clip_vision_model", "projection_dim": 8,
    }  # fmt: skip


def stock_model(shape: Shape, linear: bool) -> Any:
    """The architecture in plain transformers, for the weights of the original."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {**llama_config(shape), "pad_token_id": None}
    config = LlavaConfig(text_config=text, vision_config=clip_config(shape), image_token_index=0,
                         tie_word_embeddings=False)  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    if linear:
        model.model.multi_modal_projector = nn.Linear(shape.vision, shape.width)
    return model.eval()


def original_name(name: str) -> str:
    for prefix, original in PREFIXES.items():
        if name.startswith(prefix):
            return original + name.removeprefix(prefix)
    return name


def inside_names(tower: Tensors) -> Tensors:
    """The tower's tensors by their names inside a LLaVA checkpoint."""
    return {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}


def draw_tensors(shape: Shape, seed: int, dtype: torch.dtype, linear: bool) -> tuple[Tensors, Tensors]:
    """(language model and projector, vision tower) by the original's names; the tower as `vision_model.*`."""
    generator, text, tower = torch.Generator().manual_seed(seed), {}, {}
    with torch.device("meta"):
        parameters = dict(stock_model(shape, linear).named_parameters())
    for name, parameter in parameters.items():
        tensor = torch.randn(parameter.shape, generator=generator, device="cpu")
        if "embed" not in name:
            norm = "norm" in name and name.endswith("weight")
            tensor = tensor * (0.1 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5) + norm
        original = original_name(name)
        (tower if original.startswith("vision_model.") else text)[original] = tensor.to(dtype)
    for layer in range(shape.layers):  # as old versions stored it
        text[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(shape.width // shape.heads // 2)
    return text, tower


def original_logits(shape: Shape, text: Tensors, tower: Tensors, ids: list[int], pixels: torch.Tensor) -> torch.Tensor:
    """Logits `[positions, vocabulary]` of a prompt whose ids hold -200 for the image, in float32."""
    model, weights = stock_model(shape, "model.mm_projector.weight" in text), {**text, **tower}
    model.load_state_dict({name: weights[original_name(name)].float() for name in model.state_dict()})
    image = ids.index(-200)
    expanded = [*ids[:image], *[0] * (shape.image // shape.patch) ** 2, *ids[image + 1 :]]
    with torch.no_grad():
        return model(input_ids=torch.tensor([expanded]), pixel_values=pixels).logits[0]


def write_clip(folder: Path, shape: Shape, tower: Tensors) -> None:
    """As the published CLIP repositories: one .bin, text half and position ids included."""
    folder.mkdir(parents=True)
    rest = {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.tensor(2.6)}
    ids = torch.arange((shape.image // shape.patch) ** 2 + 1)[None]
    torch.save({**tower, **rest, "vision_model.embeddings.position_ids": ids}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": clip_config(shape)}))
    pixels = {
        "size": shape.image, "crop_size": shape.image, "do_center_crop": True, "do_normalize": True, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def write_tokenizer(folder: Path, source: Path, legacy: bool | None) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"legacy": legacy}
    settings = {name: value for name, value in settings.items() if value is not None or name != "legacy"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_shards(folder: Path, names: list[str], tensors: Tensors, count: int, suffix: str, index: bool = True) -> None:
    stem, save = ("pytorch_model", torch.save) if suffix == "bin" else ("model", save_file)
    files = [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]
    for number, file in enumerate(files):
        save({name: tensors[name].contiguous() for name in names[number::count]}, folder / file)
    if index:
        weight_map = {name: files[number % count] for number, name in enumerate(names)}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_weights(folder: Path, tensors: Tensors, rng: random.Random) -> None:
    """The tensors in one of the ways that model files come in; an index beside shards is a help, not a need."""
    way, names = rng.choice(["safetensors", "safetensors shards", "bin", "bin shards", "bin of old"]), sorted(tensors)
    if way == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    elif way.endswith("shards"):
        rng.shuffle(names)
        index = way == "bin shards" or rng.random() < 0.8
        write_shards(folder, names, tensors, rng.randint(2, 4), way.split()[0], index)
    else:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=way == "bin")


@dataclass(frozen=True)
class Drawn:
    """A checkpoint, and the tensors, by the original's names, that a right loader ends up with."""

    source: Path
    base: Path | None
    shape: Shape
    text: Tensors
    tower: Tensors


def draw_checkpoint(seed: int, kind: str, root: Path, tokenizer: Path) -> Drawn:
    """A checkpoint of `kind` below `root`, its base and its tower beside it."""
    rng = random.Random(f"{seed} {kind}")
    shape, linear = draw_shape(rng), rng.random() < 0.4
    text, tower = draw_tensors(shape, seed, rng.choice([torch.float16, torch.bfloat16, torch.float32]), linear)
    over_llava = "LLaVA" in kind
    inside = (over_llava or kind == "whole") and rng.random() < 0.5
    trained = kind.startswith("lora") and rng.random() < 0.4  # the tower is in the adapter's own file
    outside = {name: torch.zeros_like(tensor) for name, tensor in tower.items()} if inside or trained else tower
    source, base, eyes = root / "models" / "source", root / "models" / "base", root / "eyes"
    config = llava_config(shape, rng.choice([str(eyes), "../../eyes"]), linear)
    source.mkdir(parents=True)
    write_clip(eyes, shape, outside)
    (source / "config.json").write_text(json.dumps(config))
    complete = text | inside_names(tower) if inside else text
    if kind == "whole":
        write_weights(source, complete, rng)
        write_tokenizer(source, tokenizer, rng.choice([True, False, None]))
        return Drawn(source, None, shape, text, tower)
    write_tokenizer(base, tokenizer, rng.choice([True, False, None]))
    llm = {name: tensor for name, tensor in text.items() if "mm_projector" not in name}
    write_weights(base, complete if over_llava else llm, rng)
    (base / "config.json").write_text(json.dumps(config if over_llava else llama_config(shape)))
    rest = {name: tensor.float() * 1.5 for name, tensor in text.items() if "mm_projector" in name}
    if kind.startswith("projector"):
        torch.save(rest, source / "mm_projector.bin")
        return Drawn(source, base, shape, {**text, **rest}, tower)
    if rng.random() < 0.3:
        rest |= {name: text[name].float() * 1.1 for name in ("model.embed_tokens.weight", "lm_head.weight")}
    merged = {**write_lora(source, llm, seed, rng), **rest}
    if trained:
        tower = {name: tensor.float() * 1.01 for name, tensor in tower.items()}
        rest |= inside_names(tower)
    torch.save({f"base_model.model.{key}": one for key, one in rest.items()}, source / "non_lora_trainables.bin")
    return Drawn(source, base, shape, merged, tower)


def draw_shape(rng: random.Random) -> Shape:
    heads, head, vision_heads = rng.choice([2, 4, 6]), rng.choice([8, 16]), rng.choice([2, 3])
    groups = rng.choice([count for count in (1, 2, heads) if heads % count == 0])
    return Shape(
        heads * head, rng.choice([40, 72, 100]), rng.randint(1, 2), heads, groups, rng.choice([1000, 1001, 1003]),
        vision_heads * 8, vision_heads, rng.randint(2, 3), rng.choice([28, 42, 56]), rng.choice([7, 14]),
        rng.choice([1e-5, 1e-6]), rng.choice([1e4, 5e3, 1e6]),
    )  # fmt: skip


def write_lora(folder: Path, weights: Tensors, seed: int, rng: random.Random) -> Tensors:
    """Write factors for some of the matrices; returns the weights with them merged."""
    generator = torch.Generator().manual_seed(seed + 1)
    rank, alpha = rng.choice([2, 4]), rng.choice([4, 16])
    complete = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    targets = rng.choice([("q_proj", "down_proj"), complete])
    factors, merged = {}, dict(weights)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(targets):
            down = torch.randn(rank, weight.shape[1], generator=generator) * 0.05
            up = torch.randn(weight.shape[0], rank, generator=generator) * 0.05
            factors[f"base_model.model.{module}.lora_A.weight"] = down
            factors[f"base_model.model.{module}.lora_B.weight"] = up
            merged[name] = weight.float() + alpha / rank * up @ down
    pickled = rng.random() < 0.5
    file = folder / f"adapter_model.{'bin' if pickled else 'safetensors'}"
    torch.save(factors, file) if pickled else save_file(factors, file)
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "/gone"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return merged
