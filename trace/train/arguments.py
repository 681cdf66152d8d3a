"""The configuration in the Trainer's own terms, and the meeting of the processes before anything else."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..utils.command import InputError
from .config import TrainConfig


def begin(config: TrainConfig) -> None:
    """Look at the machine, and let the processes meet, under DeepSpeed with a backend that this machine has.

    Raises:
        InputError: the GPU has no bfloat16, or DeepSpeed is asked for and not installed.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise InputError(
            f"precision: bf16 needs an NVIDIA GPU of the Ampere generation or later, not {name}; take fp32"
        )
    if on_gpu and "RANK" not in os.environ and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        print(f"one of {count} GPUs is used; torchrun --nproc-per-node {count} -m trace_vlm.train.train ... takes all")
    if config.deepspeed is None:
        return
    # DeepSpeed calls torch's collectives by their old names, at every step.
    warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning)
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:  # a single process, started without a launcher
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({"MASTER_PORT": str(_free_port()), **alone})
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(f"deepspeed: is not installed ({error}); pip install deepspeed, or set it to null") from None
    # An operator for inference on CPUs, which would be compiled for minutes and is never called here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def training_arguments(config: TrainConfig, folder: Path, passes: int) -> TrainingArguments:
    """TrainingArguments with `passes` forward passes a step of one process."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=1 if config.packing else config.micro_batch_size,
        gradient_accumulation_steps=passes,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        **_checkpointing(config),
        deepspeed=config.deepspeed,
        ddp_find_unused_parameters=config.modes.vision == "full",  # a tower's last layer is never read
        dataloader_num_workers=config.dataloader_workers,
        dataloader_persistent_workers=config.dataloader_workers > 0,
        dataloader_drop_last=True,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide what the watch has to see
        report_to=config.report_to or "none",
        remove_unused_columns=False,
        seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # without a launcher it would scatter our batches over all GPUs
    return arguments


def _checkpointing(config: TrainConfig) -> dict[str, Any]:
    """By the newer of the two names that transformers 5 has for it, where it has both."""
    known = TrainingArguments.__dataclass_fields__
    name = next(one for one in ("activation_checkpointing", "gradient_checkpointing") if one in known)
    options = {"use_reentrant": False} if config.gradient_checkpointing else None
    return {name: config.gradient_checkpointing, f"{name}_kwargs": options}
