"""Every broken or foreign folder is refused with a sentence that names the file, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trace_vlm.model.checkpoint import load, main
from trace_vlm.utils.command import InputError, run


@pytest.fixture
def zoo(recorded, tmp_path):
    """A copy of the recorded checkpoints that a test may break."""
    for name in ("full", "base", "lora", "projector_only", "clip"):
        shutil.copytree(recorded.folder / name, tmp_path / name)
    return tmp_path


def edit(file: Path, **changes):
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, **changes}))


def drop_shard(zoo):
    (zoo / "full" / "model-00002-of-00002.safetensors").unlink()
    return "full", None, r"model-00002-of-00002\.safetensors is missing: model\.safetensors\.index\.json lists 2 files"


def cut_shard(zoo):
    file = zoo / "full" / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "full", None, r"model-00001-of-00002\.safetensors is cut off: \d+ bytes are described, \d+ are there"


def cut_header(zoo):
    (zoo / "full" / "model-00001-of-00002.safetensors").write_bytes(b"\x01\x02")
    return "full", None, r"model-00001-of-00002\.safetensors is cut off or no safetensors file \(2 bytes\)"


def no_safetensors(zoo):
    file = zoo / "full" / "model-00001-of-00002.safetensors"
    file.write_bytes((20).to_bytes(8, "little") + b"version https://git-lfs.github.com/spec/v1")
    return "full", None, "no safetensors file: its header is no JSON"


def cut_bin(zoo):
    file = zoo / "lora" / "non_lora_trainables.bin"
    file.write_bytes(file.read_bytes()[:5000])
    return "lora", "base", r"non_lora_trainables\.bin is cut off \(5000 bytes\)"


def wrong_base(zoo):
    file = zoo / "base" / "model.safetensors"
    save_file({name: one[..., :32].contiguous() for name, one in load_file(file).items()}, file)
    return "lora", "base", r"wrong base: .*base/model\.safetensors: model\..* has the shape \(.*\), .* for \(.*\)"


def wrong_base_of_a_projector(zoo):
    file = zoo / "base" / "model.safetensors"
    save_file({name: one[..., :32].contiguous() for name, one in load_file(file).items()}, file)
    return "projector_only", "base", r"wrong base: .*base/model\.safetensors: .* has the shape .*, expected .*"


def shallow_base(zoo):
    file = zoo / "base" / "model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if ".layers.3." not in name}, file)
    return "lora", "base", r"wrong base: it has no tensor for .*adapter_model\.safetensors: .*layers\.3"


def adapter_without_projector(zoo):
    (zoo / "lora" / "non_lora_trainables.bin").unlink()
    return "lora", "base", r"non_lora_trainables\.bin is missing: the adapter's projector is in that file"


def checkpoint_without_projector(zoo):
    shutil.copy(zoo / "base" / "model.safetensors", zoo / "full" / "model.safetensors")
    (zoo / "full" / "model.safetensors.index.json").unlink()
    return "full", None, r"full has no projector: .* no tensor is called model\.mm_projector"


def half_projector(zoo):
    file = zoo / "projector_only" / "mm_projector.bin"
    weights = torch.load(file, weights_only=True)
    torch.save({name: one for name, one in weights.items() if ".2." not in name}, file)
    return "projector_only", "base", r"it lacks multi_modal_projector\.linear_2\.bias, .*linear_2\.weight"


def empty_tokenizer(zoo):
    (zoo / "full" / "tokenizer.model").write_bytes(b"")
    return "full", None, r"the tokenizer in .*full holds no pieces of text"


def empty_bin(zoo):
    (zoo / "projector_only" / "mm_projector.bin").write_bytes(b"")
    return "projector_only", "base", r"mm_projector\.bin cannot be read as weights: it is empty or cut off"


def sparse_bin(zoo):
    torch.save(
        {"model.mm_projector.0.weight": torch.ones(3, 3).to_sparse()}, zoo / "projector_only" / "mm_projector.bin"
    )
    return "projector_only", "base", r"mm_projector\.0\.weight is a float32 tensor, laid out as torch\.sparse_coo"


def packed_bin(zoo):
    file = zoo / "projector_only" / "mm_projector.bin"
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return "projector_only", "base", r"mm_projector\.bin was compressed after torch saved it"


def negative_shape(zoo):
    file = zoo / "full" / "model-00001-of-00002.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(one for one in header if one != "__metadata__")
    header[name]["shape"] = [-1, -1]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return "full", None, r"00001-of-00002\.safetensors: .* is of a kind that is not read"


def setting_of_another_kind(zoo):
    edit(zoo / "full" / "config.json", rms_norm_eps="small")
    return "full", None, r"full/config\.json cannot be used: .*rms_norm_eps"


def no_heads(zoo):
    edit(zoo / "full" / "config.json", num_attention_heads=0)
    return "full", None, r"full/config\.json: num_attention_heads is 0; expected the configuration of a Llama"


def settings_that_are_no_object(zoo):
    (zoo / "full" / "tokenizer_config.json").write_text("[]")
    return "full", None, r"tokenizer_config\.json must hold a JSON object"


def an_adapter_that_changed_its_base(zoo):
    edit(zoo / "lora" / "adapter_config.json", init_lora_weights="pissa_niter_4")
    return "lora", "base", r"adapter_config\.json: init_lora_weights is 'pissa_niter_4', which changes the base too"


def no_base(zoo):
    return "projector_only", None, r"needs its language model: give --base \(it was trained over base\)"


def base_that_is_no_model(zoo):
    return "lora", "clip", r"the base .*clip is a CLIP alone; .*lora needs a language model"


def a_base_too_much(zoo):
    return "full", "base", r"full is complete .* it takes no base"


def language_model_alone(zoo):
    return "base", None, r"base is a language model alone: .* give the projector's folder .* and this as its base"


def mistral(zoo):
    edit(zoo / "full" / "config.json", model_type="llava_mistral")
    return "full", None, r"full/config\.json describes a 'llava_mistral' model; expected 'llava'"


def mpt(zoo):
    edit(zoo / "base" / "config.json", model_type="mpt")
    return "lora", "base", r"base/config\.json describes a 'mpt' model; expected"


def llava_16(zoo):
    edit(zoo / "full" / "config.json", mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres")
    return "full", None, r"config\.json: mm_patch_merge_type is 'spatial_unpad'; LLaVA-1\.6"


def other_projector(zoo):
    edit(zoo / "full" / "config.json", mm_projector_type="mlp3x_gelu")
    return "full", None, r"config\.json: mm_projector_type is 'mlp3x_gelu'; linear and mlp2x_gelu are read"


def unknown_tensor(zoo):
    file = zoo / "full" / "model-00001-of-00002.safetensors"
    save_file({**load_file(file), "model.image_newline": torch.zeros(64)}, file)
    return "full", None, r"full does not make a whole model: it has model\.image_newline besides"


def index_of_another(zoo):
    file = zoo / "full" / "model.safetensors.index.json"
    names = json.loads(file.read_text())["weight_map"]
    edit(file, weight_map={**names, "model.layers.4.mlp.up_proj.weight": "model-00001-of-00002.safetensors"})
    return "full", None, r"model-00001-of-00002\.safetensors does not hold model\.layers\.4"


def index_with_a_path(zoo):
    names = {"lm_head.weight": "../base/model.safetensors"}
    edit(zoo / "full" / "model.safetensors.index.json", weight_map=names)
    return "full", None, "names files outside its own folder"


def no_tower(zoo):
    shutil.rmtree(zoo / "clip")
    return "lora", "base", r"the vision tower clip was not found: no folder .*lora/clip, .*/clip, clip"


def no_clip(zoo):
    shutil.rmtree(zoo / "clip")
    shutil.copytree(zoo / "base", zoo / "clip")
    return "lora", "base", r"clip is no vision tower: found language model alone, expected a CLIP"


def no_tokenizer(zoo):
    (zoo / "full" / "tokenizer.model").unlink()
    return "full", None, r"full holds no tokenizer: expected tokenizer\.model or tokenizer\.json"


def dora(zoo):
    edit(zoo / "lora" / "adapter_config.json", use_dora=True)
    return "lora", "base", r"adapter_config\.json: use_dora is not read"


def one_factor(zoo):
    file = zoo / "lora" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: one for name, one in weights.items() if not name.endswith("3.mlp.up_proj.lora_B.weight")}, file)
    return "lora", "base", r"layers\.3\.mlp\.up_proj\.lora_A\.weight has no partner"


BREAKS = [value for name, value in list(globals().items()) if callable(value) and getattr(value, "__code__", None)]
BREAKS = [one for one in BREAKS if one.__module__ == __name__ and one.__code__.co_varnames[:1] == ("zoo",)]


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda one: one.__name__)
def test_what_cannot_be_read_is_named_and_nothing_is_left(zoo, breaks):
    name, base, message = breaks(zoo)
    base = None if base is None else zoo / base
    with pytest.raises(InputError, match=message):
        load(zoo / name, base=base)
    before = sorted(path.name for path in zoo.iterdir())
    arguments = ["convert", str(zoo / name), str(zoo / "made"), *(["--base", str(base)] if base else [])]
    assert run(main, arguments) == 2
    assert sorted(path.name for path in zoo.iterdir()) == before
    assert run(main, ["inspect", *arguments[1:2], *arguments[3:]]) in (0, 2)


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    ("name", "file"), [("lora", "non_lora_trainables.bin"), ("projector_only", "mm_projector.bin")]
)
def test_a_malicious_pickle_is_refused_and_not_run(zoo, zipped, name, file):
    witness = zoo / "it ran"
    content = {**torch.load(zoo / name / file, weights_only=True), "model.extra": Malicious(witness)}
    torch.save(content, zoo / name / file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"{file} is refused: it is a pickle that holds more than tensors") as error:
        load(zoo / name, base=zoo / "base")
    assert "posix.system" in str(error.value)
    assert not witness.exists()
    torch.load(zoo / name / file, weights_only=False)  # the test itself can fail: without the guard it runs
    assert witness.exists()


def test_old_bin_files_are_read(zoo, recorded):
    """torch before 1.6 wrote no zip; and a tensor may lie transposed in its storage."""
    file = zoo / "projector_only" / "mm_projector.bin"
    weights = torch.load(file, weights_only=True)
    whole = load(zoo / "projector_only", base=zoo / "base").model.model.multi_modal_projector.linear_1.weight
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    old = load(zoo / "projector_only", base=zoo / "base").model.model.multi_modal_projector.linear_1.weight
    name = "model.mm_projector.0.weight"
    torch.save({**weights, name: weights[name].t().contiguous().t()}, file)
    turned = load(zoo / "projector_only", base=zoo / "base").model.model.multi_modal_projector.linear_1.weight
    assert torch.equal(whole, old) and torch.equal(whole, turned)


def test_no_remote_code_and_no_unrestricted_pickle_anywhere_in_the_package():
    import trace_vlm

    sources = {path: path.read_text() for path in Path(trace_vlm.__file__).parent.rglob("*.py")}
    assert not [path for path, text in sources.items() if "trust_remote_code=True" in text]
    assert not [path for path, text in sources.items() if "weights_only=False" in text]
