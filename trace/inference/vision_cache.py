"""What the vision tower makes of each image, computed once for all questions about it, and the memory that is free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.images import open_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..model.checkpoint import Checkpoint

VISION_BATCH = 16  # images that go through the vision tower together

ImageLike = Any  # an image, or the path of one


class Features:
    """What the vision tower and the projector make of each image, kept while questions about it are to come."""

    def __init__(self, checkpoint: Checkpoint, uses: Counter[str]) -> None:
        self.checkpoint, self.uses = checkpoint, uses
        self.known: dict[str, Tensor] = {}

    def read(self, key: str, image: ImageLike) -> tuple[Image, Tensor | None]:
        """The image, and its pixels if its features are not known; in a thread while the model generates."""
        picture = open_image(image) if isinstance(image, str | Path) else image.convert("RGB")
        return picture, None if key in self.known else self.checkpoint.pixels([picture])

    def features(self, names: Sequence[str], pictures: dict[str, tuple[Image, Tensor | None]]) -> list[Tensor]:
        """`[patches, hidden]` of every named image."""
        import torch

        model = self.checkpoint.model
        missing = [name for name in names if name not in self.known]
        with torch.inference_mode():
            for start in range(0, len(missing), VISION_BATCH):
                chunk = missing[start : start + VISION_BATCH]
                pixels = torch.cat([self._pixels(*pictures[name]) for name in chunk]).to(model.device, model.dtype)
                found = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
                self.known |= dict(zip(chunk, found, strict=True))
        return [self.known[name] for name in names]

    def _pixels(self, picture: Image, pixels: Tensor | None) -> Tensor:
        return self.checkpoint.pixels([picture]) if pixels is None else pixels

    def used(self, names: Counter[str]) -> None:
        """These questions are answered: forget the images that no other one is about."""
        self.uses.subtract(names)
        for name in names:
            if self.uses[name] <= 0:
                self.known.pop(name, None)


def free_memory(model: Any) -> int:
    """Bytes that can still be had where the model lies."""
    if model.device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(torch.cuda.mem_get_info(model.device)[0] + unused)
    memory = Path("/proc/meminfo")
    lines = memory.read_text().splitlines() if memory.is_file() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else 4 << 30  # a guess where the system does not tell


def row_bytes(model: Any, tokens: int) -> int:
    """Memory that an answer takes while it is generated: keys and values of all layers, and its logits.

    Args:
        tokens: the prompt's, the image's among them, and the most new ones.
    """
    text = model.config.text_config
    width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    stored = 2 * tokens * text.num_hidden_layers * width * model.dtype.itemsize
    return int(stored + 6 * 8 * text.vocab_size)  # sorting the logits for top-p takes copies in double precision


def pass_bytes(model: Any, tokens: int) -> int:
    """Memory that the widest layer needs beside the weights while so many tokens of prompts pass through it."""
    text = model.config.text_config
    return int(tokens * (3 * text.intermediate_size + 8 * text.hidden_size) * model.dtype.itemsize)
