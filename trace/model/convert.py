"""Write a checkpoint of any known format as one whole folder, and read it back before it gets its name.

Weights go from file to file, a tensor at a time: a 13B model needs the disk, not the memory. The command is
`python -m trace.model.checkpoint convert`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import LlavaConfig

from ..core.prompts import Rendered, encode, render_prompt
from ..utils.command import InputError
from ..utils.files import new_folder, refuse_existing
from .checkpoint_plan import Plan, plan
from .lazy_tensors import Weight, weights_in
from .saving import llava_weights, write_llava, write_standard
from .weight_files import differences, planned_bytes


def convert(
    source: str | Path,
    target: str | Path,
    base: str | Path | None = None,
    dtype: str | None = None,
    vision_tower: str | None = None,
    to: str = "hf",
) -> Plan:
    """Write the model at `source` to `target`; returns the plan it was written from.

    Args:
        dtype: of the numbers on disk. By default each tensor's own, so that nothing is lost; float32 where an adapter is
            merged, whose sums have no type of their own.
        to: "hf" (Hugging Face's format) or "llava" (LLaVA's own).
    Raises:
        InputError: the source cannot be read, the target is not free, or what was written does not read back the same.
    """
    target = Path(target)
    refuse_existing(target)
    made = plan(source, base, vision_tower)
    if dtype is None and made.merged:
        dtype = "float32"
    weights = made.weights if to == "hf" else llava_weights(made.config, made.weights)
    write = write_standard if to == "hf" else write_llava
    with new_folder(target, planned_bytes(weights, dtype)) as folder:
        write(folder, target.name, made.config, weights, made.processor, made.generation, made.card, dtype)
        verify(folder, made, weights, dtype)
    return made


def verify(folder: Path, made: Plan, weights: dict[str, Weight], dtype: str | None) -> None:
    """Read a written folder again; InputError when it is not, bit for bit, what it was made from.

    Its tensors are compared one by one, and its configuration and processor have to compute the same.
    """
    wrong = next(differences(weights_in(folder), weights, dtype), None)
    if wrong is not None:
        raise InputError(f"{folder} does not read back as it was written: {wrong}. Is the disk sound?")
    again = plan(folder)
    if _computes(again.config) != _computes(made.config):
        raise InputError(f"{folder} does not compute the same when it is read back: its configuration differs")
    text = Rendered(render_prompt("Find the 3rd naïve mug."), ())
    one, other = (encode(each.processor.tokenizer, text).input_ids for each in (made, again))
    image = Image.effect_noise((64, 48), 64).convert("RGB")
    first, second = (each.processor.image_processor(image)["pixel_values"][0] for each in (made, again))
    if one != other or (first != second).any():
        raise InputError(f"{folder} does not give the source's tokens or pixels when it is read back")


def _computes(config: LlavaConfig) -> list[Any]:
    """What decides the numbers and does not show in the tensors' shapes."""
    text, vision = config.text_config, config.vision_config
    return [
        *(getattr(config, key) for key in ("image_token_index", "vision_feature_layer", "projector_hidden_act")),
        *(getattr(text, key) for key in ("num_attention_heads", "head_dim", "hidden_act", "rms_norm_eps")),
        text.rope_parameters,
        *(getattr(vision, key) for key in ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size")),
    ]
