"""The objective grpo: answers are sampled in groups, scored (`train.reward`), and made more or less likely.

    python -m trace.train.train --config configs/grpo_nano.yaml --set model=MODEL output_dir=OUT

Two trainers, with the same prompts, reward and keys: a loop of our own for small LLaVA-1.5 models in one process, and trl
for the others. Names in the log that trl has too are trl's.
Tensors: B prompts, G answers of a group, T tokens, C columns, V vocabulary, N tokens of answers.
"""

from __future__ import annotations

import copy
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from ..core.conventions import CONVENTIONS, read
from ..core.prompts import IGNORE
from ..inference.generation import AnswerRow, Decoding, generate
from ..model.checkpoint import Checkpoint, check_generation_config
from ..utils.command import InputError, install_hint
from ..utils.files import write_json
from .config import TrainConfig
from .dataset import Collator
from .guards import StopSignal, TrainingStopped
from .param_groups import describe_trainable, set_trainable, trainable_parameters
from .reward import reward_parts, total_reward
from .rl_prompts import Prompt, Prompts
from .sft import load_for_training
from .trainer import CheckpointTrainer, training_arguments

SAME_REWARD = 1e-6  # a group whose rewards differ by less teaches nothing


def prepare(config: TrainConfig, folder: Path, stop: StopSignal) -> PolicyTrainer:
    """Load the policy, make its parts trainable, prepare the prompts."""
    grpo, trl = config.grpo, config.grpo.trainer == "trl"
    if not trl and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("grpo.trainer: own works in one process. Use trl.")
    training_arguments(config, folder, 1)  # sets up the processes, and ZeRO-3 before the model is built
    checkpoint = load_for_training(config)
    checkpoint.coordinates = checkpoint.native_coordinates() if config.coordinates == "native" else "unit"
    checkpoint.reasons = config.grpo.reasoning
    config.check_model(checkpoint)
    check_generation_config(checkpoint.model)
    count = config.global_batch_size // grpo.group * math.ceil(config.max_steps / grpo.iterations)
    prompts = Prompts(config, checkpoint.coordinates, count)
    if trl:
        trainer = trl_trainer(config, folder, stop, checkpoint, prompts)
    else:
        start = copy.deepcopy(checkpoint.model).requires_grad_(False) if grpo.kl and config.lora is None else None
        checkpoint.model = set_trainable(checkpoint.model, config)
        trainer = GrpoTrainer(
            model=checkpoint.model, args=training_arguments(config, folder, config.accumulation(1)), start=start,
            train_dataset=prompts, data_collator=list, config=config, stop=stop, checkpoint=checkpoint,
        )  # fmt: skip
    if trainer.is_world_process_zero():
        print(describe_trainable(trainer.model, config))
        print(f"{count} prompts" + (f" from {len(prompts.samples)} samples" if prompts.samples else " of fresh scenes"))
        write_json(folder / "trainable.json", trainable_parameters(trainer.model))
    if config.evaluation is not None:
        from .evaluation import BenchmarkCallback

        trainer.add_callback(BenchmarkCallback(config, checkpoint, folder, trainer))
    trainer.notes = {"prompts": count, "samples": len(prompts.samples)}
    return trainer


class PolicyTrainer(CheckpointTrainer):
    """What the own loop and trl's have in common."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grpo = self.config.grpo

    def score(self, text: str, prompt: Prompt, cut: bool) -> tuple[float, dict[str, float]]:
        """Return an answer's reward and its parts, named as in the log."""
        sent, settings = self.checkpoint.sent_size(prompt.image), self.grpo.reward
        response = read(text.strip(), prompt.image.size, CONVENTIONS[self.checkpoint.coordinates], sent)
        parts = reward_parts(response, prompt.mask, prompt.meta, prompt.instances, settings, self.grpo.reasoning, cut)
        return total_reward(parts, settings), {f"reward_{name}": value for name, value in parts.items()}

    def close_step(self, grad_norm: Tensor | float | None) -> bool:
        step = self.state.global_step
        if grad_norm is not None and not math.isfinite(float(grad_norm)):
            raise TrainingStopped(f"step {step}: the gradient is not finite; the last checkpoint is from before it.")
        return super().close_step(grad_norm) and step % self.grpo.iterations == 0  # answers in use are not saved


class GrpoTrainer(PolicyTrainer):
    """Group relative policy optimization: a mean over a step's tokens, clipped ratios, a penalty on leaving the start.

    Groups of equal rewards are left out. Advantages are rewards minus their group's mean, over the deviation in the step.
    `start` is the frozen starting point; None: the model without its adapters, if there is a penalty.
    """

    def __init__(self, *args: Any, start: nn.Module | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self._start = None if start is None else start.to(self.args.device)
        self._batches: list[dict[str, Any]] = []  # of the answers in use
        self._sums: dict[str, list[float]] = defaultdict(list)
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        self._policy = replace(self.checkpoint, model=base)
        self._collate = Collator(self.checkpoint.tokenizer.pad_token_id or 0)
        self._suppressed = [i for i in self.checkpoint.suppressed_ids if i < self.checkpoint.text_vocab_size]

    def get_train_dataloader(self) -> DataLoader[Any]:
        passes, count = self.args.gradient_accumulation_steps, self.config.micro_batch_size // self.grpo.group
        numbers, steps = iter(range(len(self.train_dataset))), range(self.config.max_steps)
        # steps on the same answers load nothing
        sizes = [count * (step % self.grpo.iterations == 0) for step in steps for _ in range(passes)]
        return self.make_loader([[next(numbers) for _ in range(size)] for size in sizes])

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        loaded, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if prompts := [prompt for batch in loaded for prompt in batch]:
            self._batches = self._collect(prompts, num_batches)
        return self._batches, sum(batch.get("labelled", 0) for batch in self._batches)

    def _collect(self, prompts: Sequence[Prompt], passes: int) -> list[dict[str, Any]]:
        """Sample and score a group of answers to each prompt; return a batch for each forward pass of a step."""
        rows, ids, pixels = self.sample(prompts)
        size, rewards = self.grpo.group, []
        for number, row in enumerate(rows):
            text = self.checkpoint.tokenizer.decode(row.token_ids, skip_special_tokens=True)
            cut = len(row.token_ids) >= self.grpo.max_new_tokens
            reward, parts = self.score(text, prompts[number // size], cut)
            rewards.append(reward)
            lengths = {"completions/mean_length": len(row.token_ids), "completions/clipped_ratio": cut}
            self._add(reward=reward, **parts, **lengths)
        rewards_BG = np.reshape(rewards, (-1, size))
        kept = np.flatnonzero(np.ptp(rewards_BG, axis=1) >= SAME_REWARD)
        self._add(reward_std=rewards_BG.std(axis=1).mean(), frac_reward_zero_std=1 - len(kept) / len(prompts))
        gains_BG = rewards_BG - rewards_BG.mean(axis=1, keepdims=True)
        gains_BG /= gains_BG[kept].std() + SAME_REWARD if len(kept) else 1.0
        groups = [self.make_row(ids[at], pixels[at], rows[at * size : at * size + size], gains_BG[at]) for at in kept]
        return [self.make_batch(groups[number::passes]) for number in range(passes)]

    def sample(self, prompts: Sequence[Prompt]) -> tuple[list[AnswerRow], list[list[int]], Tensor]:
        """Return the answers, group by group, and the ids and pixels of every prompt."""
        policy, grpo, step = self._policy, self.grpo, self.state.global_step // self.grpo.iterations
        ids = [policy.prompt_ids(policy.prompt(prompt.text, self.config.template)) for prompt in prompts]
        pixels = policy.pixels([prompt.image for prompt in prompts])
        seeds = [[self.config.seed, step, at, member] for at in range(len(prompts)) for member in range(grpo.group)]
        rows = [AnswerRow(seed[2], ids[seed[2]], np.random.default_rng(seed)) for seed in seeds]
        self.model.eval()
        with torch.inference_mode():
            inputs = pixels.to(policy.model.device, policy.model.dtype)
            features = policy.model.get_image_features(pixel_values=inputs, return_dict=True).pooler_output
        generate(policy, rows, list(features), Decoding(grpo.max_new_tokens, grpo.temperature, samples=grpo.group))
        return rows, ids, pixels

    def make_row(self, ids: list[int], pixels: Tensor, group: Sequence[AnswerRow], advantages: Any) -> dict[str, Any]:
        """Make a row for the collator: a prompt, and its answers as branches that do not see each other."""
        shared, values = len(ids) - 1, [(ids[at], IGNORE, 0, at, 0.0) for at in range(len(ids) - 1)]
        for number, (answer, advantage) in enumerate(zip(group, advantages, strict=True), start=1):
            ended = len(answer.token_ids) < self.grpo.max_new_tokens
            learned = [*answer.token_ids, *self.checkpoint.end_ids[:ended]]
            values.append((ids[-1], IGNORE, number, shared, 0.0))  # predicts the answer's first token
            values += [(t, t, number, shared + at, advantage) for at, t in enumerate(learned, start=1)]
        names = ("input_ids", "labels", "branch", "position_ids", "weights")
        row = {name: torch.tensor(column) for name, column in zip(names, zip(*values, strict=True), strict=True)}
        return row | {"kinds": row["labels"], "pixel_values": pixels, "row": 0}

    def make_batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows, with log-probabilities of the starting point and, for several steps on them, of the sampler."""
        if not rows:
            return {"labelled": 0}  # all groups were left out
        names = ("input_ids", "attention_mask", "position_ids", "pixel_values", "labels", "columns", "labelled")
        collated, weights = self._collate(rows), [row["weights"].float() for row in rows]
        batch = self._prepare_inputs({name: collated[name] for name in names})
        columns, weights_BT = batch["columns"] + 1, pad_sequence(weights, batch_first=True).to(self.args.device)
        batch["advantages"] = weights_BT[:, columns][batch["labels"][:, columns] != IGNORE]
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.grpo.iterations > 1:
                batch["sampled"] = self.log_probs(self.model, batch)[0]
            if self.grpo.kl:
                with nullcontext() if self._start is not None else self.model.disable_adapter():
                    batch["start"] = self.log_probs(self._start or self.model, batch)[0]
        return batch

    def log_probs(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return log-probability of, and entropy at, every token of the answers: `[N]` each."""
        call = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "pixel_values")}
        logits_BCV = model(**call, logits_to_keep=batch["columns"], use_cache=False).logits
        labels_BC = batch["labels"][:, batch["columns"] + 1]
        learned_BC = labels_BC != IGNORE
        logits_NV = logits_BCV[learned_BC][:, : self.checkpoint.text_vocab_size].float() / self.grpo.temperature
        logits_NV[:, self._suppressed] = torch.finfo(torch.float32).min  # as they were sampled
        log_probs_NV = logits_NV.log_softmax(-1)
        entropy_N = -(log_probs_NV.detach().exp() * log_probs_NV.detach()).sum(-1)
        return log_probs_NV.gather(1, labels_BC[learned_BC][:, None])[:, 0], entropy_N

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        if "labels" not in inputs:
            return next(p for p in model.parameters() if p.requires_grad).sum() * 0.0
        model.eval()  # the Trainer has just turned on what the sampler did not have
        log_probs_N, entropy_N = self.log_probs(model, inputs)
        ratio_N = (log_probs_N - inputs.get("sampled", log_probs_N.detach())).exp()
        clipped_N = ratio_N.clamp(1 - self.grpo.clip[0], 1 + self.grpo.clip[1])
        losses_N = -torch.minimum(ratio_N * inputs["advantages"], clipped_N * inputs["advantages"])
        metrics = {"entropy": entropy_N, "clip_ratio/region_mean": (clipped_N != ratio_N).float()}
        if "start" in inputs:
            gap_N = inputs["start"] - log_probs_N
            metrics["kl"] = gap_N.exp() - gap_N - 1  # never negative, unbiased for samples of the policy
            losses_N = losses_N + self.grpo.kl * metrics["kl"]
        self._add(**{name: float(values.detach().mean()) for name, values in metrics.items()})
        return losses_N.sum() / num_items_in_batch

    def _add(self, **metrics: float) -> None:
        for name, value in metrics.items():
            self._sums[name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # not an evaluation, nor the summary at the end
            logs |= {name: float(np.mean(values)) for name, values in sorted(self._sums.items())}
            self._sums.clear()
        super().log(logs, start_time)


def trl_trainer(
    config: TrainConfig, folder: Path, stop: StopSignal, checkpoint: Checkpoint, prompts: Prompts
) -> PolicyTrainer:
    """Build trl's GRPOTrainer with our checkpoints, optimizer and reward. Groups of equal rewards stay in its steps."""
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
