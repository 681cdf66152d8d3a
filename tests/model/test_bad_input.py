"""Broken and unsupported folders are refused with an error that names the file, and leave nothing behind."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints_by_hand import edit_json
from safetensors.torch import load_file, save_file

import trace_vlm
from trace_vlm.attention.results import read_maps
from trace_vlm.inference.backprojection import read_depth
from trace_vlm.model.checkpoint import load, main
from trace_vlm.utils.command import InputError, run

SHARD = "model-00001-of-00002.safetensors"


def edit(name, **changes):
    return name, lambda file: edit_json(file, **changes)


def safetensors(name, change):
    """Rewrite a file with `change` applied to its name -> tensor mapping."""
    return name, lambda file: save_file({key: one.contiguous() for key, one in change(load_file(file)).items()}, file)


def pickle(name, change):
    return name, lambda file: torch.save(change(torch.load(file, weights_only=True)), file)


def rewrite(name, change):
    return name, lambda file: file.write_bytes(change(file.read_bytes()))


def without(text):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if text not in name}


def sparse(tensors):
    return {name: tensor.to_sparse() for name, tensor in tensors.items() if "0.bias" in name}


def without_projector(folder):
    shutil.copy(folder.parent / "base" / "model.safetensors", folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()


def compress(file):
    with zipfile.ZipFile(file) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)


def base_as_clip(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "base", folder)


LFS = (20).to_bytes(8, "little") + b"version https://git-lfs.github.com/spec/v1"
MORE = {"model.image_newline": torch.zeros(64)}
BASE, ADAPTER, PROJECTOR = "base/model.safetensors", "lora/adapter_model.safetensors", "projector_only/mm_projector.bin"
REST, CONFIG, LORA = "lora/non_lora_trainables.bin", "full/config.json", "lora/adapter_config.json"
INDEX = "full/model.safetensors.index.json"
# (the checkpoint, its base, what is broken: a file and the change, what the error has to name)
BROKEN = {
    "missing shard": ("full", None, ("full/model-00002-of-00002.safetensors", Path.unlink), "model-00002-of-00002"),
    "cut shard": ("full", None, rewrite(f"full/{SHARD}", lambda content: content[:-1000]), SHARD),
    "cut header": ("full", None, rewrite(f"full/{SHARD}", lambda content: content[:2]), SHARD),
    "git-lfs pointer": ("full", None, rewrite(f"full/{SHARD}", lambda content: LFS), SHARD),
    "unknown tensor": ("full", None, safetensors(f"full/{SHARD}", lambda tensors: tensors | MORE), "image_newline"),
    "cut .bin": ("lora", "base", rewrite(REST, lambda content: content[:5000]), "non_lora_trainables.bin"),
    "compressed .bin": ("projector_only", "base", (PROJECTOR, compress), "mm_projector.bin"),
    "sparse .bin": ("projector_only", "base", pickle(PROJECTOR, sparse), r"mm_projector\.0\.bias"),
    "other tensors": ("projector_only", "base", pickle(PROJECTOR, lambda tensors: {"other": torch.ones(1)}), "other"),
    "file outside": ("full", None, edit(INDEX, weight_map={"lm_head.weight": "../base/model.safetensors"}), INDEX),
    "adapter without projector": ("lora", "base", (REST, Path.unlink), "non_lora_trainables"),
    "no projector": ("full", None, ("full", without_projector), "mm_projector"),
    "half a projector": ("projector_only", "base", pickle(PROJECTOR, without(".2.")), "linear_2.bias"),
    "one factor": ("lora", "base", safetensors(ADAPTER, without("3.mlp.up_proj.lora_B")), r"3\.mlp\.up_proj\.lora_A"),
    "PiSSA": ("lora", "base", edit(LORA, init_lora_weights="pissa_niter_4"), "init_lora_weights"),
    "DoRA": ("lora", "base", edit(LORA, use_dora=True), "use_dora"),
    "wrong base": ("lora", "base", safetensors(BASE, lambda tensors: {name: tensors[name][..., :32] for name in tensors}),
                   "wrong base: .*base/model.safetens"),
    "shallow base": ("lora", "base", safetensors(BASE, without(".layers.3.")), "layers.3"),
    "no base": ("projector_only", None, None, "--model-base"),
    "base is a CLIP": ("lora", "clip", None, "clip"),
    "language model alone": ("base", None, None, "base is a language model alone"),
    "no tower": ("lora", "base", ("clip", shutil.rmtree), "vision tower clip"),
    "tower is no CLIP": ("lora", "base", ("clip", base_as_clip), "clip is not a vision tower"),
    "empty tokenizer": ("full", None, rewrite("full/tokenizer.model", lambda content: b""), "tokenizer in .*full"),
    "no tokenizer": ("full", None, ("full/tokenizer.model", Path.unlink), "tokenizer.model"),
    "settings are no object": ("full", None, rewrite("full/tokenizer_config.json", lambda content: b"[]"),
                               "tokenizer_config.json"),
    "cut configuration": ("full", None, rewrite(CONFIG, lambda content: content[:20]), "config.json, line 2"),
    "wrong type": ("full", None, edit(CONFIG, rms_norm_eps="small"), "config.json.*rms_norm_eps"),
    "no heads": ("full", None, edit(CONFIG, num_attention_heads=0), "config.json: num_attention_heads"),
    "a part that is no object": ("full", None, edit(CONFIG, model_type="llava", text_config="x"), "text_config.*'x'"),
    "Mistral": ("full", None, edit(CONFIG, model_type="llava_mistral"), "config.json.*llava_mistral"),
    "MPT": ("lora", "base", edit("base/config.json", model_type="mpt"), "base/config.json.*mpt"),
    "LLaVA-1.6": ("full", None, edit(CONFIG, mm_patch_merge_type="spatial_unpad"), "mm_patch_merge_type"),
    "other projector": ("full", None, edit(CONFIG, mm_projector_type="mlp3x_gelu"), "mm_projector_type"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused_and_nothing_is_written(zoo, case):
    name, base, broken, message = BROKEN[case]
    if broken is not None:
        broken[1](zoo / broken[0])
    extra = [] if base is None else ["--model-base", str(zoo / base)]
    with pytest.raises(InputError, match=message):
        load(zoo / name, base=None if base is None else zoo / base)
    before = sorted(path.name for path in zoo.iterdir())
    assert run(main, ["convert", str(zoo / name), str(zoo / "made"), *extra]) == 2
    assert sorted(path.name for path in zoo.iterdir()) == before
    assert run(main, ["inspect", str(zoo / name), *extra]) in (0, 2)


def test_a_base_that_is_not_needed_is_named_and_left_out(zoo, capsys):
    assert load(zoo / "full", base=zoo / "base").name == load(zoo / "full").name
    assert "full is complete" in capsys.readouterr().err
    assert run(main, ["convert", str(zoo / "full"), str(zoo / "made"), "--model-base", str(zoo / "base")]) == 2


class Malicious:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch '{self.witness}'",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_malicious_pickle_is_refused_and_not_run(zoo, zipped):
    witness, path = zoo / "it ran", zoo / "lora/non_lora_trainables.bin"
    content = {**torch.load(path, weights_only=True), "model.extra": Malicious(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"{path.name}.*posix\.system"):
        load(path.parent, base=zoo / "base")
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the test itself can fail: without the guard it runs
    assert witness.exists()


def test_a_transposed_tensor_is_read(zoo):
    file, name = zoo / "projector_only" / "mm_projector.bin", "model.mm_projector.0.weight"
    weights = torch.load(file, weights_only=True)
    torch.save({**weights, name: weights[name].t().contiguous().t()}, file)
    projector = load(zoo / "projector_only", base=zoo / "base").model.model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, weights[name].float())


def test_arrays_of_objects_are_refused_and_not_run(tmp_path):
    objects, witness = np.empty(1, object), tmp_path / "it ran"
    objects[0] = Malicious(witness)
    np.savez(tmp_path / "1.npz", maps=objects)
    np.save(tmp_path / "depth.npy", objects)
    with pytest.raises(InputError, match=r"1\.npz"):
        read_maps(tmp_path, SimpleNamespace(arrays="1.npz"))
    with pytest.raises(InputError, match=r"depth\.npy"):
        read_depth(tmp_path / "depth.npy", None, "registered", (4, 3))
    assert not witness.exists()
    with np.load(tmp_path / "1.npz", allow_pickle=True) as arrays:  # the test itself can fail
        arrays["maps"]
    assert witness.exists()


RUNS_CODE = re.compile(
    r"trust_remote_code=True|weights_only=False|allow_pickle=True|yaml\.(?:unsafe_|full_)?load\(|shell=True|os\.system|tarfile"
    r"|unpack_archive|pickle\.load\(|joblib|(?<![.\w])(?:eval|exec)\("
)


def test_nothing_in_the_package_runs_what_a_file_holds():
    for path in Path(trace_vlm.__file__).parent.rglob("*.py"):
        assert RUNS_CODE.search(path.read_text()) is None, path
