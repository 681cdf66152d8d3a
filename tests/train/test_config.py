"""Configurations: every file loads, a wrong value is named by its key, batches divide."""

import json
import re

import pytest
from shell import ROOT

from trace_vlm.train.config import load_config
from trace_vlm.train.train import main
from trace_vlm.utils.command import InputError

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_opens_with_its_command(path):
    header = path.read_text().partition("\nmodel:")[0]
    assert re.search(rf"^#.*(trace|trace_vlm)\.train\.train --config configs/{path.name}", header, re.MULTILINE)
    config = load_config(path)
    assert config.deepspeed is None or (ROOT / config.deepspeed).is_file()


def test_the_published_hyper_parameters():
    full, adapters = (load_config(CONFIGS / f"{name}.yaml") for name in ("train_13b_fft", "train_7b_lora"))
    for config in (full, adapters):
        assert (config.learning_rate, config.lr_schedule, config.warmup_ratio) == (2e-6, "cosine", 0.03)
        assert (config.optimizer, config.precision, config.epochs) == ("adamw", "bf16", 1)
        assert (config.global_batch_size, config.weight_decay, config.max_length) == (128, 0, 2048)
        assert config.gradient_checkpointing and config.group_by_length and config.dataloader_workers == 12
        assert (config.modes.vision, config.modes.projector, config.grounding_loss) == ("frozen", "full", None)
        assert config.accumulation(8) == 1
    assert full.lora is None and full.modes.llm == "full"
    assert (adapters.modes.llm, adapters.lora.r, adapters.lora.alpha) == ("lora", 128, 256)


@pytest.mark.parametrize(("override", "key"), [
    ("learnig_rate=1", "learnig_rate"), ("grounding_loss.wait=1", "grounding_loss.wait"), ("seed", "key=value"),
    ("learning_rate=fast", "learning_rate"), ("precision=fp64", "precision"), ("data=[1, 2]", "data"),
    ("trainable={llm: adapters}", "trainable.llm"), ("report_to=wandbb", "report_to"), ("max_steps=0", "max_steps"),
    ("evaluation={benchmark: b, steps: 0}", "evaluation.steps"), ("warmup_ratio=100", "warmup_ratio"),
    ("learning_rate=.nan", "learning_rate"), ("learning_rates.llm=-1", "learning_rates.llm"),
    ("global_batch_size=9", "global_batch_size"), ("trainable=[projektor]", "trainable: .*projektor"),
    ("trainable={llm: frozen, projector: frozen}", "trainable"), ("deepspeed=a.json", "optimizer: .*deepspeed"),
    ("learning_rates.vision=1", "learning_rates.vision"), ("learning_rates.projector=1e-4", "learning_rates"),
    ("lora.r=8", "grounding_loss: .*lora"), ("packing=true", "grounding_loss: .*packing"),
    ("gradient_checkpointing=true", "grounding_loss: .*gradient_checkpointing"),
])  # fmt: skip
def test_a_wrong_value_is_named(override, key):
    with pytest.raises(InputError, match=key):
        load_config(CONFIGS / "train_nano.yaml", ["data=a.json", "output_dir=o", override])


def test_steps_and_accumulation_follow_overrides():
    overrides = ["output_dir=o", "grounding_loss.weight=0.5", "max_steps=-1", "epochs=1.5", "global_batch_size=32"]
    config = load_config(CONFIGS / "train_nano.yaml", [*overrides, "micro_batch_size=8"])
    assert (config.grounding_loss.weight, config.grounding_loss.layer) == (0.5, 2)
    assert (config.steps(104), config.steps(128), config.steps(8)) == (5, 6, 1)  # 1.5 x 3 is 4.5: a begun step counts
    assert (config.accumulation(1), config.accumulation(2)) == (4, 2)
    with pytest.raises(InputError, match="global_batch_size: .*8 x 3"):
        config.accumulation(3)
    with pytest.raises(InputError, match="global_batch_size: .*8 x 8.*micro_batch_size=4"):
        config.accumulation(8)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("deepspeed/*.json")), ids=lambda path: path.stem)
def test_deepspeed_configurations_leave_to_the_trainer_what_it_knows(path):
    values = json.loads(path.read_text())
    assert not {"optimizer", "scheduler"} & set(values)
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert [values[name] for name in sizes] == ["auto"] * 4
    section = values["zero_optimization"]
    assert section["stage"] == (2 if path.name == "zero2.json" else 3)
    assert (section["stage"] == 3) == section.get("stage3_gather_16bit_weights_on_model_save", False)
    assert ("offload_optimizer" in section) == ("offload" in path.name)
    zero = pytest.importorskip("deepspeed.runtime.zero.config", reason="DeepSpeed comes with --gpu")
    zero.DeepSpeedZeroConfig(**{name: value for name, value in section.items() if value != "auto"})  # knows every key


@pytest.mark.parametrize(("model", "message"), [
    ("trace/assets/nano", ""), ("nowhere", "the folder nowhere does not exist"),
    ("nobody/nothing", "nobody/nothing is neither in the hub's cache"),
])  # fmt: skip
def test_a_check_reads_the_inputs_and_starts_nothing(tmp_path, monkeypatch, model, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "data.json").write_text("[]")
    values = f"model={model} data={tmp_path}/data.json image_folder={tmp_path} output_dir={tmp_path}/out".split()
    arguments = ["--config", "configs/train_nano.yaml", "--set", *values, "--check", "1"]
    if message:
        with pytest.raises(InputError, match=message):
            main(arguments)
    else:
        assert main(arguments) == 0
    assert not (tmp_path / "out").exists()
