"""Answer a benchmark's first questions during training: accuracy and quality in the log, answers drawn as pictures.

One process answers while the others wait, so keep it small; `trace.eval.model_vqa` answers complete benchmarks from any
checkpoint of a running training. Under ZeRO-3 no process holds a complete model, and this is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..core.images import decoded_size, open_image
from ..drawing.canvas import save_figure
from ..drawing.figures import draw_overlay
from ..eval.benchmark import open_benchmark
from ..eval.error_classes import ErrorClassifier
from ..eval.quality import answer_quality, mean_quality
from ..eval.scoring import score_response
from ..inference.predictor import Predictor
from ..model.families.base import Checkpoint
from ..utils.command import InputError
from .config import TrainConfig


class BenchmarkCallback(TrainerCallback):
    """Answer every `evaluation.steps` steps and after the last one; for grpo also before the first."""

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint, folder: Path, trainer: Any) -> None:
        assert config.evaluation is not None
        self._settings, self._trainer, self._folder = config.evaluation, trainer, folder / "evaluation"
        self._checkpoint, self._style, self._before = checkpoint, config.template, config.objective == "grpo"
        if trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
            advice = "Use zero2.json, or run trace.eval.model_vqa on the checkpoints."
            raise InputError(f"evaluation: does not work with ZeRO-3, where no process holds the model. {advice}")
        self._benchmark = open_benchmark(self._settings.benchmark).first(self._settings.questions)
        for question in self._benchmark.questions:  # unusable files stop the run now, not in the middle of it
            path = self._benchmark.image_path(question)
            if isinstance(reason := decoded_size(path), str):
                raise InputError(f"evaluation: the image {path} cannot be read: {reason}.")
            self._benchmark.region(question)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and self._before:
            self._answer(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._settings.steps == 0 or state.global_step == state.max_steps:
            self._answer(state, control)

    def _answer(self, state: Any, control: Any) -> None:
        if state.is_world_process_zero:
            metrics, count = self._evaluate(state.global_step), len(self._benchmark.questions)
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics.items())
            print(f"step {state.global_step}: {shown} on {count} questions")
            should_log = control.should_log  # for the step itself; every call of `log` resets it
            self._trainer.log(metrics)
            control.should_log = should_log
        self._trainer.accelerator.wait_for_everyone()

    def _evaluate(self, step: int) -> dict[str, float]:
        questions, settings, answers = self._benchmark.questions, self._settings, list[dict[str, float]]()
        images, texts = [self._benchmark.image_path(question) for question in questions], [q.text for q in questions]
        options: dict[str, Any] = {"reasoning": settings.reasoning, "max_new_tokens": settings.max_new_tokens}
        checkpoint, wrapped = self._checkpoint, self._checkpoint.model
        model = wrapped.get_base_model() if hasattr(wrapped, "peft_config") else wrapped
        parts = {name: getattr(model.config, name) for name in ("text_config", "vision_config")}
        before = {name: part._attn_implementation for name, part in parts.items()}
        model.set_attn_implementation(dict.fromkeys(parts, "sdpa"))  # keeps a cache, and works in float32 too
        model.eval()
        with torch.compiler.set_stance("force_eager"):  # generation has other shapes and gains nothing
            predictor = Predictor(replace(checkpoint, model=model))
            predictions = predictor.predict(images, texts, style=self._style, batch_size=None, **options)
        model.train()
        model.set_attn_implementation(before)
        for number, (question, image, prediction) in enumerate(zip(questions, images, predictions, strict=True)):
            points = prediction.response.points
            mask = self._benchmark.region(question)
            accuracy = score_response(prediction.response, question, mask)
            answers.append({"point_accuracy": accuracy, "answer_tokens": len(prediction.token_ids)})
            if mask is not None:
                known = ErrorClassifier(question, mask, self._benchmark.question_file.parent)
                answers[-1] |= answer_quality(prediction.response, mask, known.meta, known.instances)
            if number < settings.pictures:
                self._folder.mkdir(exist_ok=True)
                picture = self._folder / f"{step:07d}_{question.question_id}.png"
                save_figure(draw_overlay(open_image(image), points), picture)
        return mean_quality(answers)
