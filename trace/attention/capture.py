"""An answer with the attention of its tokens to the image: recorded while it is generated, or for a saved answer.

Decides which layers and heads are kept, how heads are reduced, and which row belongs to a token. Row t of an answer is
where its token t is fed in (`fed`); under `predict` it is the row before, which chose token t. Generation never feeds
in the last token, so it is fed in once more. A saved answer is read in one teacher-forced pass over prompt and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..utils.command import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.checkpoint import Checkpoint

DEFAULT_LAYERS = 3  # the last ones


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """What is kept of the attention."""

    layers: tuple[int, ...] | None = None  # decoder layers, negative ones from the end; None for the last three
    reduction: Literal["mean", "max"] = "mean"  # over heads; a sum over the image is a share only under "mean"
    heads: tuple[int, ...] = ()  # layers whose heads are kept one by one as well
    row: Literal["fed", "predict"] = "fed"
    dtype: Literal["float16", "float32"] = "float16"

    def resolve(self, model: Any) -> tuple[list[int], list[int]]:
        """Return the recorded layers, and those that keep their heads. InputError: the model has no such layer."""
        count = int(model.config.text_config.num_hidden_layers)
        layers = tuple(range(max(0, count - DEFAULT_LAYERS), count)) if self.layers is None else self.layers
        for layer in (*layers, *self.heads):
            if not -count <= layer < count:
                raise InputError(f"the model has no layer {layer}: its {count} decoder layers count from 0")
        return sorted({layer % count for layer in layers}), sorted({layer % count for layer in self.heads})


@dataclass(frozen=True, slots=True)
class CapturedAnswer:
    """An answer (without the end of sequence) and its attention, one row a token."""

    token_ids: tuple[int, ...]
    attention: NDArray[np.floating]  # [layers, tokens, patches], heads reduced
    heads: Mapping[int, NDArray[np.floating]]  # layer -> [heads, tokens, patches], of the layers in `config.heads`
    layers: tuple[int, ...]
    keys: NDArray[np.int64]  # [tokens], the number of tokens each row can attend to
    config: CaptureConfig


def capture_while_generating(
    checkpoint: Checkpoint, image: Image, prompt: str, config: CaptureConfig | None = None, *,
    max_new_tokens: int = 512, **options: Any,
) -> CapturedAnswer:  # fmt: skip
    """Answer a rendered prompt about one image, recording attention; `options` are passed to transformers' `generate`."""
    import torch
    from transformers import DynamicCache

    from ..inference.generation import Decoding, generate_with_transformers
    from ..model.attention_recorder import recording

    model, config = checkpoint.model, config or CaptureConfig()
    inputs = checkpoint.inputs([image], [prompt])
    start = inputs["input_ids"].shape[1]
    recorder = _recorder(checkpoint, inputs["input_ids"], config, None, max_new_tokens + 1)
    cache = DynamicCache(config=model.config.text_config)
    with recording(model, recorder), torch.inference_mode():
        decoding = Decoding(max_new_tokens=max_new_tokens)
        (ids,) = generate_with_transformers(checkpoint, inputs, decoding, past_key_values=cache, **options)
        if recorder.rows < len(ids) + 1:  # cut off by the limit: its last token was never fed in
            last = torch.tensor([ids[-1:]], device=model.device)
            model.model.language_model(input_ids=last, past_key_values=cache, use_cache=True)
    return _captured(ids, recorder, start, config)


def capture_teacher_forced(
    checkpoint: Checkpoint, image: Image, prompt: str, token_ids: Sequence[int], config: CaptureConfig | None = None
) -> CapturedAnswer:
    """Record the attention of a given answer, in one pass over prompt and answer. ValueError: it has no tokens."""
    import torch

    from ..model.attention_recorder import recording

    model, config = checkpoint.model, config or CaptureConfig()
    if not token_ids:
        raise ValueError("an answer without tokens has no attention")
    inputs = checkpoint.inputs([image], [prompt])
    start = inputs["input_ids"].shape[1]
    recorder = _recorder(checkpoint, inputs["input_ids"], config, start, len(token_ids) + 1)
    answer = torch.tensor([list(token_ids)], device=model.device)
    with recording(model, recorder, only=True), torch.inference_mode():
        input_ids = torch.cat([inputs["input_ids"], answer], dim=1)
        model.model(input_ids=input_ids, pixel_values=inputs["pixel_values"], use_cache=False)
    return _captured(token_ids, recorder, start, config)


def image_columns(input_ids: Sequence[int], image_token_id: int) -> slice:
    """Return the positions of the image's tokens in a prompt. ValueError: there are none."""
    start = list(input_ids).index(image_token_id)
    return slice(start, start + list(input_ids).count(image_token_id))


def _recorder(checkpoint: Checkpoint, input_ids: Any, config: CaptureConfig, start: int | None, rows: int) -> Any:
    import torch

    from ..model.attention_recorder import ImageRecorder

    layers, heads = config.resolve(checkpoint.model)
    columns = image_columns(input_ids[0].tolist(), checkpoint.image_token_id)
    return ImageRecorder(layers, columns, config.reduction, heads, start, getattr(torch, config.dtype), rows)


def _captured(ids: Sequence[int], recorder: Any, start: int, config: CaptureConfig) -> CapturedAnswer:
    """The recorder's rows are the prompt's last one, then one a token; here the rows of the answer are chosen."""
    first = 1 if config.row == "fed" else 0
    rows = slice(first, first + len(ids))
    heads = {layer: of_layer[:, rows].numpy() for layer, of_layer in recorder.heads().items()}
    keys = np.arange(len(ids), dtype=np.int64) + start + first
    return CapturedAnswer(
        tuple(ids), recorder.attention()[:, rows].numpy(), heads, tuple(recorder.layer_order), keys, config
    )
