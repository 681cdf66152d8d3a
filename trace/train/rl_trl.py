"""The objective grpo on trl's GRPOTrainer: any family, LoRA or full, several processes, DeepSpeed, vLLM.

Prompts, reward and keys are those of `rl`. Groups of equal rewards stay in a step here, with advantages of 0.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from ..model.checkpoint import Checkpoint
from ..utils.command import InputError, install_hint
from .config import TrainConfig
from .guards import StopSignal
from .param_groups import set_trainable
from .rl import PolicyTrainer
from .rl_prompts import Prompts
from .trainer import training_arguments


def make_trainer(
    config: TrainConfig, folder: Path, stop: StopSignal, checkpoint: Checkpoint, prompts: Prompts
) -> PolicyTrainer:
    """Build trl's trainer with our checkpoints, optimizer and reward; `checkpoint.model` becomes its model."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        problem = f"grpo.trainer: trl is not installed ({error})"
        raise InputError(f"{problem}. Install it with: {install_hint('rl')}") from None

    class TrlTrainer(PolicyTrainer, GRPOTrainer):
        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """`checkpoint.save` writes the card."""

    def points(completions: Any, completion_ids: Any, question: Any, log_metric: Any, **_: Any) -> list[float]:
        rewards, logged = [], defaultdict[str, list[float]](list)
        for answer, ids, prompt in zip(completions, completion_ids, question, strict=True):
            reward, parts = trainer.score(answer[0]["content"], prompt, cut=ids[-1] not in checkpoint.end_ids)
            rewards.append(reward)
            for name, value in parts.items():
                logged[name].append(value)
        for name, values in logged.items():
            log_metric(name, sum(values) / len(values))
        return rewards

    def columns(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        asked = [prompts[index] for index in batch["index"]]
        texts = [[{"role": "user", "content": prompt.text}] for prompt in asked]
        return {"prompt": texts, "image": [prompt.image for prompt in asked], "question": asked}

    grpo, passes = config.grpo, config.accumulation(training_arguments(config, folder, 1).world_size)
    arguments = training_arguments(
        config, folder, passes, GRPOConfig, num_generations=grpo.group, max_completion_length=grpo.max_new_tokens,
        temperature=grpo.temperature, beta=0.0 if config.lora else grpo.kl, epsilon=grpo.clip[0], epsilon_high=grpo.clip[1],
        num_iterations=grpo.iterations, loss_type="dapo", scale_rewards="batch", disable_dropout=True,
        shuffle_dataset=False, chat_template_kwargs=dict(checkpoint.template_options), use_vllm=grpo.vllm,
        generation_kwargs={} if grpo.vllm else {"suppress_tokens": checkpoint.suppressed_ids},
    )  # fmt: skip
    checkpoint.tokenizer.padding_side = "left"
    checkpoint.model = set_trainable(checkpoint.model, config)
    trainer = TrlTrainer(
        model=checkpoint.model, reward_funcs=[points], args=arguments, processing_class=checkpoint.processor,
        train_dataset=Dataset.from_dict({"index": list(range(len(prompts)))}).with_transform(columns),
        config=config, stop=stop, checkpoint=checkpoint,
    )  # fmt: skip
    trainer.beta = grpo.kl  # with LoRA only now: trl would add a second adapter, where disabling the first is enough
    return trainer
