"""An answer with the attention of its tokens to the image: of a new answer, or of a saved one.

Decides which layers and heads are kept, how heads are reduced, and which row belongs to a token. Row t of an answer is
where its token t is fed in (`fed`); under `predict` it is the row before, which chose token t. All rows are recorded in
one teacher-forced pass over prompt and answer: the caches of some models drop tokens while they generate.
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

    from ..model.families.base import Checkpoint

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
        from ..model.attention_recorder import full_attention_layers

        text = model.config.get_text_config()
        count, full = int(text.num_hidden_layers), full_attention_layers(text)
        layers = tuple(full[-DEFAULT_LAYERS:]) if self.layers is None else self.layers
        for layer in (*layers, *self.heads):
            if not -count <= layer < count:
                raise InputError(f"the model has no layer {layer}: its {count} decoder layers count from 0")
            if layer % count not in full:
                raise InputError(f"layer {layer} of the model has no full attention. Choose from {full}")
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
    weights: NDArray[np.floating] | None = None  # [image tokens, patches], how these are laid; None: they are patches

    @property
    def image_tokens(self) -> int:
        return self.attention.shape[-1] if self.weights is None else len(self.weights)

    @property
    def even(self) -> NDArray[np.floating]:
        """`[patches]`: attention spread evenly over the image tokens, which sums to 1."""
        patches = self.attention.shape[-1]
        return np.full(patches, 1 / patches) if self.weights is None else self.weights.mean(axis=0)


def capture_while_generating(
    checkpoint: Checkpoint, image: Image, prompt: str, config: CaptureConfig | None = None, *,
    max_new_tokens: int = 512, **options: Any,
) -> CapturedAnswer:  # fmt: skip
    """Answer a rendered prompt about one image, and record the attention of the answer.

    `options` are passed to transformers' `generate`.
    """
    from ..inference.generation import AnswerRow, Decoding, generate_with_transformers

    config = config or CaptureConfig()
    config.resolve(checkpoint.model)  # a layer that cannot be recorded is reported before the answer is generated
    inputs, row = checkpoint.inputs([image], [prompt]), AnswerRow(0, ())
    generate_with_transformers(checkpoint, [row], inputs, Decoding(max_new_tokens=max_new_tokens), **options)
    return _record(checkpoint, image, inputs, row.token_ids, config)


def capture_teacher_forced(
    checkpoint: Checkpoint, image: Image, prompt: str, token_ids: Sequence[int], config: CaptureConfig | None = None
) -> CapturedAnswer:
    """Record the attention of a given answer, in one pass over prompt and answer. ValueError: it has no tokens."""
    if not token_ids:
        raise ValueError("an answer without tokens has no attention")
    return _record(checkpoint, image, checkpoint.inputs([image], [prompt]), token_ids, config or CaptureConfig())


def _record(
    checkpoint: Checkpoint, image: Image, inputs: Mapping[str, Any], ids: Sequence[int], config: CaptureConfig
) -> CapturedAnswer:
    """One pass over prompt and answer, up to the last layer that is recorded."""
    import torch

    from ..model.attention_recorder import ImageRecorder, recording

    model, prompt_ids = checkpoint.model, inputs["input_ids"]
    start, layers, heads = prompt_ids.shape[1], *config.resolve(model)
    columns = (prompt_ids[0] == checkpoint.image_token_id).nonzero()[:, 0].tolist()
    recorder = ImageRecorder(layers, columns, start, config.reduction, heads, getattr(torch, config.dtype))
    answer = prompt_ids.new_tensor([list(ids)])
    fills = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    extended = {name: torch.cat([tensor, fills.get(name, torch.zeros_like(answer)).to(tensor)], dim=1)
                for name, tensor in inputs.items() if tensor.shape == prompt_ids.shape}  # fmt: skip
    with recording(model, recorder, only=True), torch.inference_mode():
        model.model(**{**inputs, **extended}, use_cache=False)
    # The recorder's rows are the prompt's last one, then one a token; here the rows of the answer are chosen.
    first = 1 if config.row == "fed" else 0
    weights = checkpoint.patch_weights(image, inputs)

    def rows(recorded: torch.Tensor) -> NDArray[np.floating]:
        """Over the patches of the padded square."""
        of_answer = recorded[:, first : first + len(ids)].numpy()
        return of_answer if weights is None else (of_answer.astype(np.float32) @ weights).astype(of_answer.dtype)

    return CapturedAnswer(
        tuple(ids), rows(recorder.attention()), {layer: rows(one) for layer, one in recorder.heads().items()},
        tuple(recorder.layer_order), np.arange(len(ids), dtype=np.int64) + start + first, config, weights,
    )  # fmt: skip
