"""Write a checkpoint of any known format as one whole folder, and read it back before it gets its name.

    python -m trace.model.checkpoint convert SRC DST [--base B] [--dtype float16] [--vision-tower V] [--to hf|llava]

(`python -m trace.model.convert SRC DST` is the same command.) Weights go from file to file, a tensor at a time: a
13B model needs the disk, not the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..command import InputError, run

if TYPE_CHECKING:
    from .assemble import Plan
    from .shards import Weight

DTYPES = ("float32", "float16", "bfloat16")


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
    from .assemble import plan
    from .saving import llava_weights, new_folder, refuse_existing, write_llava, write_standard
    from .writing import planned_bytes

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

    Its tensors are compared one by one, the model's parts are loaded, and its processor has to give the ids and pixels
    of the source's.
    """
    from PIL import Image

    from ..prompts import Rendered, encode, render_prompt
    from .assemble import plan
    from .shards import weights_in
    from .writing import differences

    wrong = next(differences(weights_in(folder), weights, dtype), None)
    if wrong is not None:
        raise InputError(f"{folder} does not read back as it was written: {wrong}. Is the disk sound?")
    again = plan(folder)
    text = Rendered(render_prompt("Find the 3rd naïve mug."), ())
    one, other = (encode(each.processor.tokenizer, text).input_ids for each in (made, again))
    image = Image.effect_noise((64, 48), 64).convert("RGB")
    first, second = (each.processor.image_processor(image)["pixel_values"][0] for each in (made, again))
    if one != other or (first != second).any():
        raise InputError(f"{folder} does not give the source's tokens or pixels when it is read back")


def main(argv: Sequence[str] | None = None) -> int:
    """`convert` alone: `python -m trace.model.convert SRC DST`, `trace-vlm convert SRC DST`."""
    import sys

    from . import checkpoint

    return checkpoint.main(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    raise SystemExit(run(main))
