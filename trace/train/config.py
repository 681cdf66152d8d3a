"""The configuration of a training run: a YAML file, overridden by `--set key=value`; an unknown key is an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from ..model.families.base import PARTS, Checkpoint
from ..utils.command import InputError
from ..utils.config import Field, ListOf, config_class, read_config

Mode = Literal["full", "frozen"]
Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
Rate = Annotated[float, Field(gt=0)]
FEWEST_STEPS = 50
FEW_STEPS = f"these are fewer than {FEWEST_STEPS} steps: raise epochs or max_steps, or lower global_batch_size"


@config_class
class Trainable:
    """How each part of the model is trained. `lora` puts adapters beside the frozen weights of the language model."""

    llm: Literal["full", "lora", "frozen"] = "full"
    projector: Mode = "full"
    vision: Mode = "frozen"


@config_class
class LearningRates:
    """A part's own learning rate; the others take `learning_rate`."""

    llm: Rate | None = None
    projector: Rate | None = None
    vision: Rate | None = None


@config_class
class Lora:
    r: int = Field(128, ge=1)
    alpha: int = Field(256, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)


@config_class
class GroundingLoss:
    """The attention term of `trace.model.attention_recorder.GroundingRecorder`; it needs instance maps."""

    weight: float = 0.3
    layer: int = Field(2, ge=0)
    head: int = Field(0, ge=0)


@config_class
class ModelParts:
    """A starting point built from its parts: folders, files or names on the hub."""

    llm: str
    vision: str
    projector: str | None = None  # a folder or name with mm_projector.bin; null: random weights


@config_class
class Evaluation:
    """Answers to a benchmark during training: point accuracy in the log, pictures in `evaluation/`."""

    benchmark: str  # a folder in Where2Place's layout
    steps: int = Field(500, ge=1)
    questions: int = Field(32, ge=1)
    pictures: int = Field(4, ge=0)
    reasoning: bool | None = None  # null: as the samples of the training do, or `grpo.reasoning`
    max_new_tokens: int = Field(512, ge=1)


@config_class
class Reward:
    """The weights of the parts of `trace.train.reward`, and its lengths, in units of the image's longer side."""

    format: float = Field(0.1, ge=0)
    mask: float = Field(0.8, ge=0)
    count: float = Field(0.05, ge=0)
    distinct: float = Field(0.05, ge=0)
    place: float = Field(0.1, ge=0)
    radius: float = Field(0.02, ge=0)  # points closer to each other than this count once
    falloff: float = Field(0.05, gt=0)  # from the region to where a point is worth nothing
    points: int | None = Field(None, ge=1)  # that are asked for; null: as many as the sample's own answer has


@config_class
class FreshScenes:
    """Scenes generated while training, so that no question is asked twice. `seed`: not that of any data set."""

    config: str  # YAML of trace.data.scenes.generate
    size: str = "336"  # side in pixels or WIDTHxHEIGHT
    seed: int = Field(0, ge=0)
    questions: int = Field(2, ge=1)  # asked about each scene


@config_class
class Grpo:
    """Group relative policy optimization. Batch sizes are in answers: a step has global_batch_size / group prompts."""

    group: int = Field(8, ge=2)  # answers to a prompt
    reasoning: bool = True  # whether the prompts ask for it
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    kl: float = Field(0.01, ge=0)  # to the starting point
    # how far below and above 1 the ratio to the sampling policy counts
    clip: list[float] = Field(default_factory=lambda: [0.2, 0.28], min_length=2, max_length=2)
    iterations: int = Field(1, ge=1)  # steps on the same answers
    reward: Reward = field(default_factory=Reward)
    scenes: FreshScenes | None = None  # null: the questions of `data`
    trainer: Literal["own", "trl"] = "own"  # own: LLaVA-1.5 models, one process
    vllm: bool = False  # trl generates with vLLM


@config_class
class TrainConfig:
    """A training run. Paths are relative to the working directory; sizes are in samples, lengths in tokens."""

    model: str | ModelParts  # a folder in Hugging Face's LLaVA format, a preset for random weights, or parts
    # LLaVA JSON / JSONL files, for grpo of generated questions; for `objective: vision` folders of generated scenes
    data: ListOf[str]
    output_dir: str
    image_folder: str = ""
    # language: next-token loss on the assistant's turns. vision: patch labels, in place of CLIP's pre-training. grpo:
    # reinforcement learning with a verifiable reward.
    objective: Literal["language", "vision", "grpo"] = "language"
    grpo: Grpo | None = None
    template: str = "vicuna_v1"
    # How points are learned, whatever the data hold (fractions): unit keeps them, native writes them as the model's
    # family does (core/conventions.yaml). The trained model records its choice, and is asked and read in it.
    coordinates: Literal["unit", "native"] = "unit"
    # A mapping of PARTS to full, lora or frozen; or a list of the parts to train (fully, or the llm with `lora`).
    trainable: ListOf[str] | Trainable = field(default_factory=Trainable)
    lora: Lora | None = None
    learning_rate: Rate = 2e-5
    learning_rates: LearningRates = field(default_factory=LearningRates)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices with Muon, everything else with AdamW
    muon_learning_rate: Rate = 0.02  # of the matrices, whatever `learning_rate` is
    muon_weight_decay: float = Field(0.05, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    lr_schedule: Schedule = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=0)
    loss_norm: Literal["step", "microbatch"] = "step"  # mean over a step's answer tokens, or LLaVA's mean of means
    epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, ge=-1)  # if positive, instead of epochs
    global_batch_size: int = Field(128, ge=1)  # rows a step over all processes; accumulation is derived
    micro_batch_size: int = Field(16, ge=1)  # rows a forward pass of one process; packing makes its own
    packing: bool = False  # concatenate a step's rows instead of padding them
    pack_tokens: int = Field(8192, ge=1)  # tokens of a forward pass of one process when packing
    max_length: int = Field(2048, ge=1)
    too_long: Literal["drop", "cut"] = "drop"  # a longer sample is left out, or cut after an answer; reported
    share_image: int = Field(1, ge=1)  # samples of one image in a row
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = True
    compile: bool = False  # torch.compile inside every layer: fewer, fused kernels, after about a minute
    deepspeed: str | None = None
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    group_by_length: bool = True  # rows of similar length in one forward pass; a step keeps its rows
    grounding_loss: GroundingLoss | None = None
    dataloader_workers: int = Field(4, ge=0)
    save_steps: int = Field(500, ge=1)
    save_total_limit: int = Field(1, ge=1)
    logging_steps: int = Field(10, ge=1)
    report_to: ListOf[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    evaluation: Evaluation | None = None
    seed: int = Field(0, ge=0)
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.trainable, Trainable):
            unknown = sorted(set(self.trainable) - set(PARTS))
            if unknown or not self.trainable:
                raise InputError(f"trainable: {unknown or 'is empty'}. Use some of {', '.join(PARTS)}.")
            modes = {part: "full" if part in self.trainable else "frozen" for part in PARTS}
            if self.lora and modes["llm"] == "full":
                modes["llm"] = "lora"
            object.__setattr__(self, "trainable", Trainable(**modes))  # type: ignore[arg-type]
        if self.modes.llm == "lora" and self.lora is None:
            object.__setattr__(self, "lora", Lora())
        vision, grounding, muon = self.objective == "vision", self.grounding_loss is not None, self.optimizer == "muon"
        if self.objective == "grpo" and self.grpo is None:
            object.__setattr__(self, "grpo", Grpo())
        grpo, rl = self.grpo is not None, self.grpo or Grpo()
        own = grpo and rl.trainer == "own"
        answers = "micro_batch_size" if own else "global_batch_size"
        if not self.trained_parts:
            raise InputError("trainable: every part is frozen. Train at least one.")
        if vision and self.trained_parts != ("vision",):
            raise InputError("trainable: the vision objective trains [vision] alone.")
        if self.lora is not None and self.modes.llm != "lora":
            raise InputError(f"lora: is given, but trainable.llm is {self.modes.llm}. Set it to lora or remove lora.")
        for part in PARTS:
            if getattr(self.learning_rates, part) is not None and part not in self.trained_parts:
                raise InputError(f"learning_rates.{part}: is given, but the {part} is frozen. Remove it.")
        conflicts = (
            ("grounding_loss", grounding, "lora", self.lora is not None, "Remove one of them."),
            ("grounding_loss", grounding, "packing", self.packing, "Set packing to false."),
            ("grounding_loss", grounding, "gradient_checkpointing", self.gradient_checkpointing, "Set it to false."),
            ("compile", self.compile, "grounding_loss", grounding, "Set compile to false."),
            ("compile", self.compile, "objective: vision", vision, "Set compile to false."),
            ("packing", self.packing, "objective: vision", vision, "Set packing to false."),
            ("deepspeed", self.deepspeed is not None, "objective: vision", vision, "Set deepspeed to null."),
            # Muon trains all matrices at muon_learning_rate, and needs them unsharded.
            ("learning_rates", self.learning_rates != LearningRates(), "optimizer: muon", muon, "Use adamw."),
            ("optimizer", muon, "deepspeed", self.deepspeed is not None, "Use adamw."),
            ("grpo", grpo, f"objective: {self.objective}", self.objective != "grpo", "Set objective to grpo."),
            ("grpo", grpo, "max_steps: -1", self.max_steps < 1, "Set the number of steps."),
            ("grpo", grpo, "packing", self.packing, "Set packing to false."),
            ("grpo", grpo, "grounding_loss", grounding, "Remove one of them."),
            ("grpo", grpo, "share_image", self.share_image > 1, "Set it to 1."),
            # Answers would be drawn from another policy than the one that is trained.
            ("grpo", grpo, "lora.dropout", bool(self.lora and self.lora.dropout), "Set it to 0."),
            ("grpo.group", grpo, answers, bool(getattr(self, answers) % rl.group), "Make it a multiple of the group."),
            ("grpo.iterations", grpo, "save_steps", bool(self.save_steps % rl.iterations), "Make it a multiple."),
            ("grpo.scenes", rl.scenes is not None, "data", bool(self.data), "Set one of them to null, or data to []."),
            ("grpo.trainer: own", own, "deepspeed", self.deepspeed is not None, "Use trl."),
            ("grpo.trainer: own", own, "grpo.vllm", rl.vllm, "Use trl."),
        )
        for key, is_set, other, other_is_set, advice in conflicts:
            if is_set and other_is_set:
                raise InputError(f"{key}: does not work with {other}. {advice}")
        if self.max_steps == 0:
            raise InputError("max_steps: is 0. Use a positive number, or -1 to go by epochs.")
        if not self.packing:
            self.accumulation(1)
        elif self.pack_tokens < self.max_length:
            raise InputError(f"pack_tokens: {self.pack_tokens} is less than max_length, {self.max_length}. Raise it.")

    def check_model(self, checkpoint: Checkpoint) -> None:
        """Raise InputError for settings that this model cannot be trained with."""
        only_llava = {
            "objective": self.objective == "vision", "template": self.template not in ("vicuna_v1", "v1"),
            "share_image": self.share_image > 1, "too_long": self.too_long == "cut",
            "grounding_loss": self.grounding_loss is not None,
        }  # fmt: skip
        for key in (key for key, is_set in only_llava.items() if is_set and checkpoint.image_tokens is None):
            raise InputError(f"{key}: works with LLaVA-1.5 models only, not with {checkpoint.name}. Remove it.")
        if self.grpo is not None and self.grpo.trainer == "own" and not checkpoint.packed_generation:
            raise InputError(f"grpo.trainer: own works with LLaVA-1.5 models, not with {checkpoint.name}. Use trl.")
        if self.packing and not checkpoint.packs:
            problem = f"{checkpoint.name} has layers that mix the rows of a packed batch"
            raise InputError(f"packing: {problem}. Set packing to false; rows are then padded.")

    @property
    def modes(self) -> Trainable:
        """How each part is trained; `trainable` after a list of parts was converted."""
        assert isinstance(self.trainable, Trainable)
        return self.trainable

    @property
    def trained_parts(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if getattr(self.modes, part) != "frozen")

    @property
    def lora_rank(self) -> int:
        return self.lora.r if self.lora is not None else 0

    def learning_rate_of(self, part: str) -> float:
        return float(getattr(self.learning_rates, part) or self.learning_rate)

    def steps(self, rows: int) -> int:
        """Return the optimizer steps of a run over `rows`; rows after an epoch's last full step are not learned."""
        if self.max_steps > 0:
            return self.max_steps
        return max(1, math.ceil(self.epochs * (rows // self.global_batch_size)))  # as the Trainer counts

    def accumulation(self, processes: int) -> int:
        """Return the padded forward passes of one process in a step; InputError if the batch does not divide."""
        total, micro = self.global_batch_size, self.micro_batch_size
        if total % (micro * processes):
            share = total // processes if total % processes == 0 else 0
            fitting = next((size for size in range(min(share, micro), 0, -1) if share % size == 0), 0)
            advice = f"Set micro_batch_size={fitting}." if fitting else f"Make it a multiple of {processes}."
            sizes = f"{total} is not a multiple of micro_batch_size x processes, {micro} x {processes}"
            raise InputError(f"global_batch_size: {sizes}. {advice}")
        return total // (micro * processes)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply overrides `key=value`; `lora.r=64` reaches into a section."""
    return read_config(TrainConfig, path, overrides)
