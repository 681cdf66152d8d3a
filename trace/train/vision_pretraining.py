"""The vision stand-in: what CLIP's pre-training gives a large model, a nano tower gets from labels of scenes.

Each patch learns to say what is on it: colour, category, and where the centre of its object is (32 bins an axis). The
labels come from instance maps. The heads are thrown away, the tower is frozen from then on, and the mean and scale of
its features are folded into the projector's first layer, so that the language model starts on features of unit scale.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import TrainingArguments

from ..core.images import Square, open_image, open_instances, patch_coverage
from ..core.points import Point
from ..core.prompts import IGNORE
from ..core.records import read_jsonl
from ..data.scenes.instances import BACKGROUND, on_surface
from ..model.checkpoint import Checkpoint, load, save
from ..utils.command import InputError
from .config import TrainConfig
from .guards import StopSignal
from .param_groups import choose
from .trainer import Prepared, SteadyTrainer

Arguments = Callable[[int], TrainingArguments]  # of the forward passes a step of one process

BINS = 32
HELD_OUT = 0.03  # of the views, to report how well patches are read
NO_OBJECTS = ("floor", "surface")  # the first categories: what is below things


class PatchLabels(Dataset[dict[str, Tensor]]):
    """One view an item: pixels, and for every patch the index of its colour, its category and its two centre bins."""

    def __init__(self, folders: list[str], checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.views = [
            (Path(folder), view) for folder in folders for _, view in read_jsonl(Path(folder) / "views.jsonl")
        ]
        if not self.views:
            raise InputError(f"no views in {', '.join(folders)}")
        objects = [item for _, view in self.views for item in view["objects"]]
        self.colors = sorted({item["color"] for item in objects})
        self.categories = [*NO_OBJECTS, *sorted({item["category"] for item in objects})]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        folder, view = self.views[index]
        image = open_image(folder / view["image"])
        instances = open_instances(folder / view["instances"])
        side, square = self._checkpoint.patches_per_side, Square(*image.size)
        objects = {item["instance"]: item for item in view["objects"]}
        regions = [instances == BACKGROUND, on_surface(instances), *(instances == instance for instance in objects)]
        coverage = np.stack([patch_coverage(region, side).reshape(-1) for region in regions])
        seen = list(objects.values())
        coverage[2:] *= 4.0  # an object wins a patch from the surface when it covers a fifth of it
        labels = np.full((4, side * side), IGNORE)
        for patch, winner in enumerate(coverage.argmax(0)):
            labels[1, patch] = winner if winner < 2 else self.categories.index(seen[winner - 2]["category"])
            if winner >= 2:
                item = seen[winner - 2]
                centre = square.pad_point(Point(*item["center"]))
                labels[0, patch] = self.colors.index(item["color"])
                labels[2, patch], labels[3, patch] = (min(int(v * BINS), BINS - 1) for v in (centre.x, centre.y))
        return {"pixel_values": self._checkpoint.pixels([image])[0], "labels": torch.tensor(labels)}


class PatchReader(nn.Module):
    """The tower with one linear head on the layer that the language model will read."""

    def __init__(self, tower: nn.Module, layer: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.tower, self.layer, self.sizes = tower, layer, sizes
        self.head = nn.Linear(tower.config.hidden_size, sum(sizes))

    def features(self, pixel_values: Tensor) -> Tensor:
        return self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        parts = self.head(self.features(pixel_values)).split(self.sizes, dim=-1)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), labels[:, index].flatten(), ignore_index=IGNORE)
            for index, part in enumerate(parts)
        ]
        right = torch.stack([part.argmax(-1) == labels[:, index] for index, part in enumerate(parts)], dim=1)
        return {"loss": torch.stack(losses).sum(), "right": right}


@dataclass
class PreparedVision(Prepared):
    reader: PatchReader
    held_out: Dataset[dict[str, Tensor]]

    def save(self, folder: Path) -> None:
        """Report on held-out views, fold the features' scale into the projector, write the model."""
        loader: DataLoader[Any] = DataLoader(self.held_out, batch_size=32)
        features, right, known = [], torch.zeros(4), torch.zeros(4)
        device = next(self.reader.parameters()).device
        self.reader.eval()
        with torch.no_grad():
            for batch in tqdm(loader, desc="held-out views", leave=False):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                hits = self.reader(**batch)["right"]
                valid = batch["labels"] != IGNORE
                right += (hits & valid).sum((0, 2)).cpu()
                known += valid.sum((0, 2)).cpu()
                features.append(self.reader.features(batch["pixel_values"]).flatten(0, 1).cpu())
        self.checkpoint.model.cpu()  # only the tower was moved to a GPU
        accuracy = dict(zip(("color", "category", "x", "y"), (right / known).tolist(), strict=True))
        self.notes["held_out_patch_accuracy"] = {name: round(value, 4) for name, value in accuracy.items()}
        print(f"held-out patches read right: {self.notes['held_out_patch_accuracy']}")
        _fold_scale(self.checkpoint.model.model.multi_modal_projector.linear_1, torch.cat(features))
        if self.trainer.is_world_process_zero():
            save(self.checkpoint, folder)


@torch.no_grad()
def _fold_scale(layer: nn.Linear, features: Tensor) -> None:
    """Make `layer` see features of zero mean and unit scale: W' = W / scale, b' = b - W' mean."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-4)
    layer.weight.div_(scale)
    layer.bias.sub_(layer.weight @ mean)


def prepare(config: TrainConfig, arguments: Arguments, folder: Path, stop: StopSignal) -> Prepared:
    checkpoint = load(config.model)
    checkpoint.model = choose(checkpoint.model, config)
    data = PatchLabels(config.data, checkpoint)
    held = max(1, round(len(data) * HELD_OUT))
    training = torch.utils.data.Subset(data, range(len(data) - held))
    held_out = torch.utils.data.Subset(data, range(len(data) - held, len(data)))
    layer = checkpoint.model.config.vision_feature_layer
    reader = PatchReader(
        checkpoint.model.model.vision_tower, layer, (len(data.colors), len(data.categories), BINS, BINS)
    )
    args = arguments(config.accumulation(int(os.environ.get("WORLD_SIZE", "1"))))
    trainer = SteadyTrainer(model=reader, args=args, train_dataset=training, config=config, stop=stop)
    notes = {"views": len(data), "colors": data.colors, "categories": data.categories}
    return PreparedVision(trainer, checkpoint, notes, reader, held_out)
