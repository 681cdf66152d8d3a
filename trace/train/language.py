"""The language objective: instruction tuning and projector pre-training, full or by LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..command import InputError
from ..data.dataset import Collator, RowDataset
from ..data.sampling import Order, ProcessBatches
from ..files import write_json
from ..model.checkpoint import Checkpoint, check_generation_config, compose, load
from . import packed
from .config import TrainConfig
from .parts import choose, learning, summary
from .trainer import LanguageTrainer, Prepared
from .watch import StopSignal, Watch

# flash-attn needs a GPU and its own build; SDPA is everywhere.
ATTENTION_ORDER = ("flash_attention_2", "sdpa", "eager")

Arguments = Callable[[int], TrainingArguments]  # of the forward passes a step of one process


def prepare(config: TrainConfig, arguments: Arguments, folder: Path, stop: StopSignal) -> Prepared:
    """Load the model, choose what learns, read the data."""
    first = arguments(1)  # sets up the processes, and ZeRO-3 before the model is made
    tell = print if first.process_index == 0 else _silent
    checkpoint = load_for_training(config, tell)
    check_generation_config(checkpoint.model)  # rather now than after days, when the model is to be saved
    checkpoint.model = choose(checkpoint.model, config)
    tell(summary(checkpoint.model, config))
    dataset = RowDataset(
        config.data,
        config.image_folder,
        checkpoint,
        style=config.template,
        max_length=config.max_length,
        share_image=config.share_image,
        grounding=config.grounding_loss is not None,
        too_long=config.too_long,
    )
    _tell_lengths(dataset, config, tell)
    order = _order(config, dataset, first.world_size, checkpoint.patches**2)
    passes = order.passes()
    if config.packing:
        tell(f"packing: {config.global_batch_size} rows a step in {passes} x {first.world_size} lines")
    blank = (dataset.blank_pixels(), [checkpoint.image_token_id] * checkpoint.patches**2)
    if first.process_index == 0:
        write_json(folder / "trainable.json", learning(checkpoint.model))
    trainer = LanguageTrainer(
        model=checkpoint.model,
        args=arguments(passes),
        train_dataset=dataset,
        data_collator=Collator(
            checkpoint.tokenizer.pad_token_id or 0, blank if dataset.has_images else None, config.packing
        ),
        config=config,
        stop=stop,
        checkpoint=checkpoint,
        batches=ProcessBatches(order, first.process_index, passes),
        watch=Watch(folder, first.process_index),
    )
    if config.evaluation is not None:
        from .evaluation import BenchmarkCallback

        trainer.add_callback(BenchmarkCallback(config, checkpoint, folder, trainer))
    notes = {"rows": len(dataset), "samples": dataset.samples, "too_long": dataset.too_long, "cut": dataset.cut}
    return Prepared(trainer, checkpoint, notes)


def _silent(*_: Any) -> None:
    """What all processes would say alike is said by the first."""


def _tell_lengths(dataset: RowDataset, config: TrainConfig, tell: Callable[..., None]) -> None:
    for ids, what in ((dataset.too_long, "left out"), (dataset.cut, "cut behind an answer")):
        if ids:
            shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
            tell(f"{what}: {len(ids)} samples longer than {config.max_length} tokens ({shown}), listed in run.json")


def _order(config: TrainConfig, dataset: RowDataset, processes: int, image_tokens: int) -> Order:
    if len(dataset) < config.global_batch_size:
        raise InputError(f"global_batch_size: {config.global_batch_size} is more than the {len(dataset)} rows")
    layout = "packed" if config.packing else "by_length" if config.group_by_length else "in_order"
    steps = config.max_steps
    if steps < 0:
        steps = max(1, int(config.epochs * (len(dataset) // config.global_batch_size)))
    return Order(
        dataset.lengths,
        config.global_batch_size,
        config.seed,
        layout,
        config.micro_batch_size,
        processes,
        steps,
        config.pack_tokens,
        image_tokens if dataset.has_images and not dataset.row_has_image.all() else 0,
    )


def load_for_training(config: TrainConfig, tell: Callable[..., None] = print) -> Checkpoint:
    """The starting point on the best attention that loads.

    In float32, of which mixed precision keeps a copy; under DeepSpeed in the type it trains in, which makes its own
    float32 copy of what learns: a node then holds half as much while it loads.
    """
    wanted = ATTENTION_ORDER if config.attention == "auto" else (config.attention,)
    if not torch.cuda.is_available() or config.precision == "fp32":
        wanted = tuple(name for name in wanted if name != "flash_attention_2") or ("sdpa",)
    problem: Exception | None = None
    for name in wanted:
        options: dict[str, Any] = {"attn_implementation": name}
        try:
            checkpoint = _load(config, options)
        except ImportError as error:  # flash-attn is not installed
            problem = error
            continue
        if config.packing:
            vision = checkpoint.model.config.vision_config._attn_implementation
            checkpoint.model.set_attn_implementation({"text_config": packed.IMPLEMENTATION, "vision_config": vision})
            on_gpu = torch.cuda.is_available() and config.precision == "bf16"
            tell(f"attention: {'torch varlen' if on_gpu else 'SDPA row by row'}, vision {name}")
        else:
            tell(f"attention: {name}")
        return checkpoint
    raise InputError(f"attention: {config.attention} cannot be used here: {problem}")


def _load(config: TrainConfig, options: dict[str, Any]) -> Checkpoint:
    parts = config.model
    if not isinstance(parts, str):
        return compose(**asdict(parts), **options)
    if config.deepspeed is not None and config.precision == "bf16":
        options["dtype"] = "bfloat16"
    return load(parts, **options)
