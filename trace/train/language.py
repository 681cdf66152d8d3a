"""The language objective: instruction tuning and projector pre-training, full or by LoRA."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from transformers import TrainingArguments

from ..command import InputError
from ..data.dataset import Collator, RowDataset
from ..model.checkpoint import Checkpoint, compose, load
from .config import TrainConfig
from .trainer import LORA_TARGETS, LanguageTrainer, Prepared, freeze

# flash-attn needs a GPU and its own build; SDPA is everywhere.
ATTENTION_ORDER = ("flash_attention_2", "sdpa", "eager")


def prepare(config: TrainConfig, arguments: TrainingArguments) -> Prepared:
    """Load the model, choose what learns, read the data."""
    checkpoint = load_for_training(config)
    freeze(checkpoint.model, config.trainable)
    if config.lora is not None:
        checkpoint.model = _with_lora(checkpoint.model, config)
    learning = [name for name, parameter in checkpoint.model.named_parameters() if parameter.requires_grad]
    count = sum(p.numel() for p in checkpoint.model.parameters() if p.requires_grad)
    print(f"{len(learning)} tensors learn, {count / 1e6:.2f} M parameters: {', '.join(config.trainable)}")
    dataset = RowDataset(
        config.data,
        config.image_folder,
        checkpoint,
        style=config.template,
        max_length=config.max_length,
        share_image=config.share_image,
        grounding=config.grounding_loss is not None,
    )
    if dataset.too_long:
        shown = ", ".join(dataset.too_long[:5])
        print(f"left out: {len(dataset.too_long)} samples longer than {config.max_length} tokens ({shown}, ...)")
    trainer = LanguageTrainer(
        model=checkpoint.model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(checkpoint.tokenizer.pad_token_id or 0),
        config=config,
        checkpoint=checkpoint,
    )
    return Prepared(
        trainer, checkpoint, {"rows": len(dataset), "samples": dataset.samples, "too_long": dataset.too_long}
    )


def load_for_training(config: TrainConfig) -> Checkpoint:
    """The starting point in float32 (mixed precision keeps a float32 copy), on the best attention that loads."""
    wanted = ATTENTION_ORDER if config.attention == "auto" else (config.attention,)
    if not torch.cuda.is_available():
        wanted = tuple(name for name in wanted if name != "flash_attention_2") or ("sdpa",)
    problem: Exception | None = None
    for name in wanted:
        options: dict[str, Any] = {"attn_implementation": name}
        try:
            parts = config.model
            checkpoint = load(parts, **options) if isinstance(parts, str) else compose(**asdict(parts), **options)
        except ImportError as error:  # flash-attn is not installed
            problem = error
            continue
        print(f"attention: {name}")
        return checkpoint
    raise InputError(f"attention: {config.attention} cannot be used here: {problem}")


def _with_lora(model: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=LORA_TARGETS,
            modules_to_save=["multi_modal_projector"] if "projector" in config.trainable else None,
            task_type="CAUSAL_LM",
        ),
    )
