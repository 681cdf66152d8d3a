"""The thin layer over transformers' Trainer: what is learned, with which optimizer, in which order, saved as what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer

from ..attention import GroundingRecorder, recording
from ..model.checkpoint import Checkpoint
from ..prompts import IGNORE
from .config import TrainConfig
from .optimizer import MuonWithAdamW

PART_PREFIXES = {"vision": ("model.vision_tower.",), "projector": ("model.multi_modal_projector.",)}
LORA_TARGETS = r"^model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"


def part_of(name: str) -> str:
    """Which of vision, projector and llm a parameter of the model belongs to (LoRA's wrapping included)."""
    bare = re.sub(r"^base_model\.model\.", "", name)
    return next((part for part, prefixes in PART_PREFIXES.items() if bare.startswith(prefixes)), "llm")


def freeze(model: nn.Module, trainable: list[str]) -> None:
    """Let exactly the named parts learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in trainable)


@dataclass
class Prepared:
    """What an objective hands to the training loop: the trainer, the model, and what the run's record should tell."""

    trainer: Trainer
    checkpoint: Checkpoint
    notes: dict[str, Any]

    def result(self) -> Checkpoint:
        """The checkpoint to save after training."""
        return self.checkpoint


class LanguageTrainer(Trainer):
    """Next-token loss on labelled tokens, plus the grounding term if the configuration has one.

    Loss is the mean over the labelled tokens of the whole step. Logits are computed only where some row has a label,
    and only over the tokenizer's own vocabulary: padded rows of the embedding never enter.
    """

    def __init__(self, *args: Any, config: TrainConfig, checkpoint: Checkpoint, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config, self.checkpoint = config, checkpoint
        self.model_accepts_loss_kwargs = True
        self._vocabulary = len(checkpoint.tokenizer)
        self._sums: dict[str, list[Tensor]] = {"token_loss": [], "grounding_loss": []}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        labels_BT = inputs.pop("labels")
        guided_rows, guided_patches = inputs.pop("guided_rows", None), inputs.pop("guided_patches", None)
        columns = (labels_BT[:, 1:] != IGNORE).any(0).nonzero()[:, 0]  # position t predicts the label at t + 1
        wanted_BC = labels_BT[:, columns + 1]
        call = {**inputs, "logits_to_keep": columns, "use_cache": False}
        term, recorder = self.config.grounding_loss, None
        if term is not None and guided_rows is not None:
            starts = (inputs["input_ids"] == self.checkpoint.image_token_id).int().argmax(1)
            recorder = GroundingRecorder(term.layer, term.head, guided_rows, guided_patches, starts)
            with recording(model, recorder):
                outputs = model(**call)
        else:
            outputs = model(**call)
        logits_BCV = outputs.logits[..., : self._vocabulary].float()
        total = functional.cross_entropy(
            logits_BCV.flatten(0, 1), wanted_BC.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        count = (wanted_BC != IGNORE).sum()
        loss = total / (num_items_in_batch if num_items_in_batch is not None else count)
        self._sums["token_loss"].append((total / count).detach())
        if recorder is not None and term is not None and recorder.loss is not None:
            loss = loss + term.weight * recorder.loss / self.args.gradient_accumulation_steps
            self._sums["grounding_loss"].append(recorder.loss.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, values in self._sums.items():
            if values and "loss" in logs:
                logs[name] = float(torch.stack(values).mean())
            values.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.config)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read the weights back through `from_pretrained`.

        The names on disk are not the names in memory; the Trainer's own loading compares them unconverted, finds
        nothing, and resumes from the initial weights without a word.
        """
        if isinstance(self.model, PreTrainedModel):
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        super()._save(str(folder), state_dict)
        self.checkpoint.processor.save_pretrained(folder)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (or Muon with AdamW) over what may learn; the projector at its own rate, no decay on vectors."""
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    by_muon = {
        name
        for name, parameter in learning
        if config.optimizer == "muon" and parameter.ndim == 2 and not re.search(r"embed|lm_head|head\.", name)
    }
    rest = list(_groups([(name, one) for name, one in learning if name not in by_muon], config))
    if not by_muon:
        return torch.optim.AdamW(rest, betas=(0.9, 0.999), eps=1e-8)
    matrices = [parameter for name, parameter in learning if name in by_muon]
    return MuonWithAdamW(matrices, rest, config.muon_learning_rate)


def _groups(learning: list[tuple[str, nn.Parameter]], config: TrainConfig) -> Iterator[dict[str, Any]]:
    for part in ("llm", "projector", "vision"):
        for decayed in (True, False):
            chosen = [p for name, p in learning if part_of(name) == part and (p.ndim >= 2) == decayed]
            rate = config.projector_learning_rate if part == "projector" else None
            if chosen:
                yield {
                    "params": chosen,
                    "lr": config.learning_rate if rate is None else rate,
                    "weight_decay": config.weight_decay if decayed else 0.0,
                }
