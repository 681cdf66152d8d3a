"""The language objective: instruction tuning and projector pre-training, full or by LoRA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..model.checkpoint import Checkpoint, check_generation_config, compose, load
from ..utils.command import InputError
from ..utils.files import write_json
from . import varlen_attention
from .config import TrainConfig
from .dataset import Collator, RowDataset
from .guards import StopSignal, Watch
from .param_groups import choose, learning, summary
from .sampling import Order, ProcessBatches
from .trainer import LanguageTrainer, Prepared

FLASH = "flash_attention_2"  # needs a GPU, half precision and its own build; SDPA is everywhere
ATTENTION_ORDER = (FLASH, "sdpa", "eager")

Arguments = Callable[[int], TrainingArguments]  # of the forward passes a step of one process


def prepare(config: TrainConfig, arguments: Arguments, folder: Path, stop: StopSignal) -> Prepared:
    """Load the model, choose what learns, read the data."""
    first = arguments(1)  # sets up the processes, and ZeRO-3 before the model is made
    tell = print if first.process_index == 0 else _silent
    checkpoint = load_for_training(config, tell)
    _check_grounding(config, checkpoint)
    check_generation_config(checkpoint.model)  # rather now than after days, when the model is to be saved
    checkpoint.model = choose(checkpoint.model, config)
    tell(summary(checkpoint.model, config))
    if config.compile:
        from .torch_compile import compile_layers

        tell(f"compile: {compile_layers(checkpoint.model)} parts of layers, when they are first run")
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
    order = _order(config, dataset, first.world_size, checkpoint.patches_per_side**2)
    passes = order.passes()
    if config.packing:
        tell(f"packing: {config.global_batch_size} rows a step in {passes} x {first.world_size} lines")
    blank = (dataset.blank_pixels(), [checkpoint.image_token_id] * checkpoint.patches_per_side**2)
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


def _check_grounding(config: TrainConfig, checkpoint: Checkpoint) -> None:
    if config.grounding_loss is None:
        return
    text = checkpoint.model.config.text_config
    for name, number in (("layer", text.num_hidden_layers), ("head", text.num_attention_heads)):
        asked = getattr(config.grounding_loss, name)
        if not 0 <= asked < number:
            raise InputError(f"grounding_loss.{name}: {asked} is none of the model's 0 to {number - 1}")


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
    return Order(
        dataset.lengths,
        config.global_batch_size,
        config.seed,
        layout,
        config.micro_batch_size,
        processes,
        config.steps(len(dataset)),
        config.pack_tokens,
        image_tokens if dataset.has_images and not dataset.row_has_image.all() else 0,
    )


def load_for_training(config: TrainConfig, tell: Callable[..., None] = print) -> Checkpoint:
    """The starting point on the best attention that loads.

    In float32, of which mixed precision keeps a copy; under DeepSpeed in the type it trains in, which makes its own
    float32 copy of what learns: a node then holds half as much while it loads.
    """
    problem: Exception | None = None
    for name in _attentions(config):
        try:
            checkpoint = _load(config, name)
            text = varlen_attention.IMPLEMENTATION if config.packing else name
            checkpoint.model.set_attn_implementation({"text_config": text, "vision_config": name})
        except (ImportError, ValueError) as error:  # flash-attn does not load, or not for this model
            if name != FLASH:
                raise
            problem = error
            continue
        tell(f"attention: {varlen_attention.kernel(config)}, vision {name}" if config.packing else f"attention: {name}")
        return checkpoint
    raise InputError(f"attention: {config.attention} cannot be used here: {problem}")


def _attentions(config: TrainConfig) -> tuple[str, ...]:
    """The attentions to try, the best first. InputError when the one that is asked for cannot be."""
    obstacle = None
    if not torch.cuda.is_available():
        obstacle = "needs a GPU"
    elif config.precision == "fp32":
        obstacle = "needs precision: bf16"
    elif config.share_image > 1 and not config.packing:
        obstacle = "has no mask for rows that share an image; set share_image to 1"
    if config.attention != "auto":
        if config.attention == FLASH and obstacle is not None:
            raise InputError(f"attention: {FLASH} {obstacle}")
        return (config.attention,)
    if obstacle is None and importlib.util.find_spec("flash_attn") is None:
        obstacle = "is not installed"  # transformers would look for a build of it on the hub
    return tuple(name for name in ATTENTION_ORDER if name != FLASH or obstacle is None)


def _load(config: TrainConfig, attention: str) -> Checkpoint:
    half = config.deepspeed is not None and config.precision == "bf16"
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": "bfloat16" if half else "float32"}
    if isinstance(config.model, str):
        return load(config.model, **options)
    return compose(**asdict(config.model), **options)
