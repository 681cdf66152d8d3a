"""A benchmark's first questions, answered while training goes on: point accuracy in the log, answers as pictures.

One process answers and the others wait, so it is kept small; whole benchmarks are `trace.eval.model_vqa`'s, which reads
any checkpoint of a running training. Under ZeRO-3 no process holds a whole model, and this is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..core.images import decoded_size
from ..eval.benchmark import Benchmark, open_benchmark
from ..eval.scoring import score
from ..inference.predictor import Predictor
from ..model.checkpoint import Checkpoint
from ..utils.command import InputError
from .config import TrainConfig
from .torch_compile import uncompiled


class BenchmarkCallback(TrainerCallback):
    """Asks every `evaluation.steps` steps and after the last one."""

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint, folder: Path, trainer: Any) -> None:
        assert config.evaluation is not None
        self._asked, self._trainer, self._folder = config.evaluation, trainer, folder / "evaluation"
        self._checkpoint, self._style = checkpoint, config.template
        if trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise InputError(
                "evaluation: does not go with ZeRO-3, where no process holds the model; take zero2.json, or run "
                "trace.eval.model_vqa on the checkpoints"
            )
        self._suite: Benchmark = open_benchmark(self._asked.benchmark).first(self._asked.questions)
        for question in self._suite.questions:  # what cannot be used shows now, not in the middle of the training
            path = self._suite.image_path(question)
            if isinstance(reason := decoded_size(path), str):
                raise InputError(f"evaluation: the image {path} cannot be read: {reason}")
            self._suite.mask(question)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._asked.steps and state.global_step != state.max_steps:
            return
        if state.is_world_process_zero:
            accuracy = self._answer(state.global_step)
            print(f"step {state.global_step}: point accuracy {accuracy:.3f} of {len(self._suite.questions)} questions")
            wanted = control.should_log  # of the step itself; whatever is logged takes it back
            self._trainer.log({"point_accuracy": accuracy})
            control.should_log = wanted
        self._trainer.accelerator.wait_for_everyone()

    def _answer(self, step: int) -> float:
        questions = self._suite.questions
        images = [self._suite.image_path(question) for question in questions]
        with _ready_to_generate(self._checkpoint) as ready:
            predictions = Predictor(ready).predict(
                images, [question.text for question in questions], reasoning=self._asked.reasoning, style=self._style,
                max_new_tokens=self._asked.max_new_tokens, batch_size=None,
            )  # fmt: skip
        scores = [
            score(prediction.response.points, self._suite.mask(question))
            for question, prediction in zip(questions, predictions, strict=True)
        ]
        for question, image, prediction in list(zip(questions, images, predictions, strict=True))[
            : self._asked.pictures
        ]:
            self._draw(self._folder / f"{step:07d}_{question.question_id}.png", image, prediction.response.points)
        return sum(scores) / len(scores)

    @staticmethod
    def _draw(path: Path, image: Path, points: Any) -> None:
        from ..core.images import open_image
        from ..drawing.canvas import save
        from ..drawing.figures import overlay

        path.parent.mkdir(exist_ok=True)
        save(overlay(open_image(image), points), path)


@contextmanager
def _ready_to_generate(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The model as it answers: adapters in place, no dropout, attention that keeps a cache; training's state after."""
    whole = checkpoint.model
    model = whole.get_base_model() if hasattr(whole, "peft_config") else whole
    before = (model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})  # of float32 weights too
    model.eval()
    try:
        with torch.random.fork_rng(_gpu(model.device)), torch.no_grad(), uncompiled():
            yield Checkpoint(model, checkpoint.processor, checkpoint.name, checkpoint.path)
    finally:
        model.train()
        model.set_attn_implementation({"text_config": before[0], "vision_config": before[1]})


def _gpu(device: torch.device) -> list[int]:
    """The GPUs whose random state a generation on `device` moves."""
    return [torch.cuda.current_device()] if device.type == "cuda" else []
