"""Train a model: one configuration, one folder of results, the same command to start and to continue.

    python -m trace.train.train --config configs/train_nano.yaml --set output_dir=output/nano data=DATA/cor.json

The output folder is the trained model itself (Hugging Face's LLaVA format, or a PEFT adapter with the projector), with
`run.json` (configuration, versions, data hashes, time), `curves.png`, `log.jsonl`, TensorBoard's files, and
`checkpoints/` while the run lasts. A finished run is not repeated; an interrupted one continues from its last save.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import InputError, Parser, existing_file, existing_folder, output_folder, run
from ..records import read_json, sha256, write_json, write_jsonl
from .config import TrainConfig, load_config

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..model.checkpoint import Checkpoint
    from .trainer import Prepared


def train(config: TrainConfig) -> Path:
    """Run a configuration to its end; returns the folder of the trained model."""
    folder = output_folder(config.output_dir)
    record = _open_record(config, folder)
    if record.get("finished"):
        print(f"{folder} is finished; nothing to do")
        return folder
    _check_inputs(config)

    if config.objective == "vision":
        from .vision import prepare
    else:
        from .language import prepare
    arguments = training_arguments(config, folder)
    prepared = prepare(config, arguments)
    write_json(folder / "run.json", record)

    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = folder / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if config.resume == "auto" and checkpoints.is_dir() else None
    started = time.monotonic()
    prepared.trainer.add_callback(_clock(folder))
    prepared.trainer.train(resume_from_checkpoint=last)
    if prepared.trainer.is_world_process_zero():
        _finish(prepared, folder, record, time.monotonic() - started)
    return folder


def _open_record(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The run's record; InputError when the folder holds a run of another configuration."""
    wanted = dataclasses.asdict(config)
    path = folder / "run.json"
    if not path.is_file():
        return {"config": wanted, "versions": versions(), "data_sha256": _hashes(config), "finished": False}
    found = read_json(path)
    for key, value in wanted.items():
        if key not in ("resume", "dataloader_workers", "output_dir") and found.get("config", {}).get(key) != value:
            raise InputError(
                f"{folder} holds a run with {key}: {found.get('config', {}).get(key)!r}, now {value!r}; "
                "choose another output_dir or remove the folder"
            )
    return dict(found)


def _check_inputs(config: TrainConfig) -> None:
    for path in config.data:
        if config.objective == "vision":
            existing_folder(path, "data: the folder of scenes")
        else:
            existing_file(path, "data: the file")
    if config.objective == "language":
        existing_folder(config.image_folder, "image_folder:")
    if config.deepspeed is not None:
        existing_file(config.deepspeed, "deepspeed: the configuration")
    config.accumulation(_processes())


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _hashes(config: TrainConfig) -> dict[str, str]:
    names = [Path(path) / "views.jsonl" if config.objective == "vision" else Path(path) for path in config.data]
    return {str(path): sha256(path) for path in names if path.is_file()}


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("trace-vlm", "torch", "transformers", "accelerate", "peft", "deepspeed"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def training_arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    """The configuration in the Trainer's own terms."""
    import torch
    from transformers import TrainingArguments

    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.accumulation(_processes()),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        deepspeed=config.deepspeed,
        dataloader_num_workers=config.dataloader_workers,
        dataloader_persistent_workers=config.dataloader_workers > 0,
        dataloader_drop_last=True,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        report_to=config.report_to or "none",
        remove_unused_columns=False,
        seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )


def _clock(folder: Path) -> Any:
    """A callback that keeps `log.jsonl`: every logged step with its seconds of wall clock and of CPU, over resumes."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            before = [entry for entry in state.log_history if "cpu_seconds" in entry]
            self.base = (before[-1]["seconds"], before[-1]["cpu_seconds"]) if before else (0.0, 0.0)
            self.start = (time.monotonic(), time.process_time())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kw: Any) -> None:
            if not state.log_history or not state.is_world_process_zero:
                return
            state.log_history[-1] |= {
                "seconds": round(self.base[0] + time.monotonic() - self.start[0], 2),
                "cpu_seconds": round(self.base[1] + time.process_time() - self.start[1], 2),
            }
            write_jsonl(folder / "log.jsonl", state.log_history)

    return Clock()


def _finish(prepared: Prepared, folder: Path, record: Mapping[str, Any], seconds: float) -> None:
    """Save the model into the run's folder, then say that the run is whole."""
    history = prepared.trainer.state.log_history
    _save_into(prepared.result(), folder)
    write_curves(history, folder)
    timed = next((entry for entry in reversed(history) if "cpu_seconds" in entry), {})
    done = {
        "finished": True,
        "steps": prepared.trainer.state.global_step,
        "seconds": timed.get("seconds", round(seconds, 2)),
        "cpu_seconds": timed.get("cpu_seconds"),
        **prepared.notes,
    }
    write_json(folder / "run.json", {**record, **done})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _save_into(checkpoint: Checkpoint, folder: Path) -> None:
    from ..model.checkpoint import save

    unfinished = folder / ".model"
    shutil.rmtree(unfinished, ignore_errors=True)
    save(checkpoint, unfinished)
    # config.json (adapter_config.json) goes last: without it the folder is no model yet.
    for file in sorted(unfinished.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
        os.replace(file, folder / file.name)
    unfinished.rmdir()


def write_curves(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """The curves of every logged step as a picture."""
    from ..canvas import save
    from ..plots import training_curves

    names = ("loss", "token_loss", "grounding_loss", "learning_rate")
    shown = [name for name in names if any(name in entry for entry in history)]
    save(training_curves({folder.name: history}, shown), folder / "curves.png")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.train.train", description="Train a model from a YAML configuration.")
    parser.add_argument("--config", required=True, help="the YAML file; its keys are the fields of TrainConfig")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the file"
    )
    parser.add_argument("--local-rank", type=int, default=-1, help="set by the deepspeed launcher")
    args = parser.parse_args(argv)
    folder = train(load_config(args.config, args.set))
    print(f"model: {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
