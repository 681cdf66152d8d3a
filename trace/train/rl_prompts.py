"""What reinforcement learning asks, and with what it scores the answers: questions of a data set, or of fresh scenes.

The generator does not run out, so with `grpo.scenes` no question is asked twice: a model that sees the same few thousand
again learns those scenes. Each prompt follows from its number and the seed, so a resumed run asks the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch.utils.data import Dataset

from ..core.images import Images, open_image, open_instances, open_region
from ..core.prompts import bare_instruction
from ..core.records import read_samples
from ..eval.benchmark import Mask
from ..inference.predictor import build_question
from ..utils.command import InputError
from .config import TrainConfig


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question about an image, and what its answers are scored by; `text` is the human turn without the image."""

    text: str
    image: Image
    mask: Mask
    meta: Mapping[str, Any]
    instances: NDArray[Any] | None


class Prompts(Dataset[Prompt]):
    """`count` prompts. Those of a data set come in a random order, and all of them before one comes again.

    InputError: a sample names no mask, or no scene can be rendered here.
    """

    def __init__(self, config: TrainConfig, coordinates: str, count: int) -> None:
        self._config, self._coordinates, self._count = config, coordinates, count
        self.samples = [sample for path in config.data for sample in read_samples(path)]
        for sample in self.samples:
            if not (sample.image and sample.meta.get("mask")):
                problem = f"data: sample {sample.id} has no image or no meta.mask, by which answers are scored"
                raise InputError(f"{problem}. Use data of trace.data.scenes.generate.")
        self._scene: tuple[int, list[Prompt]] = (-1, [])
        self._render: Any = None  # a scene's samples, from a folder to write to and its number

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Prompt:
        if (fresh := self._config.grpo.scenes) is None:
            epoch, place = divmod(index, len(self.samples))
            order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self.samples))
            sample = self.samples[order[place]]
            meta, asked = {**sample.meta, "image": sample.image}, sample.conversations[0].text
            return self._prompt(Path(self._config.image_folder), bare_instruction(asked), meta)
        number, place = divmod(index, fresh.questions)
        if number != self._scene[0]:
            with TemporaryDirectory() as folder:
                samples = self._scene_samples(Path(folder), number)
                order = np.random.default_rng([self._config.seed, number]).permutation(len(samples))
                chosen = [samples[at] for at in np.resize(order, fresh.questions)]
                read = [self._prompt(Path(folder), one["instruction"], one["meta"]) for one in chosen]
            self._scene = number, read
        return self._scene[1][place]

    def _scene_samples(self, folder: Path, number: int) -> list[dict[str, Any]]:
        """Make a scene, in the process that asks for it."""
        from ..data.scenes import generate
        from ..data.scenes.config import DatasetSpec, load_scene_config
        from ..data.scenes.render import SceneRenderer
        from ..data.scenes.scene import make_scene

        if self._render is None:
            fresh = self._config.grpo.scenes
            scenes, sizes = load_scene_config(fresh.config), generate.parse_sizes(fresh.size)
            generate.require_renderer()
            self._render = DatasetSpec(folder, scenes, sizes, 1, fresh.seed, False), SceneRenderer(scenes, sizes)
        spec, renderer = self._render
        return make_scene(replace(spec, out=folder), number, renderer)["samples"]

    def _prompt(self, folder: Path, instruction: str, meta: Mapping[str, Any]) -> Prompt:
        images = Images(folder)
        instances = open_instances(images.path(meta["instances"])) if meta.get("instances") else None
        return Prompt(
            build_question(instruction, self._config.grpo.reasoning, None, self._coordinates),
            open_image(images.path(meta["image"])), open_region(images.path(meta["mask"])), meta, instances,
        )  # fmt: skip
