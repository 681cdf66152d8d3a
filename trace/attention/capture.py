"""An answer together with the attention of its tokens to the image: while it is generated, or of a saved one.

Three decisions live here: which layers and heads are kept, how they are reduced, and which row belongs to a token.
Row t of an answer is where its token t is *fed in* (`fed`); under `predict` it is the row before, the one that chose
token t. Generation never feeds in the last token, so it is fed in once more afterwards. A saved answer is read in one
teacher-forced pass over prompt and answer, by the same recorder; the pass ends in the last layer that is recorded.

    captured = while_generating(checkpoint, image, render_prompt(question_text("Find the mug.", True)))
    captured.attention      # [layers, tokens, patches]
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

LAST = 3  # layers that are recorded unless others are asked for
Row = Literal["fed", "predict"]
Reduction = Literal["mean", "max"]


@dataclass(frozen=True, slots=True)
class Capture:
    """What is kept of the attention.

    layers: decoder layers, negative ones from the end; None for the last three.
    reduction: over heads. A sum over the image is the share of attention only under "mean".
    heads: layers whose heads are kept one by one as well.
    """

    layers: tuple[int, ...] | None = None
    reduction: Reduction = "mean"
    heads: tuple[int, ...] = ()
    row: Row = "fed"
    dtype: Literal["float16", "float32"] = "float16"

    def of(self, model: Any) -> tuple[list[int], list[int]]:
        """The layers, and those that keep their heads, of this model. InputError: it has no such layer."""
        count = int(model.config.text_config.num_hidden_layers)
        wanted = tuple(range(max(0, count - LAST), count)) if self.layers is None else self.layers
        return chosen_layers(wanted, count), chosen_layers(self.heads, count)


def chosen_layers(wanted: Sequence[int], count: int) -> list[int]:
    """Layer numbers from 0, in order, each once. InputError: one is not among the `count` layers."""
    for layer in wanted:
        if not -count <= layer < count:
            raise InputError(f"the model has no layer {layer}: its {count} decoder layers count from 0")
    return sorted({layer % count for layer in wanted})


@dataclass(frozen=True, slots=True)
class Captured:
    """An answer and its attention.

    token_ids: the answer without the end of sequence; one row a token.
    attention: [layers, tokens, patches], heads reduced.
    heads: layer -> [heads, tokens, patches], of the layers that were asked for.
    keys: [tokens], how many tokens each row could look at.
    ended: whether the model ended the answer itself.
    """

    token_ids: tuple[int, ...]
    attention: NDArray[np.floating]
    heads: Mapping[int, NDArray[np.floating]]
    layers: tuple[int, ...]
    keys: NDArray[np.int64]
    ended: bool
    capture: Capture


def image_columns(input_ids: Sequence[int], image_token_id: int) -> slice:
    """Where the image's tokens stand in a prompt. ValueError: there is no image in it."""
    ids = list(input_ids)
    start = ids.index(image_token_id)
    return slice(start, start + ids.count(image_token_id))


def while_generating(
    checkpoint: Checkpoint,
    image: Image,
    prompt: str,
    capture: Capture | None = None,
    *,
    max_new_tokens: int = 512,
    **options: Any,
) -> Captured:
    """Answer an open prompt with one image, greedily unless `options` say otherwise, and record meanwhile.

    Args:
        options: handed to `generate` over the greedy settings (streamer, logits_processor, do_sample, temperature...).
    """
    import torch
    from transformers import DynamicCache

    from ..model.attention_recorder import recording

    model, capture = checkpoint.model, capture or Capture()
    inputs = checkpoint.inputs([image], [prompt])
    start = inputs["input_ids"].shape[1]
    recorder = _recorder(checkpoint, inputs["input_ids"], capture, None, max_new_tokens + 1)
    cache = DynamicCache(config=model.config.text_config)
    settings = {**greedy(checkpoint, max_new_tokens), **options}
    with recording(model, recorder), torch.inference_mode():
        ids = model.generate(**inputs, **settings, past_key_values=cache)[0, start:].tolist()
        end = checkpoint.tokenizer.eos_token_id
        kept = ids[: ids.index(end)] if end in ids else ids
        if recorder.rows < len(kept) + 1:  # cut off by the limit: its last token was never fed in
            last = torch.tensor([kept[-1:]], device=model.device)
            model.model.language_model(input_ids=last, past_key_values=cache, use_cache=True)
    return _captured(kept, recorder, start, len(kept) < len(ids), capture)


def teacher_forced(
    checkpoint: Checkpoint, image: Image, prompt: str, token_ids: Sequence[int], capture: Capture | None = None
) -> Captured:
    """The attention of a given answer, in one pass over prompt and answer. ValueError: the answer has no tokens."""
    import torch

    from ..model.attention_recorder import recording

    model, capture = checkpoint.model, capture or Capture()
    if not token_ids:
        raise ValueError("an answer without tokens has no attention")
    inputs = checkpoint.inputs([image], [prompt])
    start = inputs["input_ids"].shape[1]
    recorder = _recorder(checkpoint, inputs["input_ids"], capture, start, len(token_ids) + 1)
    answer = torch.tensor([list(token_ids)], device=model.device)
    both = torch.cat([inputs["input_ids"], answer], dim=1)
    with recording(model, recorder, only=True), torch.inference_mode():
        model.model(input_ids=both, pixel_values=inputs["pixel_values"], use_cache=False)
    return _captured(list(token_ids), recorder, start, True, capture)


def greedy(checkpoint: Checkpoint, max_new_tokens: int) -> dict[str, Any]:
    """What `generate` is told, whatever the checkpoint's own file says; ids that are no text are never generated."""
    tokenizer = checkpoint.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
        "suppress_tokens": checkpoint.suppressed_ids,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad,
    }


def _recorder(checkpoint: Checkpoint, input_ids: Any, capture: Capture, start: int | None, rows: int) -> Any:
    import torch

    from ..model.attention_recorder import ImageRecorder

    layers, heads = capture.of(checkpoint.model)
    columns = image_columns(input_ids[0].tolist(), checkpoint.image_token_id)
    return ImageRecorder(layers, columns, capture.reduction, heads, start, getattr(torch, capture.dtype), rows)


def _captured(ids: Sequence[int], recorder: Any, start: int, ended: bool, capture: Capture) -> Captured:
    """Rows are the prompt's last one, then one a token; which of them is a token's own is decided here."""
    first = 1 if capture.row == "fed" else 0
    rows = slice(first, first + len(ids))
    return Captured(
        tuple(ids),
        recorder.attention()[:, rows].numpy(),
        {layer: heads[:, rows].numpy() for layer, heads in recorder.heads().items()},
        tuple(recorder.layer_order),
        np.arange(len(ids), dtype=np.int64) + start + first,
        ended,
        capture,
    )
