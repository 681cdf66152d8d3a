"""The configuration of a training run: a YAML file, overridden by `--set key=value`; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..command import InputError
from ..settings import read_settings

PARTS = ("vision", "projector", "llm")


@dataclass(frozen=True)
class Lora:
    r: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True)
class GroundingLoss:
    """The attention term of `trace.attention.GroundingRecorder`; it needs instance maps."""

    weight: float = 0.3
    layer: int = 2
    head: int = 0


@dataclass(frozen=True)
class ModelParts:
    """A starting point put together from its parts: folders, files or names on the hub."""

    llm: str
    vision: str
    projector: str | None = None  # a folder or name with mm_projector.bin; random when absent


@dataclass(frozen=True)
class TrainConfig:
    """What a run does. Paths are relative to the working directory; sizes are in samples, lengths in tokens."""

    model: str | ModelParts  # a folder in Hugging Face's LLaVA format, a preset for random weights, or parts
    data: list[str]  # LLaVA JSON / JSONL files; for `objective: vision` folders of generated scenes
    output_dir: str
    image_folder: str = ""
    # language: next-token loss on the assistant's turns. vision: patch labels, the stand-in for CLIP's pre-training.
    objective: Literal["language", "vision"] = "language"
    template: str = "vicuna_v1"
    trainable: list[str] = field(default_factory=lambda: ["projector", "llm"])  # of PARTS; the rest is frozen
    lora: Lora | None = None
    learning_rate: float = 2e-5
    projector_learning_rate: float | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices by Muon, everything else by AdamW
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.0
    lr_schedule: str = "cosine"
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int = -1  # when positive, instead of epochs
    global_batch_size: int = 128  # rows a step over all processes; accumulation is derived
    micro_batch_size: int = 16  # rows a forward pass of one process
    max_length: int = 2048  # a longer sample is left out and reported
    share_image: int = 1  # samples of one image in a row
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = True
    deepspeed: str | None = None
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    group_by_length: bool = True
    grounding_loss: GroundingLoss | None = None
    dataloader_workers: int = 4
    save_steps: int = 500
    save_total_limit: int = 1
    logging_steps: int = 10
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.trainable) - set(PARTS))
        if unknown or not self.trainable:
            raise InputError(f"trainable: {unknown or 'is empty'}; expected some of {', '.join(PARTS)}")
        if self.objective == "vision" and self.trainable != ["vision"]:
            raise InputError("trainable: the vision objective trains [vision] alone")
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "share_image",
            "max_length",
            "save_steps",
            "logging_steps",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not positive")
        if self.global_batch_size % self.micro_batch_size:
            raise InputError(
                f"global_batch_size: {self.global_batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        if self.grounding_loss is not None and self.lora is not None:
            raise InputError("grounding_loss: does not go with lora")

    def accumulation(self, processes: int) -> int:
        """Forward passes a step of one process; InputError when the batch does not divide."""
        rows = self.micro_batch_size * processes
        if self.global_batch_size % rows:
            raise InputError(
                f"global_batch_size: {self.global_batch_size} is no multiple of micro_batch_size x processes = "
                f"{self.micro_batch_size} x {processes}"
            )
        return self.global_batch_size // rows


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply overrides `key=value` (`lora.r=64` reaches into a section; values are YAML)."""
    return read_settings(TrainConfig, path, overrides)
