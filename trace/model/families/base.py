"""What every family of vision-language models offers to prediction, evaluation, attention and training.

Two families implement it: `llava` (exactly as the original code computes) and `any` (every other model of transformers,
through its own processor and chat template). Nothing outside `model/` asks which of the two it has.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.command import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from ..saving import ModelCard


PARTS = ("vision", "projector", "llm")
# By the names of modules in transformers: a prefix of a weight's name -> its part; the first that fits. Qwen's projectors
# are modules of its vision tower.
_PART_PREFIXES = (
    (r"lm_head\.|model\.(language_model|text_model|decoder|text_decoder)\.", "llm"),
    (r"model\.visual\.(merger|deepstack_merger_list)\.", "projector"),
    (r"model\.(vision_tower|visual|vision_model|vision_encoder|image_tower|audio_tower|embed_audio)\.", "vision"),
)


def part_of(name: str) -> str:
    """Which of `PARTS` a weight belongs to, by its name with or without PEFT's prefix; what is left is the projector."""
    bare = name.removeprefix("base_model.model.")
    return next((part for prefix, part in _PART_PREFIXES if re.match(prefix, bare)), "projector")


def count_parts(model: Any) -> dict[str, int]:
    """The number of weights of each part."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += num_elements(parameter)
    return counts


def num_elements(parameter: Any) -> int:
    """The elements of a weight, complete where a process holds a share of it (ZeRO-3)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@dataclass
class Checkpoint(ABC):
    """A model with its processor: everything that turns images and text into its inputs.

    `card` says where the weights come from, for the saved model card; `parts` are the arguments of `compose` if it was
    composed. `coordinates` names the convention (core/conventions.py) in which the model writes points;
    `reasons` whether it is asked to reason where nobody says.
    """

    model: Any  # a transformers model, which PEFT may wrap
    processor: Any
    name: str
    path: str
    card: ModelCard | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    coordinates: str = "unit"
    reasons: bool = True

    template_options = {}  # of the chat template
    answer_lead = ""  # what stands between an open prompt and its answer
    packed_generation = False  # whether `inference.generation.generate`, which packs rows, runs this model

    def native_coordinates(self) -> str:
        """The convention of the model's family, whatever this model was trained on. InputError if it has none."""
        raise InputError(f"coordinates: {self.name} is of no family that writes points in a way of its own. Use unit")

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def text_config(self) -> Any:
        """The configuration of the language model."""
        return self.model.config.get_text_config()

    @property
    @abstractmethod
    def image_token_id(self) -> int: ...

    @property
    @abstractmethod
    def image_tokens(self) -> int | None:
        """The number of tokens of every image; None where it depends on the image."""

    @property
    @abstractmethod
    def end_ids(self) -> list[int]:
        """Ids of which each ends an answer."""

    @property
    @abstractmethod
    def suppressed_ids(self) -> list[int]:
        """Ids that no answer may contain: the image's, and those that only round the vocabulary up."""

    @property
    @abstractmethod
    def text_vocab_size(self) -> int:
        """The loss is taken over these first rows of the output."""

    @property
    @abstractmethod
    def packs(self) -> bool:
        """Whether rows laid end to end compute exactly what they compute alone."""

    @abstractmethod
    def prompt(self, question: str, style: str = "vicuna_v1", answer: str = "") -> str:
        """The text of one question about an image, open for the answer, or with an answer's beginning."""

    @abstractmethod
    def prompt_ids(self, prompt: str, image: Image | None = None) -> list[int]:
        """The ids of an open prompt, image tokens included. InputError: more than the model has positions.

        Args:
            image: decides how many tokens it has, where that depends on the image; by default one of ordinary size.
        """

    @abstractmethod
    def inputs(self, images: Sequence[Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """A left-padded batch for `generate`, on the model's device: one image and one open prompt a row."""

    def patch_weights(self, image: Image, inputs: Mapping[str, Tensor]) -> NDArray[Any] | None:
        """`[image tokens, patches]`: how each token's share is laid over the square grid of the padded image.

        None where the tokens are the patches of that grid.
        """
        return None

    def sent_size(self, image: Image) -> tuple[int, int] | None:
        """The size by which an answer's coordinates are read, and which is recorded with it; None for fractions."""
        return None if self.coordinates == "unit" else self.seen_size(image)

    def seen_size(self, image: Image) -> tuple[int, int]:
        """Width and height of the picture as the model sees it; conventions in pixels count these."""
        return image.size

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """Generated ids up to the end of the answer, without the id that ends it."""
        return list(ids[: next((index for index, token in enumerate(ids) if token in self.end_ids), len(ids))])

    def check_positions(self, tokens: int) -> None:
        """Raise InputError if a prompt has more tokens than the model has positions."""
        limit = self.text_config.max_position_embeddings
        if tokens > limit:
            message = f"the prompt has {tokens:,} tokens, image included; {self.name} has {limit:,} positions"
            raise InputError(f"{message}. Shorten the instruction")

    @abstractmethod
    def write_processor(self, folder: Path) -> None:
        """Write the files that plain transformers loads as this model's processor."""

    @abstractmethod
    def write_model(self, folder: Path, tensors: Mapping[str, Tensor], dtype: str | None, card: ModelCard) -> None:
        """Write a complete model (no adapter) that plain transformers loads; see `checkpoint.save`."""
