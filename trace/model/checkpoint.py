"""Load a model in any known format, recognised by its contents, and save one in Hugging Face's format.

    python -m trace.model.checkpoint inspect SRC
    python -m trace.model.checkpoint convert SRC DST [--model-base B] [--dtype float16] [--vision-tower V] [--to hf|llava]
    python -m trace.model.checkpoint merge ADAPTER DST --model-base B

docs/checkpoints.md lists the formats.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.command import InputError, Parser, run
from ..utils.files import new_folder, refuse_existing, write_json
from .families.base import Checkpoint
from .families.llava import LlavaCheckpoint
from .presets import PRESETS, is_preset, model_folder, model_name
from .record import reasons, write_record

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "float16", "bfloat16")


def load(
    path: str | Path, base: str | Path | None = None, dtype: Any = "float32", device: str = "cpu",
    quantize: str | None = None, vision_tower: str | None = None, **options: Any,
) -> Checkpoint:  # fmt: skip
    """Load a checkpoint in any known format; adapters are merged.

    Args:
        path: a folder, a bundled model, a name on the hub, or a preset (`nano-random`: random weights; the others:
            their parts from the hub).
        base: the model that an adapter or a projector belongs to; by default the one an adapter names. Of a complete
            model it is not used, with a warning: the published commands give one.
        dtype: the weights' type in memory, as torch names it; "auto" is the stored one.
        quantize: "8bit" or "4bit", by bitsandbytes on a GPU.
        vision_tower: a CLIP instead of the one of a LLaVA checkpoint; also `open_clip:...`.
        options: passed on to `from_pretrained` (attn_implementation, device_map, ...).
    Raises:
        InputError: not a model, incomplete, broken, or not supported; or the type or device is not available.
    """
    _check_dtype_and_device(dtype, device, options)
    checkpoint = _load(path, base, dtype, device, quantize, vision_tower, options)
    checkpoint.reasons = reasons(path)
    return checkpoint


def _load(
    path: str | Path, base: str | Path | None, dtype: Any, device: str, quantize: str | None, vision_tower: str | None,
    options: Mapping[str, Any],
) -> Checkpoint:  # fmt: skip
    if not is_preset(path):
        found = any_model(path, base)
        if found is not None:
            from .families.any import load_any

            return load_any(*found, model_name(found[1] or found[0]), str(path), dtype, device, quantize, options)
        from .checkpoint_plan import plan_checkpoint

        plan = plan_checkpoint(path, _needed_base(path, base), vision_tower)
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
    return LlavaCheckpoint(model, processor, preset.name, preset.name, make_card(preset.name, None, ["random weights"]))


def _needed_base(path: str | Path, base: str | Path | None) -> str | Path | None:
    from .checkpoint_formats import CheckpointKind, recognise_checkpoint

    if base is None:
        return None
    kind = recognise_checkpoint(model_folder(path, "the model")).kind
    if kind not in (CheckpointKind.HUGGING_FACE, CheckpointKind.LLAVA):
        return base
    print(f"warning: {path} is complete ({kind.value}); the base {base} is not used", file=sys.stderr)
    return None


def any_model(path: str | Path, base: str | Path | None = None) -> tuple[Path, Path | None] | None:
    """The folders of a model that is no LLaVA-1.5, and of an adapter over it; None for what `checkpoint_plan` reads."""
    from .checkpoint_formats import CLIP_TYPES, read_object
    from .llava_layout import LLAVA_TYPES

    folder, adapter = model_folder(path, "the model"), None
    if (folder / "adapter_config.json").is_file():
        named = base or read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        if not named or is_preset(named):
            return None
        folder, adapter = model_folder(named, "the base model", folder), folder
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") == "llava" and "text_config" in config:
        known = {"text_config": (None, "llama"), "vision_config": (None, *CLIP_TYPES)}
        parts = [(config.get(part), types) for part, types in known.items()]  # what is no object is refused later
        llava = all(not isinstance(part, dict) or part.get("model_type") in types for part, types in parts)
    else:
        llava = config.get("model_type") in (None, *LLAVA_TYPES, *CLIP_TYPES)
    return None if llava else (folder, adapter)


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
    return LlavaCheckpoint(model, plan.processor, name, path, plan.card)


def loaded_dtype(path: str | Path, base: str | Path | None = None, dtype: str = "float32") -> str:
    """The type in which `load` would hold this model's weights; reads no weights. InputError as `load`."""
    from .build import weight_dtype
    from .checkpoint_plan import plan_checkpoint, plan_parts
    from .lazy_tensors import largest_type

    if dtype != "auto":
        return str(weight_dtype(dtype)).removeprefix("torch.")
    found = None if is_preset(path) else any_model(path, base)
    if found is not None:
        from .families.any import stored_dtype

        return stored_dtype(found[0])
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
    from .build import weight_dtype
    from .checkpoint_plan import PARTS_FILE
    from .saving import make_card, write_card

    path, model = Path(path), checkpoint.model
    card = checkpoint.card or make_card(checkpoint.path, Path(checkpoint.path))
    check_generation_config(model)
    if hasattr(model, "peft_config"):
        with new_folder(path) as folder:
            model.save_pretrained(folder, state_dict=None if state is None else dict(state))
            checkpoint.write_processor(folder)
            write_card(folder, card, checkpoint.name, adapter=True)
            write_record(folder, checkpoint.coordinates, checkpoint.reasons)
            if checkpoint.parts:
                write_json(folder / PARTS_FILE, dict(checkpoint.parts))
        return
    if getattr(model, "is_quantized", False):
        raise InputError(f"{checkpoint.name} is quantised. Load it without quantize to save it")
    tensors = model.state_dict() if state is None else state
    width = weight_dtype(dtype).itemsize if dtype else None
    needed = sum(tensor.numel() * (width or tensor.element_size()) for tensor in tensors.values())
    with new_folder(path, needed) as folder:
        checkpoint.write_model(folder, tensors, dtype, card)
        write_record(folder, checkpoint.coordinates, checkpoint.reasons)


def check_generation_config(model: Any) -> None:
    """Raise InputError if the model could not be saved for its generation configuration; call it before training."""
    configuration = getattr(model, "generation_config", None)
    try:
        if configuration is not None:
            configuration.validate(strict=True)
    except ValueError as error:
        raise InputError(f"the model's generation configuration is not valid: {' '.join(str(error).split())}") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Inspect or convert a checkpoint, or merge an adapter into its base.", examples=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|convert|merge")
    for name, purpose in (
        ("inspect", "describe a checkpoint without loading its weights"),
        ("convert", "write a model of any known format as one folder, and verify it"),
        ("merge", "write an adapter or projector merged into its base"),
    ):
        add = commands.add_parser(name, help=purpose, description=purpose).add_argument
        add("source", help="folder of the model or adapter, a bundled one (nano), or a name on the hub")
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

    found = None if is_preset(args.source) else any_model(args.source, args.base)
    if found is not None and args.command != "inspect":
        return _rewrite_any(args, found)
    if args.command == "inspect":
        if found is not None:
            from .families.any import describe_any

            lines = describe_any(*found)
        else:
            lines = describe_checkpoint(args.source, args.base, args.vision_tower)
        width = max(map(len, lines))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()))
        return 0
    plan = convert(args.source, args.target, args.base, args.dtype, args.vision_tower, getattr(args, "to", "hf"))
    same = f"the source's, as {args.dtype}" if args.dtype else "the same"
    print(f"wrote {args.target} (from {plan.kind.value}) and read it back: every tensor is {same}")
    return 0


def _rewrite_any(args: Any, found: tuple[Path, Path | None]) -> int:
    """Write a model that is no LLaVA-1.5 as one folder, its adapter merged in float32."""
    if args.vision_tower or getattr(args, "to", "hf") != "hf":
        raise InputError(f"{args.source} is no LLaVA-1.5 model: --vision-tower and --to llava do not apply")
    refuse_existing(args.target)
    checkpoint = load(args.source, args.base, dtype="float32" if found[1] else "auto")
    save(checkpoint, args.target, args.dtype)
    print(f"wrote {args.target} ({checkpoint.model.config.model_type}{', adapter merged' if found[1] else ''})")
    return 0


def convert_command(argv: Sequence[str] | None = None) -> int:
    """`trace-vlm convert`, short for `trace-vlm checkpoint convert`."""
    return main(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    raise SystemExit(run(main))
