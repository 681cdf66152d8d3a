"""Two processes under DeepSpeed: saved, killed, resumed, gathered, loaded, merged."""

import os
import shutil
import signal
from itertools import product

import pytest

pytest.importorskip("deepspeed", reason="DeepSpeed comes with --gpu")

from shell import ROOT
from train_together import Run, changed_parts, logged, record, settings, weights

from trace_vlm.cli import main as trace_vlm
from trace_vlm.train import plan
from trace_vlm.train.checkpoints import last_checkpoint
from trace_vlm.train.config import TrainConfig
from trace_vlm.train.memory import total_params, trained_params
from trace_vlm.utils.config import build_config

FULL = {"trainable": {"llm": "full", "projector": "full"}}
LORA = {"trainable": {"llm": "lora", "projector": "full"}, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
LORA_WITHOUT_DROPOUT = LORA | {"lora": {**LORA["lora"], "dropout": 0.0}}


@pytest.fixture
def run_of(scenes, tiny_folder, tmp_path):
    def make(name, zero, precision, trained, processes=2, **changes):
        values = {"learning_rates": {"projector": 5e-4}, "warmup_ratio": 0.2, "packing": True, "pack_tokens": 160}
        values |= {"micro_batch_size": 2, "max_length": 96, "precision": precision}
        values |= {"deepspeed": str(ROOT / f"configs/deepspeed/zero{zero}.json")}
        return Run(settings(scenes, tiny_folder, tmp_path / name, **values | trained | changes), processes)

    return make


def curve(folder):
    return list(zip(logged(folder), logged(folder, "grad_norm"), strict=True))


def assert_same(run, other):
    assert curve(run.folder) == curve(other.folder)
    assert changed_parts(weights(run.folder), weights(other.folder)) == set()


def test_zero3_lora_in_bf16_ends_on_sigterm_and_continues_bit_for_bit(run_of, tiny_folder, tmp_path):
    longer = {"max_steps": 6, "save_steps": 2}
    complete, cut = (run_of(name, 3, "bf16", LORA, **longer) for name in ("complete", "cut"))
    complete.to_its_end()
    cut.start().when_saved(2)
    os.kill(cut.running[1].pid, signal.SIGTERM)  # one process gets it; both have to agree
    codes, logs = cut.wait()
    assert codes == [143, 143], logs
    assert weights(last_checkpoint(cut.folder / "checkpoints"))  # loads while training is not over
    assert not (cut.folder / "adapter_config.json").exists()
    cut.to_its_end()
    assert_same(complete, cut)
    assert len(curve(complete.folder)) == 6
    assert trace_vlm(["convert", str(cut.folder), str(tmp_path / "merged")]) == 0
    changed = changed_parts(weights(tiny_folder), weights(tmp_path / "merged"))
    assert changed == {"language_model", "multi_modal_projector"}


def test_zero2_full_in_fp32_survives_kill_9(run_of):
    complete, cut = (run_of(name, 2, "fp32", FULL, packing=False) for name in ("complete", "cut"))
    complete.to_its_end()
    cut.start().when_saved(2).kill()
    assert not (cut.folder / "config.json").exists()
    cut.to_its_end()
    assert_same(complete, cut)
    assert record(cut.folder)["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_compiled_layers_give_the_same_losses_also_after_a_kill(run_of, zero):
    plain, compiled = (run_of(str(value), zero, "fp32", LORA_WITHOUT_DROPOUT, compile=value) for value in (False, True))
    plain.to_its_end()
    compiled.start().when_saved(2).kill()
    compiled.to_its_end()
    for name, bound in (("loss", {"abs": 1e-5}), ("grad_norm", {"rel": 1e-4})):
        assert logged(compiled.folder, name) == pytest.approx(logged(plain.folder, name), **bound)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [FULL, LORA_WITHOUT_DROPOUT], ids=["full", "lora"])
@pytest.mark.parametrize("zero", [2, 3])
def test_another_family_is_trained_alike_by_any_number_of_processes(run_of, family_folder, zero, trained):
    changes = {"model": str(family_folder("qwen3_vl")), "packing": zero == 3, "max_length": 512, "pack_tokens": 512}
    alone, complete, cut = (run_of(str(n), zero, "fp32", trained, min(n, 2), **changes) for n in (1, 2, 3))
    cut.start().when_saved(2).kill()
    for run in (alone, complete, cut):
        run.to_its_end()
    assert logged(alone.folder) == pytest.approx(logged(complete.folder), abs=1e-5)
    assert_same(complete, cut)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [FULL, LORA_WITHOUT_DROPOUT], ids=["full", "lora"])
@pytest.mark.parametrize(("zero", "precision"), product((2, 3), ("fp32", "bf16")))
def test_every_pair_resumes_bit_for_bit_and_on_another_number_of_processes(run_of, tmp_path, zero, precision, trained):
    complete, cut = (run_of(name, zero, precision, trained) for name in ("complete", "cut"))
    complete.to_its_end()
    cut.start().when_saved(2).kill()
    other = run_of("other", zero, precision, trained, processes=1)
    other.folder.mkdir()
    for part in ("run.json", "trainable.json"):
        shutil.copy(cut.folder / part, other.folder / part)
    (cut.folder / "checkpoints").rename(tmp_path / "kept")
    kept = tmp_path / "kept/checkpoint-2"
    for run in (cut, other):
        shutil.copytree(kept, run.folder / "checkpoints/checkpoint-2")
    assert weights(kept)  # gathered during training
    # The plan's bytes of a checkpoint are those of its tensors; tiny ones leave room for what surrounds them.
    config = build_config(TrainConfig, cut.settings, "test")
    _, size = plan.model_dimensions(config)
    parameters = [count(size, config.modes, config.lora_rank) for count in (total_params, trained_params)]
    planned = plan.checkpoint_bytes(config, *parameters)
    written = sum(path.stat().st_size for path in kept.rglob("*") if path.suffix in (".safetensors", ".pt"))
    assert planned < written < (1.3 if config.modes.llm == "full" else 3.5) * planned
    cut.to_its_end()
    assert_same(complete, cut)
    if "lora" in trained:
        assert trace_vlm(["convert", str(cut.folder), str(tmp_path / "merged")]) == 0
        assert changed_parts(weights(cut.folder), weights(tmp_path / "merged")) == set()
    other.to_its_end()
    assert logged(other.folder) == pytest.approx(logged(complete.folder), abs=1e-5 if precision == "fp32" else 1e-2)
