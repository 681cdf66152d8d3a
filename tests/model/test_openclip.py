"""A tower from open_clip gives CLIPVisionModel's features. Skipped where the package, or a torchvision for it, is absent."""

from __future__ import annotations

import importlib.util
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


def _torchvision() -> str | None:
    """Why torchvision is not available, or None. Called before transformers is imported, which looks for it too.

    PyPI's build does not fit a CPU build of torch: the operators that it describes at import are declared here.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    global _library
    try:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        return f"torchvision cannot be imported: {error}"
    return None


_library: torch.library.Library | None = None
MISSING = _torchvision()


@pytest.fixture(scope="module")
def open_clip():
    if MISSING is not None:
        pytest.skip(MISSING)
    return pytest.importorskip("open_clip", reason="open_clip_torch is in the extra openclip")


@pytest.mark.parametrize("quick", [True, False], ids=["quickgelu", "gelu"])
def test_penultimate_features_are_equal(open_clip, tmp_path, recorded, quick):
    from open_clip.model import CLIP
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    model = CLIP(**TINY, quick_gelu=quick).eval()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    file = tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    name = f"open_clip:tiny{'-quickgelu' if quick else ''}/{file}"
    tower = find_tower(name, None, {})
    ours = CLIPVisionModel(CLIPVisionConfig(**tower.config)).eval()
    state = {key.removeprefix("vision_tower.vision_model."): one.read() for key, one in tower.weights.items()}
    ours.load_state_dict(state)
    pixels = torch.randn(2, 3, 56, 56)
    taken = []
    hook = model.visual.transformer.resblocks[-2].register_forward_hook(lambda module, given, out: taken.append(out))
    with torch.no_grad():
        model.visual(pixels)
        mine = ours(pixels, output_hidden_states=True).hidden_states[-2]
    hook.remove()
    theirs = taken[0] if taken[0].shape[0] == 2 else taken[0].transpose(0, 1)
    assert (mine - theirs).abs().max() < 1e-5
    other = CLIPVisionModel(
        CLIPVisionConfig(**{**tower.config, "hidden_act": "gelu" if quick else "quick_gelu"})
    ).eval()
    other.load_state_dict(state)
    with torch.no_grad():  # the name decides the activation, and the difference would show
        assert (other(pixels, output_hidden_states=True).hidden_states[-2] - theirs).abs().max() > 1e-4


def visual(width: int = 64, layers: int = 2, patch: int = 14, side: int = 4) -> dict[str, torch.Tensor]:
    """Tensors of an open_clip vision transformer, by its names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "class_embedding": (width,), "conv1.weight": (width, 3, patch, patch), "proj": (width, 16),
        "positional_embedding": (side * side + 1, width),
    }  # fmt: skip
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        for name, rows, columns in (
            ("attn.in_proj_", 3 * width, width), ("attn.out_proj.", width, width), ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):  # fmt: skip
            shapes |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    return {f"visual.{name}": torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def test_a_file_needs_no_package_and_serves_as_a_checkpoints_tower(recorded, tmp_path):
    weights = visual(width=64)
    torch.save({**weights, "text.weight": torch.ones(2)}, tmp_path / "weights.bin")
    name = f"open_clip:ViT-tiny-quickgelu/{tmp_path / 'weights.bin'}"
    tower = find_tower(name, None, {})
    assert (tower.config["hidden_size"], tower.config["image_size"], tower.config["num_hidden_layers"]) == (64, 56, 2)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": one for key, one in weights.items()}}, tmp_path / "epoch.pt"
    )
    trained = find_tower(
        f"open_clip:ViT-tiny-quickgelu/{tmp_path / 'epoch.pt'}", None, {}
    )  # as open_clip's training saves
    assert trained.config == tower.config and set(trained.weights) == set(tower.weights)
    assert trained.name == "open_clip:ViT-tiny-quickgelu"  # what a card may say: no path
    prefix = "vision_tower.vision_model.encoder.layers.1.self_attn."
    joined = torch.cat([tower.weights[f"{prefix}{letter}_proj.weight"].read() for letter in "qkv"])
    assert torch.equal(joined, weights["visual.transformer.resblocks.1.attn.in_proj_weight"])
    with pytest.raises(InputError, match=r"mm_projector\.0\.weight is \(64, 48\), expected \(64, 64\)"):
        load(recorded.folder / "projector_only", base=recorded.folder / "base", vision_tower=name)


def test_other_architectures_and_names_are_refused(tmp_path):
    tensors = {name: in_memory(tensor, name) for name, tensor in visual().items()}
    resnet = {"visual.layer1.0.conv1.weight": tensors["visual.conv1.weight"]}
    scaled = {**tensors, "visual.transformer.resblocks.0.ls_1.gamma": tensors["visual.class_embedding"]}
    for content, message in ((resnet, "some.pt"), (scaled, r"resblocks\.0\.ls_1\.gamma")):
        with pytest.raises(InputError, match=message):
            clip_from_open_clip(content, True, "some.pt")
    for name in ("open_clip:ViT-L-14", "open_clip:ViT-L-14/absent.pt"):
        with pytest.raises(InputError, match=name):
            open_clip_tower(name)


def test_a_tag_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"open_clip_torch.*--extras openclip"):
        open_clip_tower("open_clip:ViT-L-14-336-quickgelu/openai")
