"""The thin layer over transformers' Trainer: batches, loss, checkpoints that appear complete or not at all."""

from __future__ import annotations

import atexit
import copy
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from ..core.prompts import IGNORE
from ..model.attention_recorder import GroundingRecorder, recording
from ..model.checkpoint import Checkpoint, save
from ..utils.command import InputError
from ..utils.files import write_json
from .batching import ProcessBatchSampler
from .checkpoints import UNFINISHED, WORLD, any_world_size, explain_full_disk
from .config import TrainConfig
from .guards import StopSignal, TrainingGuard
from .memory import ModelDimensions, Workload, training_flops
from .param_groups import make_optimizer
from .step_metrics import StepMetrics
from .varlen_attention import PackedRows


def init_distributed(config: TrainConfig) -> None:
    """Check the GPU and, under DeepSpeed, connect the processes with a backend that works on this machine."""
    on_gpu = torch.cuda.is_available()
    if on_gpu and config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        problem = f"needs an NVIDIA GPU of the Ampere generation or later, not {torch.cuda.get_device_name()}"
        raise InputError(f"precision: bf16 {problem}. Use fp32.")
    if on_gpu and "RANK" not in os.environ and (count := torch.cuda.device_count()) > 1:
        print(f"using 1 of {count} GPUs; to use all: torchrun --nproc-per-node {count} -m trace_vlm.train.train ...")
    if config.deepspeed is None:
        return
    # DeepSpeed calls torch's collectives by deprecated names at every step.
    warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning)
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:  # a single process, started without a launcher
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(f"deepspeed: cannot be imported ({error}). Set deepspeed=null to go on without it.") from None
    # An operator for inference on CPUs, which would be compiled for minutes and is never called here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")


def training_arguments(
    config: TrainConfig, folder: Path, passes: int, kind: type[TrainingArguments] = TrainingArguments, **more: Any
) -> TrainingArguments:
    """Convert the configuration to TrainingArguments, or a derived class, with `passes` forward passes a step."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    on_gpu = torch.cuda.is_available()
    # transformers 5 renamed the option; the newer name is used if it exists.
    fields = TrainingArguments.__dataclass_fields__
    recompute = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    same = ("max_steps", "learning_rate", "weight_decay", "max_grad_norm", "deepspeed", "logging_steps", "seed")
    options: dict[str, Any] = {name: getattr(config, name) for name in (*same, "save_steps", "save_total_limit")}
    options[recompute] = config.gradient_checkpointing
    options[f"{recompute}_kwargs"] = {"use_reentrant": False} if config.gradient_checkpointing else None
    arguments = kind(
        output_dir=str(folder / "checkpoints"), gradient_accumulation_steps=passes, num_train_epochs=config.epochs,
        per_device_train_batch_size=1 if config.packing else config.micro_batch_size, warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.lr_schedule, bf16=config.precision == "bf16", remove_unused_columns=False,
        ddp_find_unused_parameters=config.modes.vision == "full",  # a tower's last layer is never read
        dataloader_num_workers=config.dataloader_workers, dataloader_drop_last=True, dataloader_pin_memory=on_gpu,
        dataloader_persistent_workers=config.dataloader_workers > 0, report_to=config.report_to or "none",
        logging_nan_inf_filter=False,  # it would hide what TrainingGuard has to see
        logging_first_step=True, use_cpu=not on_gpu, **options, **more,
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # without a launcher it would scatter our batches over all GPUs
    return arguments


class ResumableTrainer(Trainer):
    """Complete checkpoints, and an end on SIGTERM that loses nothing; the base of every objective."""

    def __init__(self, *args: Any, config: TrainConfig, stop: StopSignal, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config, self._stop, self.preempted = config, stop, False
        self.notes: dict[str, Any] = {}  # for the run's record
        self._closed_step = -1

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model, self.config)
            groups = self.optimizer.param_groups
            self.group_settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        return self.optimizer

    def make_loader(self, batches: Any) -> DataLoader[Any]:
        """Return this process's batches; accelerate does not get them, it would distribute them a second time."""
        workers = self.args.dataloader_num_workers
        if workers > 0:
            atexit.register(_end_workers)
        return DataLoader(
            self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator, num_workers=workers,
            # Workers inherit the dataset; a start method that pickles it would send each of them the model too.
            multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
            persistent_workers=workers > 0, pin_memory=self.args.dataloader_pin_memory, worker_init_fn=_ignore_signals,
            generator=torch.Generator().manual_seed(self.args.seed),  # leaves the global one, of dropout, alone
        )  # fmt: skip

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return super().training_step(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            key, step = "pack_tokens" if self.config.packing else "micro_batch_size", self.state.global_step + 1
            problem = f"{key}: {getattr(self.config, key)} does not fit into the GPU's memory (step {step})"
            advice = "Lower it, use gradient_checkpointing or more sharding; python -m trace.train.plan shows what fits"
            raise InputError(f"{problem}. {advice}. {' '.join(str(error).split())}") from None

    def close_step(self, grad_norm: Tensor | float | None) -> bool:
        """Account for a step; return whether the run should save and end, the same answer in all processes."""
        requested = torch.tensor([float(self._stop.requested)], device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(requested)
        return bool(requested)

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kw: Any) -> None:
        self.control.should_log |= self.state.global_step == self.state.max_steps  # the last one too
        if self.state.global_step != self._closed_step:  # the Trainer calls this once more at the end of an epoch
            self._closed_step = self.state.global_step
            if self.close_step(grad_norm) and self.state.global_step < self.state.max_steps:
                self.preempted = True
                self.control.should_save = self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kw)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # the Trainer's is the mean of the steps since the run was last started
            steps, losses = zip(*((e["step"], e["loss"]) for e in self.state.log_history if "loss" in e), strict=True)
            logs["train_loss"] = float(np.average(losses, weights=np.diff(steps, prepend=0)))
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / UNFINISHED)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Written beside the checkpoints, then moved to its place as a complete folder; then the oldest is removed.
        name = f"checkpoint-{self.state.global_step}"
        written, target = Path(self._get_output_dir(trial)) / name, Path(self.args.output_dir) / name
        if target.exists():  # the last step of an epoch and of the run are saved once
            return
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with explain_full_disk(Path(self.args.output_dir).parent):
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            write_json(written / WORLD, {"processes": self.args.world_size})
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written.rename(target)
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        self.accelerator.wait_for_everyone()  # before another process writes beside it: complete, or not there

    def save_trained(self, folder: Path) -> None:
        """Write the trained model; all processes take part, since each may hold a share of it."""
        self.save_model(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Names on disk differ from names in memory: the Trainer's own loading compares them unconverted, finds nothing,
        # and silently resumes from the initial weights.
        if isinstance(self.model, PreTrainedModel):
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        with any_world_size(self, resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)


class CheckpointTrainer(ResumableTrainer):
    """Trains a complete model and saves it as `checkpoint.save` does."""

    def __init__(self, *args: Any, checkpoint: Checkpoint, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoint = checkpoint

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            trained = copy.copy(self.checkpoint)  # its name stays in messages; the card has the run's
            trained.name = Path(self.config.output_dir).resolve().name
            save(trained, output_dir or self.args.output_dir, state=state_dict)


class LanguageTrainer(CheckpointTrainer):
    """Next-token loss, the mean over a step's labelled tokens, plus the grounding term if the configuration has one.

    Logits are computed only where some row has a label, and only over the tokenizer's own vocabulary.
    """

    def __init__(
        self, *args: Any, size: ModelDimensions, batches: ProcessBatchSampler, guard: TrainingGuard, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._size, self._batches, self._guard = size, batches, guard
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self._sums: dict[str, list[Tensor]] = {"token_loss": [], "grounding_loss": []}
        self._metrics = StepMetrics(self.args.device, self.args.world_size)
        self._step_losses: list[Tensor] = []
        self.step_ids: list[list[str]] = []  # the samples of each forward pass of the current step
        self._rates: dict[str, float] = {}  # of each part, in the last step

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.make_loader(self._batches)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        labels_BT, kinds_BT, columns = inputs.pop("labels"), inputs.pop("kinds"), inputs.pop("columns")
        self._account(inputs, labels_BT)
        guided_rows, guided_patches = inputs.pop("guided_rows", None), inputs.pop("guided_patches", None)
        call = {**inputs, "logits_to_keep": columns, "use_cache": False}
        term, recorder = self.config.grounding_loss, None
        with ExitStack() as stack:
            if term is not None and guided_rows is not None:
                starts = (inputs["input_ids"] == self.checkpoint.image_token_id).int().argmax(1)
                recorder = GroundingRecorder(term.layer, term.head, guided_rows, guided_patches, starts)
                stack.enter_context(recording(self.model, recorder))  # what wraps the model has no configuration
            outputs = model(**call)
        log_probs_NV = outputs.logits[..., : self.checkpoint.text_vocab_size].float().flatten(0, 1).log_softmax(-1)
        labels_N = labels_BT[:, columns + 1].flatten()
        total = functional.nll_loss(log_probs_NV, labels_N, ignore_index=IGNORE, reduction="sum")
        count = (labels_N != IGNORE).sum()
        if self.config.loss_norm == "microbatch" or num_items_in_batch is None:
            loss = total / (count.clamp_min(1) * self.args.gradient_accumulation_steps)
        else:  # the gradients of the processes are averaged afterwards, not summed
            loss = total / (torch.as_tensor(num_items_in_batch).clamp_min(1) / self.args.world_size)
        token_losses_N = -log_probs_NV.detach().gather(1, labels_N.clamp_min(0)[:, None])[:, 0]
        self._metrics.add_losses(token_losses_N, kinds_BT[:, columns + 1].flatten())
        self._sums["token_loss"].append((total / count.clamp_min(1)).detach())
        if recorder is not None and term is not None and recorder.loss is not None:
            loss = loss + term.weight * recorder.loss / self.args.gradient_accumulation_steps
            self._sums["grounding_loss"].append(recorder.loss.detach())
        self._step_losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _account(self, inputs: dict[str, Any], labels_BT: Tensor) -> None:
        """Count the forward pass and record broken images; leave in `inputs` only what the model takes."""
        rows, tokens, dataset = inputs.pop("rows"), inputs.pop("tokens"), self.train_dataset
        ends, branch = inputs.pop("row_ends", None), inputs.pop("branch", None)
        if ends is not None:
            inputs["packed_rows"] = PackedRows(ends, branch, labels_BT.device)
        self.step_ids.append(dataset.names(rows))
        squares, pixels = float((dataset.lengths[rows].astype(float) ** 2).sum()), inputs.get("pixel_values")
        images = 0 if pixels is None else pixels.numel() / self._size.pixels
        work = Workload(tokens, squares, inputs.pop("labelled"), images)
        flops = training_flops(self._size, work, self.config.modes, self.config.lora_rank)
        broken = self._guard.record_broken(inputs.pop("broken"), dataset.names)
        samples, capacity = len(self.step_ids[-1]), labels_BT.numel()
        self._metrics.add(samples=samples, tokens=tokens, capacity=capacity, broken=broken, flops=flops)

    def close_step(self, grad_norm: Tensor | float | None) -> bool:
        step, losses = self.state.global_step, torch.stack(self._step_losses).tolist()
        norm = float(grad_norm) if grad_norm is not None else 0.0
        not_finite = not all(map(math.isfinite, [*losses, norm]))
        self._metrics.add(stop=float(self._stop.requested), not_finite=float(not_finite))
        sums = self._metrics.close_step()
        ids, self.step_ids, self._step_losses = self.step_ids, [], []
        if sums["not_finite"]:
            raise self._guard.not_finite(step, losses, ids)
        self._guard.check_broken(self._metrics.total["broken"], self._metrics.total["samples"])
        self._guard.check_spikes(step, {"loss": sums["loss"], "grad_norm": norm}, ids)
        return sums["stop"] > 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # not an evaluation, nor the summary at the end
            for name, values in self._sums.items():
                if values:
                    logs[name] = float(torch.stack(values).mean())
                values.clear()
            logs |= self._metrics.report()
            if len(set(self._rates.values())) > 1:
                logs |= {f"learning_rate_{part}": rate for part, rate in self._rates.items()}
        super().log(logs, start_time)

    def _get_learning_rate(self) -> float:
        # The Trainer asks between a step of the optimizer and one of the schedule.
        groups = self.optimizer.param_groups
        self._rates = {group["part"]: float(group["lr"]) for group in groups if group.get("part")}
        return super()._get_learning_rate()

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        return 0.0  # StepMetrics counts them, with image tokens and frozen parts


def _ignore_signals(worker: int) -> None:
    """SIGTERM and Ctrl-C reach every process of a job; a worker that dies of them would fail the last step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda *_: os._exit(0))


def _end_workers() -> None:
    """End the loading workers with this process: multiprocessing sends SIGTERM, which they ignore, and waits forever."""
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGUSR2)
