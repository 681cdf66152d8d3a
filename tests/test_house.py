"""The configurations and what stands around the package: each can be used as it lies there."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from shell import ROOT, name_of, pins

from trace_vlm.train.config import load_config

TRAINING_CONFIGS = sorted(ROOT.glob("configs/*.yaml"))
DEEPSPEED = sorted(ROOT.glob("configs/deepspeed/*.json"))

# --- configurations -------------------------------------------------------------------------------


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=name_of)
def test_a_training_configuration_loads_and_opens_with_its_command(path: Path) -> None:
    assert re.search(rf"(trace|trace_vlm)\.train\.train --config configs/{path.name}", header(path))
    config = load_config(path)
    if config.deepspeed is not None:
        assert (ROOT / config.deepspeed).is_file()


def test_each_training_script_has_its_configuration() -> None:
    started = {path.stem for path in ROOT.glob("scripts/*.sh") if "launch_training configs/" in path.read_text()}
    assert {"train_13b_fft", "train_7b_lora", "pretrain_projector"} <= started
    assert started <= {path.stem for path in TRAINING_CONFIGS}


def test_the_published_hyper_parameters() -> None:
    full = load_config(ROOT / "configs/train_13b_fft.yaml")
    adapters = load_config(ROOT / "configs/train_7b_lora.yaml")
    for config in (full, adapters):
        assert (config.learning_rate, config.lr_schedule, config.warmup_ratio) == (2e-6, "cosine", 0.03)
        assert (config.optimizer, config.precision, config.epochs) == ("adamw", "bf16", 1)
        assert (config.global_batch_size, config.weight_decay, config.max_length) == (128, 0, 2048)
        assert config.gradient_checkpointing and config.group_by_length and config.dataloader_workers == 12
        assert (config.trainable.vision, config.trainable.projector) == (
            "frozen",
            "full",
        ) and config.grounding_loss is None
        assert config.accumulation(8) == 1
    assert full.lora is None and full.trainable.llm == "full" and adapters.trainable.llm == "lora"
    assert adapters.lora is not None and (adapters.lora.r, adapters.lora.alpha) == (128, 256)


def test_there_are_three_deepspeed_configurations() -> None:
    assert [path.name for path in DEEPSPEED] == ["zero2.json", "zero3.json", "zero3_offload.json"]


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_a_deepspeed_configuration_leaves_to_the_trainer_what_the_trainer_knows(path: Path) -> None:
    found = json.loads(path.read_text())
    assert not {"optimizer", "scheduler"} & set(found), "the Trainer makes them, with a learning rate for each group"
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert [found[name] for name in sizes] == ["auto"] * 4
    zero = found["zero_optimization"]
    assert zero["stage"] == (2 if path.name == "zero2.json" else 3)
    assert (zero["stage"] == 3) == zero.get("stage3_gather_16bit_weights_on_model_save", False)
    assert ("offload_optimizer" in zero) == ("offload" in path.name)


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_deepspeed_knows_every_key_of_its_section(path: Path) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config", reason="DeepSpeed comes with --gpu")
    section = json.loads(path.read_text())["zero_optimization"]
    zero.DeepSpeedZeroConfig(**{name: value for name, value in section.items() if value != "auto"})


# --- what is declared -----------------------------------------------------------------------------


def project() -> Mapping[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_direct_dependency_has_one_tested_version_inside_its_range() -> None:
    found = project()
    groups = [found["dependencies"], *found["optional-dependencies"].values()]  # type: ignore[attr-defined, misc]
    needs = {need.name.lower(): need for group in groups for need in map(Requirement, group)}
    assert set(pins()) == set(needs)
    for name, pin in pins().items():
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert needs[name].specifier.contains(exact.version), f"{pin} is outside {needs[name]}"


def test_what_breaks_an_installation_is_in_no_requirement() -> None:
    assert not {"torchvision", "flash-attn", "flash_attn"} & set(pins())


def test_the_version_is_the_same_everywhere() -> None:
    import trace_vlm

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert trace_vlm.__version__ == project()["version"] == citation["version"]


def test_pre_commit_runs_the_tested_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks] == [[str(pins()["ruff"])]] * 2


def test_the_three_papers_are_cited() -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    numbers = [one["identifiers"][0]["value"].removeprefix("arXiv:") for one in references]
    assert numbers == ["2511.01999", "2406.10721", "2310.03744"]
    assert all(one["url"].endswith(number) for one, number in zip(references, numbers, strict=True))
