"""LLaVA-1.5: the original's token ids and pixels, a square grid of patches, weights under the original's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.prompts import IMAGE_ID, Rendered, encode, render_prompt
from ...utils.command import InputError
from .base import Checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from ..saving import ModelCard


class LlavaCheckpoint(Checkpoint):
    """Llama, CLIP and a projector, with the processor of `model.processor`."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    answer_lead = " "
    packed_generation = True
    packs = True

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_index)

    @property
    def image_tokens(self) -> int:
        return self.patches_per_side**2

    @property
    def end_ids(self) -> list[int]:
        return [self.tokenizer.eos_token_id]

    @property
    def text_vocab_size(self) -> int:
        """Rows of the output that the original model has; then come the image's and those that round it up."""
        from ..checkpoint_plan import original_vocab_size, text_ids

        return original_vocab_size(self.model.config) or 1 + max(text_ids(self.tokenizer, self.model.config))

    @property
    def suppressed_ids(self) -> list[int]:
        from ..checkpoint_plan import suppressed_ids

        return suppressed_ids(self.tokenizer, self.model.config)

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of the padded square; an image is the square of it in tokens."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """`[images, 3, side, side]`: padded to a square, resized and normalised as for CLIP."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def expand_image_tokens(self, ids: Iterable[int]) -> list[int]:
        """Encoded ids with every image placeholder replaced by the image's tokens."""
        image = [self.image_token_id] * self.image_tokens
        return [token for placeholder in ids for token in (image if placeholder == IMAGE_ID else (placeholder,))]

    def prompt(self, question: str, style: str = "vicuna_v1", answer: str = "") -> str:
        if style == "plain":
            raise InputError("the conversation template 'plain' is for captions: it has no place for a question")
        return render_prompt(question, style) + (f"{self.answer_lead}{answer}" if answer else "")

    def prompt_ids(self, prompt: str, image: Image | None = None) -> list[int]:
        ids = self.expand_image_tokens(encode(self.tokenizer, Rendered(prompt, ())).input_ids)
        self.check_positions(len(ids))
        return ids

    def inputs(self, images: Sequence[Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        import torch

        rows = [self.prompt_ids(prompt) for prompt in prompts]
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
            "pixel_values": self.pixels(images).to(self.model.dtype),
        }
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def write_processor(self, folder: Path) -> None:
        from ..processor import save_processor

        save_processor(self.processor, folder)

    def write_model(self, folder: Path, tensors: Mapping[str, Tensor], dtype: str | None, card: ModelCard) -> None:
        from ..checkpoint_plan import valid_generation_config
        from ..lazy_tensors import in_memory
        from ..llava_layout import hub_name, renamed
        from ..saving import SavedModel, write_hugging_face

        weights = renamed({name: in_memory(tensor, name) for name, tensor in tensors.items()}, hub_name)
        config = self.model.config
        generation = valid_generation_config(self.model.generation_config.to_diff_dict(), self.tokenizer, config)
        write_hugging_face(folder, SavedModel(self.name, config, weights, self.processor, generation, card, dtype))
