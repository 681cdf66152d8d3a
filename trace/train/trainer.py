"""The thin layer over transformers' Trainer: in which order, with which loss, watched how, saved as what."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

from ..core.prompts import IGNORE
from ..model.attention_recorder import GroundingRecorder, recording
from ..model.checkpoint import Checkpoint, save
from ..utils.command import InputError
from .checkpoints import UNFINISHED, full_disk_told, note_world, universal
from .config import TrainConfig
from .guards import StopSignal, Watch
from .model_size import Work, dimensions, training_flops
from .param_groups import make_optimizer
from .sampling import ProcessBatches
from .step_metrics import Tally
from .varlen_attention import Line


@dataclass
class Prepared:
    """What an objective hands to the training loop: the trainer, the model, and what the run's record should tell."""

    trainer: Trainer
    checkpoint: Checkpoint
    notes: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the trained model; all processes take part, since each may hold a share of it."""
        with full_disk_told(folder.parent):
            self.trainer.save_model(str(folder))

    @property
    def preempted(self) -> bool:
        return bool(getattr(self.trainer, "preempted", False))


class SteadyTrainer(Trainer):
    """Checkpoints that appear whole, an end on SIGTERM that loses nothing; what every objective needs."""

    def __init__(self, *args: Any, config: TrainConfig, stop: StopSignal, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config, self._stop, self.preempted = config, stop, False
        self._closed = -1  # the last step that was accounted for

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.config)
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return super().training_step(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            key, step = "pack_tokens" if self.config.packing else "micro_batch_size", self.state.global_step + 1
            raise InputError(
                f"{key}: {getattr(self.config, key)} does not fit into the GPU's memory (step {step}); take less, "
                "gradient_checkpointing, or more sharding in deepspeed: python -m trace.train.plan says what fits. "
                f"{' '.join(str(error).split())}"
            ) from None

    def stop_wanted(self) -> bool:
        """Whether some process was asked to stop, the same answer in all of them."""
        wanted = torch.tensor([float(self._stop.wanted)], device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(wanted)
        return bool(wanted)

    def close_step(self, grad_norm: Tensor | float | None) -> bool:
        """Account for a step; whether the run should save and end."""
        return self.stop_wanted()

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Tensor | float | None, *args: Any, **kw: Any
    ) -> None:
        if self.state.global_step != self._closed:  # the Trainer comes here once more when an epoch ends
            self._closed = self.state.global_step
            if self.close_step(grad_norm) and self.state.global_step < self.state.max_steps:
                self.preempted = True
                self.control.should_save = self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kw)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / UNFINISHED)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write beside the checkpoints, then move the whole folder to its place; the oldest ones go after that."""
        name = f"checkpoint-{self.state.global_step}"
        written, target = Path(self._get_output_dir(trial)) / name, Path(self.args.output_dir) / name
        if target.exists():  # the last step of an epoch and of the run are saved once
            return
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with full_disk_told(Path(self.args.output_dir).parent):
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            note_world(written, self.args.world_size)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written.rename(target)
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model before any other process writes beside it: a model's folder appears whole, or not at all."""
        super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()

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

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        with universal(self, resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)


class LanguageTrainer(SteadyTrainer):
    """Next-token loss on labelled tokens, plus the grounding term if the configuration has one.

    Loss is the mean over the labelled tokens of the whole step (`loss_norm: microbatch`: the mean of the forward
    passes' means). Logits are computed only where some row has a label, and only over the tokenizer's own vocabulary:
    padded rows of the embedding never enter.
    """

    def __init__(
        self, *args: Any, checkpoint: Checkpoint, batches: ProcessBatches, watch: Watch, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoint, self._batches, self._watch = checkpoint, batches, watch
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._vocabulary = checkpoint.text_vocab_size
        self._sums: dict[str, list[Tensor]] = {"token_loss": [], "grounding_loss": []}
        self._tally = Tally(self.args.device, self.args.world_size)
        self._step_losses: list[Tensor] = []
        self._step_ids: list[list[str]] = []
        self._rates: dict[str, float] = {}  # of each part, in the step that was made last
        described = checkpoint.model.config
        self._size = dimensions(described.text_config.to_dict(), described.vision_config.to_dict(), "the model")

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches; not handed to accelerate, which would share them out a second time."""
        workers = self.args.dataloader_num_workers
        if workers > 0:
            atexit.register(_let_workers_go)
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Workers inherit the data set; a start that pickles it would send each of them the model too.
            multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator().manual_seed(self.args.seed),  # leaves the global one, of dropout, alone
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        labels_BT, kinds_BT, columns = inputs.pop("labels"), inputs.pop("kinds"), inputs.pop("columns")
        self._account(inputs, labels_BT)
        guided_rows, guided_patches = inputs.pop("guided_rows", None), inputs.pop("guided_patches", None)
        wanted_BC = labels_BT[:, columns + 1]
        call = {**inputs, "logits_to_keep": columns, "use_cache": False}
        term, recorder = self.config.grounding_loss, None
        if term is not None and guided_rows is not None:
            starts = (inputs["input_ids"] == self.checkpoint.image_token_id).int().argmax(1)
            recorder = GroundingRecorder(term.layer, term.head, guided_rows, guided_patches, starts)
            with recording(self.model, recorder):  # the model itself: what wraps it has no configuration
                outputs = model(**call)
        else:
            outputs = model(**call)
        logits_BCV = outputs.logits[..., : self._vocabulary].float()
        log_probs_NV, wanted_N = logits_BCV.flatten(0, 1).log_softmax(-1), wanted_BC.flatten()
        total = functional.nll_loss(log_probs_NV, wanted_N, ignore_index=IGNORE, reduction="sum")
        count = (wanted_N != IGNORE).sum()
        loss = total / self._divisor(count, num_items_in_batch)
        single_N = -log_probs_NV.detach().gather(1, wanted_N.clamp_min(0)[:, None])[:, 0]
        self._tally.add_losses(single_N, kinds_BT[:, columns + 1].flatten())
        self._sums["token_loss"].append((total / count.clamp_min(1)).detach())
        if recorder is not None and term is not None and recorder.loss is not None:
            loss = loss + term.weight * recorder.loss / self.args.gradient_accumulation_steps
            self._sums["grounding_loss"].append(recorder.loss.detach())
        self._step_losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _divisor(self, count: Tensor, items: Tensor | int | None) -> Any:
        """What the sum over tokens is divided by. The processes' gradients are averaged, not summed, afterwards."""
        if self.config.loss_norm == "microbatch" or items is None:
            return count.clamp_min(1) * self.args.gradient_accumulation_steps
        return torch.as_tensor(items).clamp_min(1) / self.args.world_size

    def _account(self, inputs: dict[str, Any], labels_BT: Tensor) -> None:
        """Count the forward pass, note broken pictures, and turn what packing needs into the attention's argument."""
        rows, broken, tokens = inputs.pop("rows"), inputs.pop("broken"), inputs.pop("tokens")
        ends, branch = inputs.pop("row_ends", None), inputs.pop("branch", None)
        if ends is not None:
            inputs["line"] = Line(tuple(ends), branch, labels_BT.device)
        dataset = self.train_dataset
        self._step_ids.append(dataset.names(rows))
        new = self._watch.broken(broken, dataset.names)
        pixels = inputs.get("pixel_values")
        work = Work(
            tokens=tokens,
            squares=float((dataset.lengths[rows].astype(float) ** 2).sum()),
            learned=float(inputs.pop("learned")),
            images=0 if pixels is None else len(pixels),
        )
        self._tally.add(
            samples=sum(len(dataset.names([row])) for row in rows),
            tokens=tokens,
            capacity=labels_BT.numel(),
            broken=new,
            flops=training_flops(self._size, work, self.config.modes, self.config.rank),
        )

    def close_step(self, grad_norm: Tensor | float | None) -> bool:
        step, losses = self.state.global_step, torch.stack(self._step_losses).tolist()
        norm = float(grad_norm) if grad_norm is not None else 0.0
        bad = not all(map(_finite, [*losses, norm]))
        self._tally.add(stop=float(self._stop.wanted), not_finite=float(bad))
        found = self._tally.close_step()
        ids, self._step_ids, self._step_losses = self._step_ids, [], []
        if found["not_finite"]:
            raise self._watch.not_finite(step, losses, ids)
        self._watch.check_broken(self._tally.total["broken"], self._tally.total["samples"])
        self._watch.spikes(step, {"loss": found["loss"], "grad_norm": norm}, ids)
        return found["stop"] > 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # not an evaluation, nor the summary at the end
            for name, values in self._sums.items():
                if values:
                    logs[name] = float(torch.stack(values).mean())
                values.clear()
            logs |= self._tally.report()
            if len(set(self._rates.values())) > 1:
                logs |= {f"learning_rate_{part}": rate for part, rate in self._rates.items()}
        super().log(logs, start_time)

    def _get_learning_rate(self) -> float:
        """Asked for between a step and the schedule's: the moment to note the rate of each part."""
        groups = self.optimizer.param_groups
        self._rates = {group["part"]: float(group["lr"]) for group in groups if group.get("part")}
        return super()._get_learning_rate()

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        return 0.0  # counted by the tally, image tokens and frozen parts included

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            save(self.checkpoint, output_dir or self.args.output_dir, state=state_dict)


def _leave_signals_to_the_parent(worker: int) -> None:
    """A preemption's SIGTERM reaches every process of a job; a worker that dies of it would fail the last step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))


def _let_workers_go() -> None:
    """End what still loads when this process ends, however it does.

    multiprocessing ends its children by SIGTERM, which ours do not hear, and would wait for them for ever.
    """
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGUSR2)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
