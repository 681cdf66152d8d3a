"""Image features, computed once for all questions about an image, and estimates of the memory that answers take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.images import open_image
from ..utils.command import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..model.families.base import Checkpoint

VISION_BATCH = 16  # images that go through the vision tower together

ImageLike = Any  # a path, a PIL image, or an array [height, width, 3] of uint8, RGB
Loaded = Any  # an image, and its pixels unless its features are known


class VisionCache:
    """The output of vision tower and projector for each image, kept while questions about it are left."""

    def __init__(self, checkpoint: Checkpoint, questions: Counter[str]) -> None:
        self.checkpoint, self.questions = checkpoint, questions  # how many are left about each image
        self.known: dict[str, Tensor] = {}

    def read(self, key: str, image: ImageLike) -> tuple[Image, Tensor | None]:
        """The image, and its pixels if its features are needed and unknown; in a thread while the model generates."""
        opened = open_image(image) if isinstance(image, str | Path) else as_image(image).convert("RGB")
        known = key in self.known or not self.checkpoint.packed_generation  # the prompts' inputs hold the pixels then
        return opened, None if known else self.checkpoint.pixels([opened])

    def features(self, keys: Sequence[str], loaded: Mapping[str, Loaded]) -> list[Tensor]:
        """`[patches, hidden]` of every named image."""
        import torch

        model = self.checkpoint.model
        missing = [key for key in keys if key not in self.known]
        with torch.inference_mode():
            for start in range(0, len(missing), VISION_BATCH):
                chunk = missing[start : start + VISION_BATCH]
                images = [loaded[key] for key in chunk]
                made = [self.checkpoint.pixels([image]) if pixels is None else pixels for image, pixels in images]
                pixels = torch.cat(made).to(model.device, model.dtype)
                features = model.get_image_features(pixel_values=pixels, return_dict=True)
                self.known |= dict(zip(chunk, features.pooler_output, strict=True))
        return [self.known[key] for key in keys]

    def used(self, keys: Counter[str]) -> None:
        """Forget the images without further questions, once these are answered."""
        self.questions.subtract(keys)
        for key in keys:
            if self.questions[key] <= 0:
                self.known.pop(key, None)


def as_image(image: Any) -> Image:
    """Return a PIL image as it is, an array `[height, width, 3]` of uint8 (RGB) as one. InputError: something else."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    shape, kind = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "uint8":
        found = f"an array {shape} of {kind}" if shape is not None else type(image).__name__
        raise InputError(f"an image must be a path, a PIL image or an array [height, width, 3] of uint8, not {found}")
    return Image.fromarray(image)


class RecentImages(VisionCache):
    """Features of the images that were asked about last, whatever is left to ask."""

    def __init__(self, checkpoint: Checkpoint, most: int) -> None:
        super().__init__(checkpoint, Counter())
        self.most = most

    def features(self, keys: Sequence[str], loaded: Mapping[str, Loaded]) -> list[Tensor]:
        found = super().features(keys, loaded)
        self.known |= {key: self.known.pop(key) for key in keys}  # the newest last
        for key in list(self.known)[: -self.most]:
            del self.known[key]
        return found

    def used(self, keys: Counter[str]) -> None:
        """Keep them: there may be further questions."""


def free_memory(model: Any) -> int:
    """Bytes available on the model's device."""
    if model.device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(torch.cuda.mem_get_info(model.device)[0] + unused)
    memory = Path("/proc/meminfo")
    lines = memory.read_text().splitlines() if memory.is_file() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else 4 << 30  # a guess if the system does not say


def row_bytes(model: Any, tokens: int) -> int:
    """Memory that an answer of `tokens`, its prompt and image included, takes: keys, values and logits."""
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * head
    stored = 2 * tokens * text.num_hidden_layers * width * model.dtype.itemsize
    return int(stored + 6 * 8 * text.vocab_size)  # sorting the logits for top-p takes copies in double precision


def pass_bytes(model: Any, tokens: int) -> int:
    """Memory that the widest layer needs besides the weights while so many prompt tokens pass through it."""
    text = model.config.get_text_config()
    return int(tokens * (3 * text.intermediate_size + 8 * text.hidden_size) * model.dtype.itemsize)
