"""The language objective: instruction tuning and projector pre-training, fully or with LoRA."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..model.checkpoint import Checkpoint, check_generation_config, compose, load
from ..utils.command import InputError
from ..utils.files import write_json
from . import varlen_attention
from .batching import BatchSchedule, ProcessBatchSampler
from .config import TrainConfig
from .dataset import Collator, ProcessorCollator, RowDataset
from .guards import StopSignal, TrainingGuard
from .memory import checkpoint_dimensions
from .param_groups import describe_trainable, set_trainable, trainable_parameters
from .trainer import LanguageTrainer, training_arguments

FLASH = "flash_attention_2"  # needs a GPU, half precision and a build of its own; SDPA is everywhere


def prepare(config: TrainConfig, folder: Path, stop: StopSignal) -> LanguageTrainer:
    """Load the model, make its parts trainable, read the data."""
    first = training_arguments(config, folder, 1)  # sets up the processes, and ZeRO-3 before the model is built
    process, processes = first.process_index, first.world_size

    def log(message: str) -> None:
        if process == 0:
            print(message)

    checkpoint = load_for_training(config, log)
    checkpoint.coordinates = checkpoint.native_coordinates() if config.coordinates == "native" else "unit"
    config.check_model(checkpoint)
    if not checkpoint.packs:
        log(f"packing: not possible, layers of {checkpoint.name} would mix the rows; they are padded")
    text, size = checkpoint.text_config, checkpoint_dimensions(checkpoint)
    for name, count in (("layer", text.num_hidden_layers), ("head", text.num_attention_heads)):
        if config.grounding_loss is not None and getattr(config.grounding_loss, name) >= count:
            raise InputError(f"grounding_loss.{name}: the model has 0 to {count - 1}.")
    check_generation_config(checkpoint.model)  # now, not after days when the model is saved
    checkpoint.model = set_trainable(checkpoint.model, config)
    log(describe_trainable(checkpoint.model, config))
    if config.compile:
        log(f"compile: {compile_layers(checkpoint.model)} parts of layers, when they first run")
    dataset = RowDataset(
        config.data, config.image_folder, checkpoint, style=config.template, max_length=config.max_length,
        share_image=config.share_image, grounding=config.grounding_loss is not None, too_long=config.too_long,
    )  # fmt: skip
    reasoned, checkpoint.reasons = checkpoint.reasons, dataset.shows_reasoning()
    if reasoned and not checkpoint.reasons:
        log("reasoning: the starting point reasons and the data does not; the trained model will be asked without it")
    for ids, action in ((dataset.too_long, "left out"), (dataset.cut, "cut after an answer")):
        if ids:
            shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
            log(f"{action}: {len(ids)} samples longer than {config.max_length} tokens ({shown}), listed in run.json")
    if checkpoint.image_tokens is None:
        blank = dataset.blank_row() if dataset.has_images else None
        collator: Collator = ProcessorCollator(checkpoint.tokenizer.pad_token_id or 0, blank, config.packing)
    else:
        image = [checkpoint.image_token_id] * checkpoint.image_tokens
        pixels = (dataset.blank_pixels(), image) if dataset.has_images else None
        collator = Collator(checkpoint.tokenizer.pad_token_id or 0, pixels, config.packing)
    schedule = BatchSchedule(
        dataset.lengths, config.global_batch_size, config.seed,
        "packed" if config.packing else "by_length" if config.group_by_length else "in_order",
        config.micro_batch_size, processes, config.steps(len(dataset)), config.pack_tokens,
        reserve=0 if dataset.row_has_image.all() else collator.reserve,
    )  # fmt: skip
    passes = schedule.passes()
    if config.packing:
        log(f"packing: {config.global_batch_size} rows a step in {passes} x {processes} packed batches")
    if process == 0:
        write_json(folder / "trainable.json", trainable_parameters(checkpoint.model))
    trainer = LanguageTrainer(
        model=checkpoint.model, args=training_arguments(config, folder, passes), train_dataset=dataset,
        data_collator=collator, config=config, stop=stop, checkpoint=checkpoint, size=size,
        batches=ProcessBatchSampler(schedule, process, passes), guard=TrainingGuard(folder, process),
    )  # fmt: skip
    if config.evaluation is not None:
        from .evaluation import BenchmarkCallback

        trainer.add_callback(BenchmarkCallback(config, checkpoint, folder, trainer))
    trainer.notes = {"rows": len(dataset), "samples": dataset.samples, "too_long": dataset.too_long, "cut": dataset.cut}
    return trainer


def load_for_training(config: TrainConfig, log: Callable[[str], object] = print) -> Checkpoint:
    """Load the starting point with the best attention that works here.

    Weights are float32, of which mixed precision keeps a copy. Under DeepSpeed, which makes its own float32 copy of
    what is trained, they have the type of the training: a node then needs half as much memory while it loads.
    """
    obstacles = (
        (not torch.cuda.is_available(), "needs a GPU"),
        (config.precision == "fp32", "needs precision: bf16"),
        (config.share_image > 1 and not config.packing, "has no mask for rows that share an image; use share_image: 1"),
    )
    obstacle = next((text for applies, text in obstacles if applies), None)
    if config.attention == FLASH and obstacle is not None:
        raise InputError(f"attention: {FLASH} {obstacle}.")
    names = [config.attention]
    if config.attention == "auto":  # without flash-attn, transformers would ask the hub for a build of it
        names = [FLASH, "sdpa"] if obstacle is None and importlib.util.find_spec("flash_attn") is not None else ["sdpa"]
    options: dict[str, Any] = {"dtype": "bfloat16" if config.deepspeed and config.precision == "bf16" else "float32"}
    for name in names:
        options["attn_implementation"] = name
        try:
            if isinstance(config.model, str):
                checkpoint = load(config.model, **options)
            else:
                checkpoint = compose(**asdict(config.model), **options)
            text = varlen_attention.IMPLEMENTATION if config.packing else name
            checkpoint.model.set_attn_implementation({"text_config": text, "vision_config": name})
        except (ImportError, ValueError) as error:
            if name != FLASH:
                raise
            problem = error  # flash-attn does not load, or not for this model
        else:
            kernel = f"{varlen_attention.describe_kernel(config)}, vision {name}" if config.packing else name
            log(f"attention: {kernel}")
            return checkpoint
    raise InputError(f"attention: {config.attention} does not work here: {problem}. Use auto or sdpa.")


def compile_layers(model: nn.Module) -> int:
    """Compile attention block, MLP and norms of every layer, in place, when they first run; return how many.

    One piece serves all layers of a kind, with the number of tokens left open, so that batches of every length share
    it. Parameter names, hooks and gradient checkpointing, which wraps the complete layer, stay as they are.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    parts = [part for layer in layers for part in layer.children() if any(True for _ in part.parameters())]
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=True)
    return len(parts)
