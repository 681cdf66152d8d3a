"""A tower from open_clip gives CLIPVisionModel's features. Skipped where the package, or a torchvision for it, is absent."""

from __future__ import annotations

import sys

import pytest
import torch

from trace_vlm.model.checkpoint import load
from trace_vlm.model.lazy_tensors import in_memory
from trace_vlm.model.vision_tower import clip_from_open_clip, find_tower, open_clip_tower
from trace_vlm.utils.command import InputError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 56, "layers": 3, "width": 128, "head_width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def open_clip():
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # the latter: a torchvision that does not fit torch
        pytest.skip(f"the extra openclip is not installed: {error}")
    return open_clip


def penultimate(model, pixels):
    with torch.no_grad():
        return model(pixels, output_hidden_states=True).hidden_states[-2]


@pytest.mark.parametrize("quick", [True, False], ids=["quickgelu", "gelu"])
def test_penultimate_features_are_equal(open_clip, tmp_path, quick):
    from open_clip.model import CLIP
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    model, pixels, outputs = CLIP(**TINY, quick_gelu=quick).eval(), torch.randn(2, 3, 56, 56), []
    model.visual.transformer.resblocks[-2].register_forward_hook(lambda module, given, out: outputs.append(out))
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.visual(pixels)
    expected = outputs[0] if outputs[0].shape[0] == 2 else outputs[0].transpose(0, 1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tower = find_tower(f"open_clip:tiny{'-quickgelu' if quick else ''}/{tmp_path / 'weights.pt'}", None, {})
    state = {key.removeprefix("vision_tower.vision_model."): one.read() for key, one in tower.weights.items()}
    ours, other = (CLIPVisionModel(CLIPVisionConfig(**{**tower.config, **change})).eval()
                   for change in ({}, {"hidden_act": "gelu" if quick else "quick_gelu"}))  # fmt: skip
    ours.load_state_dict(state)
    other.load_state_dict(state)
    assert (penultimate(ours, pixels) - expected).abs().max() < 1e-5
    # the name decides the activation, and the difference would show
    assert (penultimate(other, pixels) - expected).abs().max() > 1e-4


def visual(width: int = 64, layers: int = 2, patch: int = 14, side: int = 4) -> dict[str, torch.Tensor]:
    """Tensors of an open_clip vision transformer, by its names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"class_embedding": (width,), "conv1.weight": (width, 3, patch, patch), "proj": (width, 16),
              "positional_embedding": (side * side + 1, width)}  # fmt: skip
    linears = {"attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4)}
    norms = ["ln_pre", "ln_post"]
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        norms += [f"{block}ln_1", f"{block}ln_2"]
        for name, (rows, columns) in linears.items():
            shapes |= {f"{block}{name}weight": (rows * width, columns * width), f"{block}{name}bias": (rows * width,)}
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    return {f"visual.{name}": torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def test_a_file_needs_no_package_and_serves_as_a_checkpoints_tower(recorded, tmp_path):
    weights = visual()
    name, epoch = (f"open_clip:ViT-tiny-quickgelu/{tmp_path / file}" for file in ("weights.bin", "epoch.pt"))
    torch.save({**weights, "text.weight": torch.ones(2)}, tmp_path / "weights.bin")
    tower = find_tower(name, None, {})
    assert (tower.config["hidden_size"], tower.config["image_size"], tower.config["num_hidden_layers"]) == (64, 56, 2)
    state = {f"module.{key}": tensor for key, tensor in weights.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch.pt")  # as open_clip's training saves
    trained = find_tower(epoch, None, {})
    assert trained.config == tower.config and set(trained.weights) == set(tower.weights)
    assert trained.name == "open_clip:ViT-tiny-quickgelu"  # what a card may say: no path
    prefix = "vision_tower.vision_model.encoder.layers.1.self_attn."
    joined = torch.cat([tower.weights[f"{prefix}{letter}_proj.weight"].read() for letter in "qkv"])
    assert torch.equal(joined, weights["visual.transformer.resblocks.1.attn.in_proj_weight"])
    with pytest.raises(InputError, match=r"mm_projector\.0\.weight is \(64, 48\), expected \(64, 64\)"):
        load(recorded.folder / "projector_only", base=recorded.folder / "base", vision_tower=name)


def test_other_architectures_and_names_are_refused(monkeypatch):
    tensors = {name: in_memory(tensor, name) for name, tensor in visual().items()}
    resnet = {"visual.layer1.0.conv1.weight": tensors["visual.conv1.weight"]}
    scaled = {**tensors, "visual.transformer.resblocks.0.ls_1.gamma": tensors["visual.class_embedding"]}
    for content, message in ((resnet, "some.pt"), (scaled, r"resblocks\.0\.ls_1\.gamma")):
        with pytest.raises(InputError, match=message):
            clip_from_open_clip(content, True, "some.pt")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for name, message in (
        ("ViT-L-14", "ViT-L-14"),
        ("ViT-L-14/absent.pt", "absent.pt"),
        ("ViT-L-14/openai", "openclip"),
    ):
        with pytest.raises(InputError, match=message):
            open_clip_tower(f"open_clip:{name}")
