"""The configuration of a training run: a YAML file, overridden by `--set key=value`; an unknown key is an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from ..utils.command import InputError
from ..utils.config import ListOf, config_class, read_config

PARTS = ("vision", "projector", "llm")
Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


@config_class
class Trainable:
    """How each part of the model learns. `lora` puts adapters beside the frozen weights of the language model."""

    llm: Literal["full", "lora", "frozen"] = "full"
    projector: Literal["full", "frozen"] = "full"
    vision: Literal["full", "frozen"] = "frozen"


@config_class
class LearningRates:
    """A part's own learning rate; the others take `learning_rate`."""

    llm: float | None = None
    projector: float | None = None
    vision: float | None = None


@config_class
class Lora:
    r: int = 128
    alpha: int = 256
    dropout: float = 0.05
    shared_dropout: bool = False  # one mask for the matrices of one input, not one each: `trace.train.dropout`


@config_class
class GroundingLoss:
    """The attention term of `trace.model.attention_recorder.GroundingRecorder`; it needs instance maps."""

    weight: float = 0.3
    layer: int = 2
    head: int = 0


@config_class
class ModelParts:
    """A starting point put together from its parts: folders, files or names on the hub."""

    llm: str
    vision: str
    projector: str | None = None  # a folder or name with mm_projector.bin; random when absent


@config_class
class Evaluation:
    """Answers to a benchmark while training goes on: point accuracy in the log, pictures in `evaluation/`."""

    benchmark: str  # a folder in Where2Place's layout
    steps: int = 500
    questions: int = 32
    pictures: int = 4
    reasoning: bool = True
    max_new_tokens: int = 512


@config_class
class TrainConfig:
    """What a run does. Paths are relative to the working directory; sizes are in samples, lengths in tokens."""

    model: str | ModelParts  # a folder in Hugging Face's LLaVA format, a preset for random weights, or parts
    data: ListOf[str]  # LLaVA JSON / JSONL files; for `objective: vision` folders of generated scenes
    output_dir: str
    image_folder: str = ""
    # language: next-token loss on the assistant's turns. vision: patch labels, the stand-in for CLIP's pre-training.
    objective: Literal["language", "vision"] = "language"
    template: str = "vicuna_v1"
    # A mapping of PARTS to full, lora or frozen; or a list of the parts that learn (fully, or the llm by `lora`).
    trainable: ListOf[str] | Trainable = field(default_factory=Trainable)
    lora: Lora | None = None
    learning_rate: float = 2e-5
    learning_rates: LearningRates = field(default_factory=LearningRates)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices by Muon, everything else by AdamW
    muon_learning_rate: float = 0.02  # of the matrices, whatever `learning_rate` is
    muon_weight_decay: float = 0.05
    weight_decay: float = 0.0
    lr_schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    loss_norm: Literal["step", "microbatch"] = "step"  # mean over a step's answer tokens, or LLaVA's mean of means
    epochs: float = 1.0
    max_steps: int = -1  # when positive, instead of epochs
    global_batch_size: int = 128  # rows a step over all processes; accumulation is derived
    micro_batch_size: int = 16  # rows a forward pass of one process; packing makes its own
    packing: bool = False  # lay a step's rows end to end instead of padding them
    pack_tokens: int = 8192  # tokens a forward pass of one process may have when packing
    max_length: int = 2048
    too_long: Literal["drop", "cut"] = "drop"  # a longer sample is left out, or cut behind an answer; reported
    share_image: int = 1  # samples of one image in a row
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = True
    compile: bool = False  # the insides of every layer by torch.compile: fewer and fused kernels, made for a minute
    deepspeed: str | None = None
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    group_by_length: bool = True  # rows of like length in one forward pass; the rows of a step stay what they are
    grounding_loss: GroundingLoss | None = None
    dataloader_workers: int = 4
    save_steps: int = 500
    save_total_limit: int = 1
    logging_steps: int = 10
    report_to: ListOf[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    evaluation: Evaluation | None = None
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "trainable", self._trainable())
        if self.modes.llm == "lora" and self.lora is None:
            object.__setattr__(self, "lora", Lora())
        self._check_parts()
        self._check_numbers()
        self._check_batches()

    def _trainable(self) -> Trainable:
        if isinstance(self.trainable, Trainable):
            return self.trainable
        unknown = sorted(set(self.trainable) - set(PARTS))
        if unknown or not self.trainable:
            raise InputError(f"trainable: {unknown or 'is empty'}; expected some of {', '.join(PARTS)}")
        full: dict[str, Literal["full", "frozen"]] = {
            part: "full" if part in self.trainable else "frozen" for part in PARTS
        }
        llm: Literal["full", "lora", "frozen"] = "lora" if self.lora and full["llm"] == "full" else full["llm"]
        return Trainable(llm=llm, projector=full["projector"], vision=full["vision"])

    @property
    def modes(self) -> Trainable:
        assert isinstance(self.trainable, Trainable)  # since __post_init__
        return self.trainable

    @property
    def learns(self) -> tuple[str, ...]:
        """The parts that learn, fully or by adapters."""
        return tuple(part for part in PARTS if getattr(self.modes, part) != "frozen")

    @property
    def rank(self) -> int:
        """Of the adapters, 0 without."""
        return self.lora.r if self.lora is not None else 0

    def rate(self, part: str) -> float:
        """The learning rate of a part."""
        own: float | None = getattr(self.learning_rates, part)
        return self.learning_rate if own is None else own

    def _check_parts(self) -> None:
        if not self.learns:
            raise InputError("trainable: every part is frozen, nothing would learn")
        if self.objective == "vision" and self.learns != ("vision",):
            raise InputError("trainable: the vision objective trains [vision] alone")
        if self.lora is not None and self.modes.llm != "lora":
            raise InputError(f"lora: is given, but trainable.llm is {self.modes.llm}; set it to lora or remove lora")
        for part in PARTS:
            if getattr(self.learning_rates, part) is not None and part not in self.learns:
                raise InputError(f"learning_rates.{part}: is given, but the {part} is frozen")
        if self.grounding_loss is not None and self.lora is not None:
            raise InputError("grounding_loss: does not go with lora")
        if self.grounding_loss is not None and self.packing:
            raise InputError("grounding_loss: does not go with packing; set packing to false")
        if self.grounding_loss is not None and self.gradient_checkpointing:
            raise InputError("grounding_loss: does not go with gradient_checkpointing; set that to false")
        if self.compile and (self.grounding_loss is not None or self.objective == "vision"):
            other = "the vision objective" if self.objective == "vision" else "grounding_loss"
            raise InputError(f"compile: does not go with {other}; set it to false")
        if self.optimizer == "muon" and self.learning_rates != LearningRates():
            raise InputError(
                "learning_rates: do not go with optimizer: muon, whose matrices all learn at muon_learning_rate; "
                "take adamw, or leave them out"
            )
        if self.optimizer == "muon" and self.deepspeed is not None:
            raise InputError("optimizer: muon does not go with deepspeed, which shards matrices; take adamw")
        if self.objective == "vision" and self.deepspeed is not None:
            raise InputError("deepspeed: does not go with the vision objective, whose models are small; set it to null")

    def _check_numbers(self) -> None:
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "share_image",
            "max_length",
            "save_steps",
            "logging_steps",
        ):
            _positive(self, name)
        for name in ("save_total_limit", "epochs", "learning_rate", "muon_learning_rate"):
            _positive(self, name)
        for name in PARTS:
            if getattr(self.learning_rates, name) is not None:
                _positive(self.learning_rates, name, "learning_rates.")
        for name in ("weight_decay", "muon_weight_decay", "max_grad_norm", "dataloader_workers", "seed"):
            if not 0 <= getattr(self, name) < math.inf:  # nor is .nan
                raise InputError(f"{name}: {getattr(self, name)} is neither 0 nor a positive number")
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"max_steps: {self.max_steps} is neither positive nor -1, which goes by epochs")
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio: {self.warmup_ratio} is no share of the steps, from 0 to below 1")
        if self.lora is not None:
            _positive(self.lora, "r", "lora.")
            _positive(self.lora, "alpha", "lora.")
            if not 0 <= self.lora.dropout < 1:
                raise InputError(f"lora.dropout: {self.lora.dropout} is not from 0 to below 1")
            if self.lora.shared_dropout and not self.lora.dropout:
                raise InputError("lora.shared_dropout: there is no dropout to share; set lora.dropout above 0")
        if self.evaluation is not None:
            for name in ("steps", "questions", "max_new_tokens"):
                _positive(self.evaluation, name, "evaluation.")

    def _check_batches(self) -> None:
        if self.packing:
            if self.pack_tokens < self.max_length:
                raise InputError(f"pack_tokens: {self.pack_tokens} is less than max_length {self.max_length}")
            if self.objective == "vision":
                raise InputError("packing: is for the language objective")
        elif self.global_batch_size % self.micro_batch_size:
            raise InputError(
                f"global_batch_size: {self.global_batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )

    def steps(self, rows: int) -> int:
        """Optimizer steps of a run over `rows`; what is left of an epoch behind its last whole step is not learned."""
        if self.max_steps > 0:
            return self.max_steps
        return max(1, math.ceil(self.epochs * (rows // self.global_batch_size)))  # as the Trainer counts

    def accumulation(self, processes: int) -> int:
        """Padded forward passes a step of one process; InputError when the batch does not divide."""
        rows = self.micro_batch_size * processes
        if self.global_batch_size % rows:
            share = self.global_batch_size // processes
            fitting = next((size for size in range(min(share, self.micro_batch_size), 0, -1) if not share % size), 0)
            advice = (
                f"micro_batch_size={fitting} is" if fitting and not self.global_batch_size % processes else "none is"
            )
            raise InputError(
                f"global_batch_size: {self.global_batch_size} is no multiple of micro_batch_size x processes = "
                f"{self.micro_batch_size} x {processes}; {advice}"
            )
        return self.global_batch_size // rows


def _positive(section: Any, name: str, prefix: str = "") -> None:
    if not 0 < getattr(section, name) < math.inf:  # nor is .nan
        raise InputError(f"{prefix}{name}: {getattr(section, name)} is not positive")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply overrides `key=value` (`lora.r=64` reaches into a section; values are YAML)."""
    return read_config(TrainConfig, path, overrides)
