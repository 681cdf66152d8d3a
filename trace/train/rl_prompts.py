"""What reinforcement learning asks, and with what it scores the answers: questions of a data set, or of fresh scenes.

Each prompt follows from its number and the seed alone, so a resumed run asks the same ones.
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
from .config import FreshScenes, TrainConfig


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
        self._scene: tuple[int, list[Prompt]] = (-1, [])  # the last one
        self._generator: Any = None  # its settings and renderer

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Prompt:
        if (fresh := self._config.grpo.scenes) is not None:
            number, place = divmod(index, fresh.questions)
            if number != self._scene[0]:
                self._scene = number, self._make_scene(fresh, number)
            return self._scene[1][place]
        epoch, place = divmod(index, len(self.samples))
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self.samples))
        sample = self.samples[order[place]]
        meta, asked = {**sample.meta, "image": sample.image}, sample.conversations[0].text
        return self._read(Path(self._config.image_folder), bare_instruction(asked), meta)

    def _make_scene(self, fresh: FreshScenes, number: int) -> list[Prompt]:
        """Make a scene, in the process that asks for it, and read a random choice of its questions."""
        from ..data.scenes import config, generate, render, scene

        if self._generator is None:
            settings, sizes = config.load_scene_config(fresh.config), generate.parse_sizes(fresh.size)
            generate.require_renderer()
            spec = config.DatasetSpec(Path(), settings, sizes, 1, fresh.seed, False)
            self._generator = spec, render.SceneRenderer(settings, sizes)
        spec, renderer = self._generator
        with TemporaryDirectory() as folder:
            samples = scene.make_scene(replace(spec, out=Path(folder)), number, renderer)["samples"]
            order = np.random.default_rng([self._config.seed, number]).permutation(len(samples))
            chosen = [samples[at] for at in np.resize(order, fresh.questions)]
            return [self._read(Path(folder), one["instruction"], one["meta"]) for one in chosen]

    def _read(self, folder: Path, instruction: str, meta: Mapping[str, Any]) -> Prompt:
        text, images = build_question(instruction, self._config.grpo.reasoning, None, self._coordinates), Images(folder)
        instances = open_instances(images.path(meta["instances"])) if meta.get("instances") else None
        image, mask = open_image(images.path(meta["image"])), open_region(images.path(meta["mask"]))
        return Prompt(text, image, mask, meta, instances)
