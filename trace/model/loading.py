"""From a plan to a model in memory: every tensor is read once, into the place where it stays.

transformers' own loader does the placing (device maps, quantisation, DeepSpeed's ZeRO-3), but asks our lazy weights
instead of mapped files: a file's mapped pages would count as memory beside the copy, and a cast would hold both.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration
from transformers.integrations import is_deepspeed_zero3_enabled

from ..utils.command import InputError, install_hint
from .checkpoint_plan import Plan
from .lazy_tensors import cast
from .presets import hub_repository
from .weight_files import largest_type

QUANTIZED = ("8bit", "4bit")
# What stays in the plain type: small, and what pixels and words pass through.
_PLAIN_PARTS = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]


def realise(
    plan: Plan, dtype: str | torch.dtype, device: str, quantize: str | None, options: dict[str, Any]
) -> LlavaForConditionalGeneration:
    """The model of a plan, in evaluation mode.

    Args:
        dtype: of the weights in memory; "auto" is the type that most of them have on disk.
        quantize: None, "8bit" or "4bit" (bitsandbytes), for the language model's matrices.
        options: passed on to `from_pretrained`.
    Raises:
        InputError: the type is unknown, or the device or quantisation cannot be had here.
    """
    options = dict(options)
    if dtype == "auto":
        dtype = largest_type(plan.weights, stored=True)
    wanted = usable_type(dtype)
    if "device_map" not in options:
        check_device(device)
    if quantize is not None:
        options = {"device_map": {"": device}, **options, "quantization_config": quantization(quantize, wanted)}
    if "device_map" not in options and device != "cpu" and importlib.util.find_spec("accelerate"):
        options["device_map"] = {"": device}
    name_of_type = str(wanted).removeprefix("torch.")
    weights: dict[str, Any] = {name: cast(weight, name_of_type) for name, weight in plan.weights.items()}
    if is_deepspeed_zero3_enabled():  # its loader hands tensors on to all processes, and takes no promises
        reads = torch.distributed.get_rank() == 0  # the others need the shapes only
        weights = {name: weight.read() if reads else _shape_of(weight) for name, weight in weights.items()}
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            None, config=plan.config, state_dict=weights, dtype=wanted, **options
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if quantize is None:
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{quantize} cannot be had on this machine ({device}): {reason}") from None
    model.generation_config = plan.generation
    # An adapter made on it names its base by this.
    model.name_or_path = model.config.name_or_path = hub_repository(plan.source) or str(plan.source)
    return model.eval() if quantize is not None or "device_map" in options else model.to(device).eval()


def usable_type(dtype: str | torch.dtype) -> torch.dtype:
    """torch's type of that name. InputError: there is none, or it is none of weights."""
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise InputError(f"{dtype!r} is no type of weights; float32, bfloat16 and float16 are")
    return wanted


def check_device(device: str) -> None:
    """InputError when torch has no such device here; asked before 26 GB are read for it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"the device {device} cannot be used on this machine: {reason}") from None


def _shape_of(weight: Any) -> torch.Tensor:
    return torch.empty(weight.shape, dtype=getattr(torch, weight.dtype), device="meta")


def quantization(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """bitsandbytes' configuration. InputError: an unknown name, or a package is missing."""
    if quantize not in QUANTIZED:
        raise InputError(f"quantize is {quantize!r}; {' and '.join(QUANTIZED)} are known")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{quantize} needs the package {package}: {install_hint('quantize')}")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_PLAIN_PARTS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_PLAIN_PARTS,
    )


def check_generation_config(model: Any) -> None:
    """InputError when the model could not be saved because of its generation configuration; call it before training."""
    configuration = getattr(model, "generation_config", None)
    if configuration is None:
        return
    try:
        configuration.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the model's generation configuration is not valid and could not be saved: {reason}"
        ) from None
