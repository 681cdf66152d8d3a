"""A tower from open_clip's tensors gives open_clip's features, and what is no such tower is refused."""

import sys

import pytest
import torch
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from trace_vlm.model.checkpoint import load
from trace_vlm.model.lazy_tensors import in_memory
from trace_vlm.model.vision_tower import clip_from_open_clip, find_tower, open_clip_tower
from trace_vlm.utils.command import InputError

WIDTH, HEADS, LAYERS, PATCH, SIDE = 128, 2, 3, 14, 4
BLOCK = {"attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4)}


@pytest.fixture
def weights():
    """Tensors of an open_clip vision transformer, by its names."""
    shapes = {"class_embedding": (WIDTH,), "conv1.weight": (WIDTH, 3, PATCH, PATCH), "proj": (WIDTH, 16),
              "positional_embedding": (SIDE * SIDE + 1, WIDTH)}  # fmt: skip
    blocks = [f"transformer.resblocks.{layer}." for layer in range(LAYERS)]
    norms = ["ln_pre", "ln_post", *(f"{block}ln_{number}" for block in blocks for number in (1, 2))]
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
    for name, (rows, columns) in BLOCK.items():
        for block in blocks:
            shapes |= {f"{block}{name}weight": (rows * WIDTH, columns * WIDTH), f"{block}{name}bias": (rows * WIDTH,)}
    generator = torch.Generator().manual_seed(0)
    return {f"visual.{name}": torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def penultimate(weights, pixels, activation):
    """What open_clip's VisionTransformer computes up to its last block but one."""

    def part(x, name):
        weight, bias = (weights[f"visual.{name}.{kind}"] for kind in ("weight", "bias"))
        return functional.layer_norm(x, (WIDTH,), weight, bias) if "ln_" in name else functional.linear(x, weight, bias)

    patches = functional.conv2d(pixels, weights["visual.conv1.weight"], stride=PATCH).flatten(2).permute(2, 0, 1)
    first = weights["visual.class_embedding"].expand(1, len(pixels), WIDTH)
    x = part(torch.cat([first, patches]) + weights["visual.positional_embedding"][:, None], "ln_pre")
    for layer in range(LAYERS - 1):
        block = f"transformer.resblocks.{layer}."
        y, attention = part(x, f"{block}ln_1"), f"visual.{block}attn."
        inside = [weights[f"{attention}in_proj_{kind}"] for kind in ("weight", "bias")]
        outside = [weights[f"{attention}out_proj.{kind}"] for kind in ("weight", "bias")]
        x = x + functional.multi_head_attention_forward(
            y, y, y, WIDTH, HEADS, *inside, None, None, False, 0.0, *outside, need_weights=False)[0]  # fmt: skip
        y = activation(part(part(x, f"{block}ln_2"), f"{block}mlp.c_fc"))
        x = x + part(y, f"{block}mlp.c_proj")
    return x.transpose(0, 1)


@pytest.mark.parametrize(("name", "quick"), [("ViT-tiny-quickgelu", True), ("ViT-tiny", False)])
def test_penultimate_features_are_equal(weights, tmp_path, name, quick):
    torch.save({**weights, "text.weight": torch.ones(2)}, tmp_path / "weights.pt")
    tower = find_tower(f"open_clip:{name}/{tmp_path / 'weights.pt'}", None, {})
    model, pixels = CLIPVisionModel(CLIPVisionConfig(**tower.config)).eval(), torch.randn(2, 3, 56, 56)
    prefix = "vision_tower.vision_model."
    model.load_state_dict({name.removeprefix(prefix): tensor.read() for name, tensor in tower.weights.items()})
    features = {False: functional.gelu, True: lambda x: x * torch.sigmoid(1.702 * x)}
    with torch.no_grad():
        ours = model(pixels, output_hidden_states=True).hidden_states[-2]
    assert (ours - penultimate(weights, pixels, features[quick])).abs().max() < 1e-4
    assert (ours - penultimate(weights, pixels, features[not quick])).abs().max() > 1e-3


def test_a_file_of_open_clips_training_serves_as_a_checkpoints_tower(recorded, weights, tmp_path):
    state = {f"module.{key}": tensor for key, tensor in weights.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch.pt")
    name = f"open_clip:ViT-tiny-quickgelu/{tmp_path / 'epoch.pt'}"
    assert find_tower(name, None, {}).name == "open_clip:ViT-tiny-quickgelu"  # what a card may say: no path
    with pytest.raises(InputError, match=r"mm_projector\.0\.weight is \(64, 48\), expected \(64, 128\)"):
        load(recorded.folder / "projector_only", base=recorded.folder / "base", vision_tower=name)


def test_other_architectures_and_names_are_refused(weights, monkeypatch):
    tensors = {name: in_memory(tensor, name) for name, tensor in weights.items()}
    resnet = {"visual.layer1.0.conv1.weight": tensors["visual.conv1.weight"]}
    scaled = {**tensors, "visual.transformer.resblocks.0.ls_1.gamma": tensors["visual.class_embedding"]}
    for content, message in ((resnet, "some.pt"), (scaled, r"resblocks\.0\.ls_1\.gamma")):
        with pytest.raises(InputError, match=message):
            clip_from_open_clip(content, True, "some.pt")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for name, message in (("", "ViT-L-14"), ("/absent.pt", "absent.pt"), ("/openai", "openclip")):
        with pytest.raises(InputError, match=message):
            open_clip_tower(f"open_clip:ViT-L-14{name}")
