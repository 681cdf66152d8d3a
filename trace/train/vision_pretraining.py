"""Vision pre-training of the nano tower on labels of generated scenes; it stands in for CLIP's.

Each patch learns to tell its colour, its category, and the centre of its object (32 bins an axis), from instance maps.
The heads are discarded and the tower stays frozen from then on; mean and scale of its features are folded into the
projector's first layer, so that the language model starts on features of unit scale.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..core.images import BACKGROUND, Square, on_surface, open_image, open_instances, patch_coverage
from ..core.points import Point
from ..core.prompts import IGNORE
from ..model.checkpoint import Checkpoint, load, save
from ..utils.command import InputError
from ..utils.files import read_jsonl
from .config import TrainConfig
from .guards import StopSignal
from .param_groups import set_trainable
from .trainer import ResumableTrainer, training_arguments

BINS = 32
HELD_OUT = 0.03  # of the views, to report how well patches are classified
BACKGROUNDS = ("floor", "surface")  # the first categories: what is below objects


class PatchLabels(Dataset[dict[str, Tensor]]):
    """One view an item: pixels, and for every patch the index of its colour, its category and its two centre bins."""

    def __init__(self, folders: list[str], checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.views = [(path, view) for path in map(Path, folders) for _, view in read_jsonl(path / "views.jsonl")]
        if not self.views:
            raise InputError(f"data: no views in {', '.join(folders)}.")
        objects = [item for _, view in self.views for item in view["objects"]]
        self.colors = sorted({item["color"] for item in objects})
        self.categories = [*BACKGROUNDS, *sorted({item["category"] for item in objects})]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        folder, view = self.views[index]
        image, instances = open_image(folder / view["image"]), open_instances(folder / view["instances"])
        side, square, objects = self._checkpoint.patches_per_side, Square(*image.size), view["objects"]
        regions = [instances == BACKGROUND, on_surface(instances)]
        regions += [instances == item["instance"] for item in objects]
        coverage = np.stack([patch_coverage(region, side).reshape(-1) for region in regions])
        coverage[2:] *= 4.0  # an object wins a patch from the surface when it covers a fifth of it
        labels = np.full((4, side * side), IGNORE)
        for patch, winner in enumerate(coverage.argmax(0)):
            labels[1, patch] = winner if winner < 2 else self.categories.index(objects[winner - 2]["category"])
            if winner >= 2:
                item = objects[winner - 2]
                centre = square.pad_point(Point(*item["center"]))
                labels[0, patch] = self.colors.index(item["color"])
                labels[2, patch], labels[3, patch] = (min(int(v * BINS), BINS - 1) for v in (centre.x, centre.y))
        return {"pixel_values": self._checkpoint.pixels([image])[0], "labels": torch.tensor(labels)}


class PatchClassifier(nn.Module):
    """The vision tower with one linear head on the layer that the language model reads."""

    def __init__(self, tower: nn.Module, layer: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.tower, self.layer, self.sizes = tower, layer, sizes
        self.head = nn.Linear(tower.config.hidden_size, sum(sizes))

    def features(self, pixel_values: Tensor) -> Tensor:
        return self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.features(pixel_values)).split(self.sizes, dim=-1)
        pairs = [(part.flatten(0, 1), labels[:, index].flatten()) for index, part in enumerate(logits)]
        losses = [functional.cross_entropy(part, target, ignore_index=IGNORE) for part, target in pairs]
        correct = torch.stack([part.argmax(-1) for part in logits], dim=1) == labels
        return {"loss": torch.stack(losses).sum(), "correct": correct}


class VisionTrainer(ResumableTrainer):
    """Train a `PatchClassifier`; in the end fold the features' scale into the projector."""

    def __init__(self, checkpoint: Checkpoint, held_out: Dataset[dict[str, Tensor]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._checkpoint, self._held_out = checkpoint, held_out

    def save_trained(self, folder: Path) -> None:
        """Report on held-out views, fold the features' scale into the projector, write the model."""
        outputs, correct, labelled, classifier = [], torch.zeros(4), torch.zeros(4), self.model.eval()
        loader: DataLoader[Any] = DataLoader(self._held_out, batch_size=32)
        with torch.no_grad():
            for batch in tqdm(loader, desc="held-out views", leave=False):
                batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                valid = batch["labels"] != IGNORE
                correct += (classifier(**batch)["correct"] & valid).sum((0, 2)).cpu()
                labelled += valid.sum((0, 2)).cpu()
                outputs.append(classifier.features(batch["pixel_values"]).flatten(0, 1).cpu())
        model, features = self._checkpoint.model.cpu(), torch.cat(outputs)  # only the tower was moved to a GPU
        accuracy = dict(zip(("color", "category", "x", "y"), (correct / labelled).tolist(), strict=True))
        self.notes["held_out_patch_accuracy"] = {name: round(value, 4) for name, value in accuracy.items()}
        print(f"accuracy on held-out patches: {self.notes['held_out_patch_accuracy']}")
        layer = model.model.multi_modal_projector.linear_1
        with torch.no_grad():  # zero mean and unit scale: W' = W / scale, b' = b - W' mean
            layer.weight.div_(features.std(0).clamp_min(1e-4))
            layer.bias.sub_(layer.weight @ features.mean(0))
        if self.is_world_process_zero():
            save(self._checkpoint, folder)


def prepare(config: TrainConfig, folder: Path, stop: StopSignal) -> VisionTrainer:
    checkpoint = load(config.model)
    config.check_model(checkpoint)
    checkpoint.model = set_trainable(checkpoint.model, config)
    data = PatchLabels(config.data, checkpoint)
    first_held_out = len(data) - max(1, round(len(data) * HELD_OUT))
    training, held_out = Subset(data, range(first_held_out)), Subset(data, range(first_held_out, len(data)))
    layer, sizes = checkpoint.model.config.vision_feature_layer, (len(data.colors), len(data.categories), BINS, BINS)
    classifier = PatchClassifier(checkpoint.model.model.vision_tower, layer, sizes)
    passes = config.accumulation(int(os.environ.get("WORLD_SIZE", "1")))
    trainer = VisionTrainer(
        checkpoint, held_out, model=classifier, args=training_arguments(config, folder, passes),
        train_dataset=training, config=config, stop=stop,
    )  # fmt: skip
    trainer.notes = {"views": len(data), "colors": data.colors, "categories": data.categories}
    return trainer
