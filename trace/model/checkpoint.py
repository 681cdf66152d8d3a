"""Load a model in any known format, recognised by its contents, and save one in Hugging Face's format.

    python -m trace.model.checkpoint inspect SRC
    python -m trace.model.checkpoint convert SRC DST [--model-base B] [--dtype float16] [--vision-tower V] [--to hf|llava]
    python -m trace.model.checkpoint merge ADAPTER DST --model-base B

docs/checkpoints.md lists the formats.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.prompts import IMAGE_ID, Rendered, encode
from ..utils.command import InputError, Parser, run
from ..utils.files import new_folder, write_json
from .presets import PRESETS, is_preset, model_name

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

    from .saving import ModelCard

DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class Checkpoint:
    """A model with its processor: everything that turns images and text into its inputs.

    `card` says where the weights come from, for the saved model card; `parts` are the arguments of `compose` if it was
    composed.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    name: str
    path: str
    card: ModelCard | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_index)

    @property
    def text_vocab_size(self) -> int:
        """Rows of the output that the original model has; the loss is taken over these.

        Then come the image token's row and those that round the vocabulary up.
        """
        from .checkpoint_plan import original_vocab_size, text_ids

        return original_vocab_size(self.model.config) or 1 + max(text_ids(self.tokenizer, self.model.config))

    @property
    def suppressed_ids(self) -> list[int]:
        """Ids that no answer may contain: the image's, and those that only round the vocabulary up."""
        from .checkpoint_plan import suppressed_ids

        return suppressed_ids(self.tokenizer, self.model.config)

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of the padded square; an image is the square of it in tokens."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """`[images, 3, side, side]`: padded to a square, resized and normalised as for CLIP."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def expand_image_tokens(self, ids: Iterable[int]) -> list[int]:
        """Encoded ids with every image placeholder replaced by the image's tokens."""
        image = [self.image_token_id] * self.patches_per_side**2
        return [token for placeholder in ids for token in (image if placeholder == IMAGE_ID else (placeholder,))]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids of an open prompt, image tokens included. InputError: more than the model has positions."""
        ids = self.expand_image_tokens(encode(self.tokenizer, Rendered(prompt, ())).input_ids)
        limit = self.model.config.text_config.max_position_embeddings
        if len(ids) > limit:
            message = f"the prompt has {len(ids):,} tokens, image included; {self.name} has {limit:,} positions"
            raise InputError(f"{message}. Shorten the instruction")
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

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """Generated ids up to the end-of-sequence token, without it."""
        end = self.tokenizer.eos_token_id
        return list(ids[: ids.index(end)] if end in ids else ids)


def load(
    path: str | Path, base: str | Path | None = None, dtype: Any = "float32", device: str = "cpu",
    quantize: str | None = None, vision_tower: str | None = None, **options: Any,
) -> Checkpoint:  # fmt: skip
    """Load a checkpoint in any known format; adapters are merged.

    Args:
        path: a folder, a bundled model, a name on the hub, or a preset (`nano-random`: random weights; the others:
            their parts from the hub).
        base: the model that an adapter or a projector belongs to; by default the one an adapter names.
        dtype: the weights' type in memory, as torch names it; "auto" is the stored one.
        quantize: "8bit" or "4bit", by bitsandbytes on a GPU.
        vision_tower: a CLIP instead of the one of a LLaVA checkpoint; also `open_clip:...`.
        options: passed on to `from_pretrained` (attn_implementation, device_map, ...).
    Raises:
        InputError: not a model, incomplete, broken, or not supported; or the type or device is not available.
    """
    _check_dtype_and_device(dtype, device, options)
    if not is_preset(path):
        from .checkpoint_plan import plan_checkpoint

        plan = plan_checkpoint(path, base, vision_tower)
        return _load_plan(plan, model_name(plan.source), str(path), dtype, device, quantize, options)
    preset = PRESETS[str(path)]
    if "model" in preset.sources:
        return load(preset.sources["model"], dtype=dtype, device=device, **options)
    if preset.sources:
        return compose(**preset.sources, dtype=dtype, device=device, **options)
    from .build import build_model, build_processor, nano_tokenizer, weight_dtype
    from .saving import make_card

    tokenizer = nano_tokenizer()
    model = build_model(preset, tokenizer).to(device, weight_dtype("float32" if dtype == "auto" else dtype)).eval()
    processor = build_processor(tokenizer, model.config.vision_config)
    return Checkpoint(model, processor, preset.name, preset.name, make_card(preset.name, None, ["random weights"]))


def compose(
    llm: str, vision: str, projector: str | None = None, seed: int = 0, dtype: Any = "float32", device: str = "cpu",
    quantize: str | None = None, **options: Any,
) -> Checkpoint:  # fmt: skip
    """A model to start training from: a language model, a CLIP vision tower, and LLaVA's pre-trained projector.

    Args:
        llm, vision: folders or names on the hub (Llama architecture; CLIP, or `open_clip:...`).
        projector: folder or name with `mm_projector.bin`; random weights from `seed` if None.
    """
    from .checkpoint_plan import plan_parts

    _check_dtype_and_device(dtype, device, options)
    name = f"{Path(llm).name}+{Path(vision).name}"
    checkpoint = _load_plan(plan_parts(llm, vision, projector, seed), name, name, dtype, device, quantize, options)
    checkpoint.parts = {"llm": llm, "vision": vision, "projector": projector, "seed": seed}
    return checkpoint


def _check_dtype_and_device(dtype: Any, device: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown type or device before anything is read."""
    from .build import check_device, weight_dtype

    if "device_map" not in options:
        check_device(device)
    if dtype != "auto":
        weight_dtype(dtype)


def _load_plan(
    plan: Any, name: str, path: str, dtype: Any, device: str, quantize: str | None, options: Mapping[str, Any]
) -> Checkpoint:
    from .build import load_weights
    from .presets import hub_repository

    model = load_weights(plan.config, plan.weights, dtype, device, quantize, options)
    model.generation_config = plan.generation
    # An adapter made on it names its base by this.
    model.name_or_path = model.config.name_or_path = hub_repository(plan.source) or str(plan.source)
    return Checkpoint(model, plan.processor, name, path, plan.card)


def loaded_dtype(path: str | Path, base: str | Path | None = None, dtype: str = "float32") -> str:
    """The type in which `load` would hold this model's weights; reads no weights. InputError as `load`."""
    from .build import weight_dtype
    from .checkpoint_plan import plan_checkpoint, plan_parts
    from .lazy_tensors import largest_type

    if dtype != "auto":
        return str(weight_dtype(dtype)).removeprefix("torch.")
    sources = PRESETS[str(path)].sources if is_preset(path) else {"model": path}
    if not sources:
        return "float32"
    plan = plan_checkpoint(sources["model"], base) if "model" in sources else plan_parts(**sources, seed=0)
    return largest_type(plan.weights, on_disk=True)


def save(
    checkpoint: Checkpoint, path: str | Path, dtype: str | None = None, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write model and processor as one folder that plain transformers loads (PEFT, for an adapter), or nothing.

    Args:
        path: must not exist, or be an empty folder.
        dtype: the type on disk; by default the one in memory.
        state: the tensors to write instead of the model's own, by its names (gathered from several processes).
    Raises:
        InputError: the folder is not empty, the disk is too small, or the generation configuration is not valid.
    """
    from .checkpoint_plan import PARTS_FILE, valid_generation_config
    from .lazy_tensors import in_memory, total_bytes
    from .llava_layout import hub_name, renamed
    from .processor import save_processor
    from .saving import SavedModel, make_card, write_card, write_hugging_face

    path, model, processor = Path(path), checkpoint.model, checkpoint.processor
    card = checkpoint.card or make_card(checkpoint.path, Path(checkpoint.path))
    check_generation_config(model)
    if hasattr(model, "peft_config"):
        with new_folder(path) as folder:
            model.save_pretrained(folder, state_dict=None if state is None else dict(state))
            save_processor(processor, folder)
            write_card(folder, card, checkpoint.name, adapter=True)
            if checkpoint.parts:
                write_json(folder / PARTS_FILE, dict(checkpoint.parts))
        return
    if getattr(model, "is_quantized", False):
        raise InputError(f"{checkpoint.name} is quantised. Load it without quantize to save it")
    tensors = model.state_dict() if state is None else state
    weights = renamed({name: in_memory(tensor, name) for name, tensor in tensors.items()}, hub_name)
    generation = valid_generation_config(model.generation_config.to_diff_dict(), checkpoint.tokenizer, model.config)
    saved = SavedModel(checkpoint.name, model.config, weights, processor, generation, card, dtype)
    with new_folder(path, total_bytes(weights, dtype)) as folder:
        write_hugging_face(folder, saved)


def check_generation_config(model: Any) -> None:
    """Raise InputError if the model could not be saved for its generation configuration; call it before training."""
    configuration = getattr(model, "generation_config", None)
    try:
        if configuration is not None:
            configuration.validate(strict=True)
    except ValueError as error:
        raise InputError(f"the model's generation configuration is not valid: {' '.join(str(error).split())}") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Inspect or convert a checkpoint, or merge an adapter into its base.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|convert|merge")
    for name, purpose in (
        ("inspect", "describe a checkpoint without loading its weights"),
        ("convert", "write a model of any known format as one folder, and verify it"),
        ("merge", "write an adapter or projector merged into its base"),
    ):
        add = commands.add_parser(name, help=purpose, description=purpose).add_argument
        add("source", help="folder of the model or adapter, nano, nano-base, or a name on the hub")
        if name != "inspect":
            add("target", type=Path, help="folder to write; must not exist or be empty")
            add("--dtype", choices=DTYPES, help="type on disk (default: as stored; float32 if an adapter is merged)")
        base_help = "the model that an adapter or projector belongs to"
        add("--model-base", dest="base", metavar="MODEL", required=name == "merge", help=base_help)
        tower_help = "a CLIP instead of the checkpoint's; also open_clip:ARCHITECTURE/WEIGHTS"
        add("--vision-tower", metavar="CLIP", help=tower_help)
        if name == "convert":
            format_help = "Hugging Face's format or LLaVA's own (default: hf)"
            add("--to", choices=["hf", "llava"], default="hf", help=format_help)
    args = parser.parse_args(argv)
    from .convert import convert, describe_checkpoint

    if args.command == "inspect":
        lines = describe_checkpoint(args.source, args.base, args.vision_tower)
        width = max(map(len, lines))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()))
        return 0
    plan = convert(args.source, args.target, args.base, args.dtype, args.vision_tower, getattr(args, "to", "hf"))
    same = f"the source's, as {args.dtype}" if args.dtype else "the same"
    print(f"wrote {args.target} (from {plan.kind.value}) and read it back: every tensor is {same}")
    return 0


def convert_command(argv: Sequence[str] | None = None) -> int:
    """`trace-vlm convert`, short for `trace-vlm checkpoint convert`."""
    return main(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    raise SystemExit(run(main))
