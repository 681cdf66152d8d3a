"""Load a model from whatever its weights lie in, recognised by its contents, and save one in the standard format.

    python -m trace.model.checkpoint inspect SRC
    python -m trace.model.checkpoint convert SRC DST [--base B] [--dtype float16] [--vision-tower V] [--to hf|llava]
    python -m trace.model.checkpoint merge ADAPTER DST --base B

SRC is a folder or a name on the hub: Hugging Face's LLaVA format (what this project saves), LLaVA's own (LLaVA, RoboPoint,
SpaceLLaVA; whole, as LoRA or as a projector over a base), or a PEFT adapter over either. docs/checkpoints.md has the table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.prompts import IMAGE_ID, Rendered, encode
from ..utils.command import InputError, Parser, run
from .presets import PRESETS, is_preset

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

    from .checkpoint_plan import Plan
    from .model_card import Card

DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class Checkpoint:
    """A model with everything that turns pictures and text into its inputs.

    `card` says where the weights come from, for the saved model card; `parts` are the arguments of `compose`, where the
    model was put together by it.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    name: str
    path: str
    card: Card | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_index)

    @property
    def text_vocab_size(self) -> int:
        """Rows of the output that the original model has: the loss is taken over these.

        The image's token and what rounds the vocabulary up come behind them.
        """
        from .checkpoint_plan import original_vocabulary, text_ids

        config = self.model.config
        return original_vocabulary(config) or 1 + max(text_ids(self.tokenizer, config))

    @property
    def suppressed_ids(self) -> list[int]:
        """Ids that no answer may hold: the image's own, and those that only round the vocabulary up."""
        from .checkpoint_plan import no_text

        return no_text(self.tokenizer, self.model.config)

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of the padded square; an image is `patches ** 2` tokens."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """`[images, 3, side, side]`: padded to a square, resized and normalised as CLIP's."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def expand_image_tokens(self, ids: Sequence[int]) -> list[int]:
        """Encoded ids with every image placeholder replaced by the image's tokens."""
        image = [self.image_token_id] * self.patches_per_side**2
        return [token for one in ids for token in (image if one == IMAGE_ID else (one,))]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids of an open prompt, the image's tokens among them. InputError: more than the model has positions for."""
        ids = self.expand_image_tokens(encode(self.tokenizer, Rendered(prompt, ())).input_ids)
        most = self.model.config.text_config.max_position_embeddings
        if len(ids) > most:
            raise InputError(
                f"a prompt of {len(ids):,} tokens, its image's among them, is too long for {self.name}, which knows "
                f"{most:,} positions: ask in fewer words"
            )
        return ids

    def inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """A left-padded batch for `generate`, on the model's device: one image and one open prompt a row."""
        import torch

        rows = [self.prompt_ids(prompt) for prompt in prompts]
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
            "pixel_values": self.pixels(images).to(self.model.dtype),
        }
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}


def load(
    path: str | Path,
    base: str | Path | None = None,
    dtype: Any = "float32",
    device: str = "cpu",
    quantize: str | None = None,
    vision_tower: str | None = None,
    **options: Any,
) -> Checkpoint:
    """Load a checkpoint in any format that is known; adapters come merged.

    Args:
        path: a folder, a name on the hub, or the name of a preset (`nano`: random weights; the others: their parts).
        base: the model that an adapter or a projector belongs to; by default the one an adapter names.
        dtype: the weights' type in memory, as torch names it; "auto" is the stored one.
        quantize: "8bit" or "4bit", by bitsandbytes on a GPU.
        vision_tower: a CLIP instead of the one that a LLaVA checkpoint names or holds; also `open_clip:...`.
        options: passed on to `from_pretrained` (attn_implementation, device_map, ...).
    Raises:
        InputError: the folder is no model, incomplete, broken, or of a kind that is not read; the message says what was
            found and what was expected. Or the type or the device is not to be had here.
    """
    from .loading import check_device, usable_type

    if "device_map" not in options:
        check_device(device)
    if dtype != "auto":
        usable_type(dtype)
    if is_preset(path):
        return from_preset(str(path), device=device, dtype=dtype, **options)
    from .checkpoint_plan import plan
    from .presets import model_name

    made = plan(path, base, vision_tower)
    return _realised(made, model_name(made.source), str(path), dtype, device, quantize, options)


def loaded_dtype(path: str | Path, base: str | Path | None = None, dtype: str = "float32") -> str:
    """The name of the weights' type under which `load` would hold this model; reads no weights. InputError as `load`."""
    from .loading import usable_type
    from .weight_files import largest_type

    if dtype != "auto":
        return str(usable_type(dtype)).removeprefix("torch.")
    from .checkpoint_plan import composed, plan

    if not is_preset(path):
        return largest_type(plan(path, base).weights, stored=True)
    sources = PRESETS[str(path)].sources
    if "model" in sources:
        return loaded_dtype(sources["model"], None, dtype)
    return largest_type(composed(**sources, seed=0).weights, stored=True) if sources else "float32"


def _realised(
    made: Plan, name: str, path: str, dtype: Any, device: str, quantize: str | None, options: dict[str, Any]
) -> Checkpoint:
    from .loading import realise

    return Checkpoint(realise(made, dtype, device, quantize, options), made.processor, name, path, made.card)


def from_preset(name: str, device: str = "cpu", dtype: Any = "float32", seed: int = 0, **options: Any) -> Checkpoint:
    """`nano` with random weights; a published preset from its parts on the hub (trace-13b: where training starts)."""
    sources = PRESETS[name].sources
    if "model" in sources:
        return load(sources["model"], dtype=dtype, device=device, **options)
    if sources:
        return compose(**sources, seed=seed, dtype=dtype, device=device, **options)
    from . import build
    from .loading import usable_type
    from .model_card import card_of

    tokenizer = build.nano_tokenizer()
    model = build.build_model(PRESETS[name], tokenizer, seed=seed)
    processor = build.build_processor(tokenizer, model.config.vision_config)
    kind = usable_type("float32" if dtype == "auto" else dtype)
    return Checkpoint(model.to(device, kind).eval(), processor, name, name, card_of(name, None, ["random weights"]))


def compose(
    llm: str,
    vision: str,
    projector: str | None = None,
    seed: int = 0,
    dtype: Any = "float32",
    device: str = "cpu",
    quantize: str | None = None,
    **options: Any,
) -> Checkpoint:
    """A starting point for training: a language model, a CLIP vision tower, and LLaVA's pre-trained projector.

    Args:
        llm, vision: folders or names on the hub (Llama architecture; CLIP, or `open_clip:...`).
        projector: folder or name that holds `mm_projector.bin`; random weights from `seed` when absent.
    """
    from .checkpoint_plan import composed

    made = composed(llm, vision, projector, seed)
    name = f"{Path(llm).name}+{Path(vision).name}"
    checkpoint = _realised(made, name, name, dtype, device, quantize, options)
    checkpoint.parts = {"llm": llm, "vision": vision, "projector": projector, "seed": seed}
    return checkpoint


def save(
    checkpoint: Checkpoint, path: str | Path, dtype: str | None = None, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write model and processor as one folder that plain transformers loads (PEFT, for an adapter); whole or not at all.

    Args:
        path: must not exist, or be an empty folder.
        dtype: the type on disk; by default the one in memory.
        state: the tensors to write instead of the model's own, by its names (gathered from several processes).
    Raises:
        InputError: the folder is not free, the disk is too small, or the generation configuration is not valid.
    """
    from ..utils.files import new_folder
    from .checkpoint_plan import PARTS_FILE, generation_config_of, held
    from .loading import check_generation_config
    from .model_card import card_of, write_card
    from .processor import save_processor
    from .saving import write_standard
    from .weight_files import planned_bytes

    path, model = Path(path), checkpoint.model
    card = checkpoint.card or card_of(checkpoint.path, Path(checkpoint.path))
    check_generation_config(model)
    if getattr(model, "is_quantized", False) and not hasattr(model, "peft_config"):
        raise InputError(f"{checkpoint.name} is quantised; load it without quantize to save it")
    if hasattr(model, "peft_config"):
        with new_folder(path) as folder:
            model.save_pretrained(folder, state_dict=None if state is None else dict(state))
            save_processor(checkpoint.processor, folder)
            write_card(folder, card, checkpoint.name, adapter=True)
            if checkpoint.parts:
                from ..utils.files import write_json

                write_json(folder / PARTS_FILE, dict(checkpoint.parts))
        return
    weights = held(model.state_dict() if state is None else state)
    generation = generation_config_of(model, checkpoint.tokenizer)
    with new_folder(path, planned_bytes(weights, dtype)) as folder:
        write_standard(folder, checkpoint.name, model.config, weights, checkpoint.processor, generation, card, dtype)


def check_generation_config(model: Any) -> None:
    """InputError when the model could not be saved for its generation configuration; call it before training."""
    from .loading import check_generation_config as check

    check(model)


# --- the command ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="trace.model.checkpoint", description="Look at a checkpoint, convert it, merge an adapter into its base."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|convert|merge")
    for name, purpose in (
        ("inspect", "say what a folder holds, without loading its weights"),
        ("convert", "write a model of any known format as one folder, and read it back to verify"),
        ("merge", "write an adapter or projector merged into its base"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument("source", help="folder of the model or adapter, or a name on the hub")
        if name != "inspect":
            command.add_argument("target", type=Path, help="folder to write; must not exist or be empty")
            command.add_argument(
                "--dtype",
                choices=DTYPES,
                help="of the numbers on disk; by default as they are stored, float32 where an adapter is merged",
            )
        command.add_argument(
            "--base", "--model-base", required=name == "merge", help="the model that an adapter or projector belongs to"
        )
        command.add_argument(
            "--vision-tower",
            help="a CLIP instead of the one named in the checkpoint; also open_clip:ARCHITECTURE/WEIGHTS",
        )
        if name == "convert":
            command.add_argument(
                "--to", choices=["hf", "llava"], default="hf", help="Hugging Face's format or LLaVA's own"
            )
    args = parser.parse_args(argv)
    if args.command == "inspect":
        from .describe import describe

        lines = describe(args.source, args.base, args.vision_tower)
        width = max(map(len, lines))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()))
        return 0
    from .convert import convert

    made = convert(args.source, args.target, args.base, args.dtype, args.vision_tower, getattr(args, "to", "hf"))
    same = f"the source's, as {args.dtype}" if args.dtype else "the same"
    print(f"wrote {args.target} (from {made.kind.value}), read it back: every tensor is {same}")
    return 0


def convert_command(argv: Sequence[str] | None = None) -> int:
    """`trace-vlm convert`: short for `trace-vlm checkpoint convert`."""
    return main(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    raise SystemExit(run(main))
