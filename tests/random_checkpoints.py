"""Checkpoints of every kind drawn from a seed: shapes, types, files, tokenizer, and where the tower lies.

`draw(seed, ...)` writes one and says what it means: the tensors, by the original's names, that a right loader ends up with.
What a model of them computes is `checkpoints_by_hand.original_logits`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import checkpoints_by_hand as hand
import torch
from checkpoints_by_hand import Shape, Tensors
from safetensors.torch import save_file

KINDS = ("whole", "lora", "lora over a LLaVA", "projector", "projector over a LLaVA")


@dataclass(frozen=True)
class Drawn:
    kind: str
    source: Path
    base: Path | None
    shape: Shape
    text: Tensors
    tower: Tensors


def draw(seed: int, kind: str, root: Path, tokenizer: Path) -> Drawn:
    """A checkpoint of `kind` below `root`, its base and its tower beside it."""
    rng = random.Random(f"{seed} {kind}")
    shape, linear = _shape(rng), rng.random() < 0.4
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32])
    text, tower = hand.draw(shape, seed, dtype, linear)
    over_llava = "LLaVA" in kind
    inside = (over_llava or kind == "whole") and rng.random() < 0.5
    trained = kind.startswith("lora") and rng.random() < 0.4  # the tower lies in the adapter's own file
    decoy = {name: torch.zeros_like(one) for name, one in tower.items()}
    place = rng.choice(["beside", "above", "absolute"])
    source, whole = root / "models" / "source", root / "models" / "base"
    eyes = {"beside": source, "above": source.parent, "absolute": root}[place] / "eyes"
    config = hand.llava_config(shape, str(eyes) if place == "absolute" else "eyes", linear)
    source.mkdir(parents=True)
    hand.write_clip(eyes, shape, decoy if inside or trained else tower)
    (source / "config.json").write_text(json.dumps(config))
    held = {f"model.vision_tower.vision_tower.{name}": one for name, one in tower.items()} if inside else {}
    if kind == "whole":
        _write(source, {**text, **held}, rng)
        hand.write_tokenizer(source, tokenizer, rng.choice([True, False, None]))
        return Drawn(kind, source, None, shape, text, tower)
    whole.mkdir()
    alone = {name: one for name, one in text.items() if "mm_projector" not in name}
    if over_llava and place == "beside":
        hand.write_clip(whole / "eyes", shape, decoy if inside or trained else tower)
    _write(whole, {**text, **held} if over_llava else alone, rng)
    (whole / "config.json").write_text(json.dumps(config if over_llava else hand.llama_config(shape)))
    hand.write_tokenizer(whole, tokenizer, rng.choice([True, False, None]))
    projector = {name: one.float() * 1.5 for name, one in text.items() if "mm_projector" in name}
    if kind.startswith("projector"):
        torch.save(projector, source / "mm_projector.bin")
        return Drawn(kind, source, whole, shape, {**text, **projector}, tower)
    rest = dict(projector)
    if rng.random() < 0.3:
        rest |= {name: text[name].float() * 1.1 for name in ("model.embed_tokens.weight", "lm_head.weight")}
    merged = {**_lora(source, alone, seed, rng), **rest}
    if trained:
        tower = {name: one.float() * 1.01 for name, one in tower.items()}
        rest |= {f"model.vision_tower.vision_tower.{name}": one for name, one in tower.items()}
    torch.save({f"base_model.model.{name}": one for name, one in rest.items()}, source / "non_lora_trainables.bin")
    return Drawn(kind, source, whole, shape, merged, tower)


def _shape(rng: random.Random) -> Shape:
    heads, head, vision_heads = rng.choice([2, 4, 6]), rng.choice([8, 16]), rng.choice([2, 3])
    return Shape(
        width=heads * head,
        mlp=rng.choice([40, 72, 100]),
        layers=rng.randint(1, 4),
        heads=heads,
        groups=rng.choice([count for count in (1, 2, heads) if heads % count == 0]),
        vocabulary=rng.choice([1000, 1001, 1003]),
        vision=vision_heads * 8,
        vision_heads=vision_heads,
        vision_layers=rng.randint(2, 4),
        image=rng.choice([28, 42, 56]),
        patch=rng.choice([7, 14]),
        eps=rng.choice([1e-5, 1e-6]),
        theta=rng.choice([1e4, 5e3, 1e6]),
    )


def _write(folder: Path, tensors: Tensors, rng: random.Random) -> None:
    """The tensors in one of the ways that model files come in."""
    way = rng.choice(["safetensors", "safetensors shards", "bin", "bin shards", "bin of old"])
    if way == "safetensors":
        save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors")
    elif way == "bin shards":
        hand.write_bin_shards(folder, tensors, rng.randint(2, 4))
    elif way == "safetensors shards":
        names, count = sorted(tensors), rng.randint(2, 4)
        rng.shuffle(names)
        files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for index, file in enumerate(files):
            save_file({name: tensors[name].contiguous() for name in names[index::count]}, folder / file)
        if rng.random() < 0.8:  # an index is a help, not a need
            where = {name: files[index % count] for index, name in enumerate(names)}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=way == "bin")


def _lora(folder: Path, weights: Tensors, seed: int, rng: random.Random) -> Tensors:
    """Write factors for some of the matrices; returns the weights with them merged."""
    generator = torch.Generator().manual_seed(seed + 1)
    rank, alpha = rng.choice([2, 4]), rng.choice([4, 16])
    everything = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    chosen = rng.choice([("q_proj", "down_proj"), everything])
    factors, merged = {}, dict(weights)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(chosen):
            down = torch.randn(rank, weight.shape[1], generator=generator) * 0.05
            up = torch.randn(weight.shape[0], rank, generator=generator) * 0.05
            factors[f"base_model.model.{module}.lora_A.weight"] = down
            factors[f"base_model.model.{module}.lora_B.weight"] = up
            merged[name] = weight.float() + alpha / rank * up @ down
    if rng.random() < 0.5:
        torch.save(factors, folder / "adapter_model.bin")
    else:
        save_file(factors, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "/gone"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return merged
