"""Make an ordinary `LlavaForConditionalGeneration`: with random weights from a preset, or with weights from files.

The nano model's random weights have the scales that let two million parameters learn in minutes: linear layers at
0.7 / sqrt(fan-in), layers that write into the residual stream divided by sqrt(2 * layers), visible embeddings, a small
head, and position embeddings of the vision tower that start as two-dimensional sinusoids.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed as deepspeed_integration
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..core.prompts import IMAGE_TAG
from ..utils.command import InputError, install_hint
from .lazy_tensors import LazyTensor, cast, largest_type
from .llava_layout import hub_name
from .presets import ASSETS, Preset
from .processor import make_processor, with_image_token
from .vision_tower import pixel_settings

NANO_TOKENIZER = ASSETS / "nano-tokenizer"
VOCABULARY_MULTIPLE = 64
QUANTIZED = ("8bit", "4bit")


def build_model(
    preset: Preset, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0
) -> LlavaForConditionalGeneration:
    """A model of the preset's dimensions with random weights, float32, on torch's current default device.

    Args:
        tokenizer: fits the vocabulary of a preset that leaves it open (`nano-random`); it has the image token.
        seed: of the weights; torch's global generator is left as it was.
    """
    text, image_token = dict(preset.text), preset.image_token_index
    if not text["vocab_size"]:
        if tokenizer is None:
            raise ValueError(f"the preset {preset.name} takes its vocabulary from a tokenizer: give one")
        text["vocab_size"] = math.ceil(len(tokenizer) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        image_token = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    llama = LlamaConfig(**text, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = llava_configuration(llama, CLIPVisionConfig(**preset.vision), image_token)
        model = LlavaForConditionalGeneration(config)
        if preset.name == "nano-random":
            _initialise_nano(model)
    return model


def llava_configuration(text: LlamaConfig, vision: CLIPVisionConfig, image_token: int) -> LlavaConfig:
    """LLaVA-1.5's architecture: the tower's penultimate layer without the class token, a two-layer GELU projector."""
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def random_projector(config: LlavaConfig, seed: int) -> LlavaMultiModalProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaMultiModalProjector(config)


def nano_tokenizer() -> PreTrainedTokenizerBase:
    """The bundled tokenizer, with its image token."""
    return with_image_token(LlamaTokenizer.from_pretrained(NANO_TOKENIZER))


def build_processor(tokenizer: PreTrainedTokenizerBase, vision: CLIPVisionConfig) -> LlavaProcessor:
    """LLaVA's pixels (padded square, CLIP's resize and colours) and the training template for chats."""
    return make_processor(tokenizer, vision.patch_size, pixel_settings({}, vision.image_size, pad=True))


def expected_tensors(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Hub name and shape of every tensor of a model of this configuration; nothing is allocated."""
    # Under ZeRO-3 transformers would initialise a model that has shapes only.
    deepspeed_config = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            state = LlavaForConditionalGeneration(config).state_dict()
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = deepspeed_config
    return {str(hub_name(name)): tuple(tensor.shape) for name, tensor in state.items()}


@torch.no_grad()
def _initialise_nano(model: LlavaForConditionalGeneration) -> None:
    text, vision = model.config.text_config, model.config.vision_config
    residual = {"o_proj": text, "down_proj": text, "out_proj": vision, "fc2": vision}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            into_stream = residual.get(name.rsplit(".", 1)[-1])
            depth = math.sqrt(2 * into_stream.num_hidden_layers) if into_stream is not None else 1.0
            nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features) / depth)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    embeddings: Any = model.model.vision_tower.embeddings
    fan_in = embeddings.patch_embedding.weight[0].numel()
    nn.init.normal_(embeddings.patch_embedding.weight, std=0.7 / math.sqrt(fan_in))
    # Two-dimensional sin-cos positions, half the width for each axis.
    side, quarter = vision.image_size // vision.patch_size, vision.hidden_size // 4
    angles = torch.arange(side)[:, None] * 100.0 ** -(torch.arange(quarter) / quarter)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    grid = [axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)]
    embeddings.position_embedding.weight[1:] = torch.cat(grid, dim=-1).flatten(0, 1)


def load_weights(
    config: LlavaConfig, weights: Mapping[str, LazyTensor], dtype: str | torch.dtype, device: str,
    quantize: str | None, options: Mapping[str, Any],
) -> LlavaForConditionalGeneration:  # fmt: skip
    """The model with these weights, in evaluation mode; every tensor is read once, into the place where it stays.

    transformers' own loader places them (device maps, quantisation, DeepSpeed's ZeRO-3), but reads lazy tensors.

    Args:
        dtype: of the weights in memory; "auto" is the type that most of them have on disk.
        quantize: None, "8bit" or "4bit" (bitsandbytes), for the language model's matrices.
        options: passed on to `from_pretrained`.
    """
    torch_dtype = weight_dtype(largest_type(weights, on_disk=True) if dtype == "auto" else dtype)
    if quantize is not None:
        plain = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
        options = {
            "device_map": {"": device},
            **options,
            "quantization_config": quantization(quantize, torch_dtype, plain),
        }
    if "device_map" not in options and device != "cpu" and importlib.util.find_spec("accelerate"):
        options = {**options, "device_map": {"": device}}
    name = str(torch_dtype).removeprefix("torch.")
    state: dict[str, Any] = {key: cast(weight, name) for key, weight in weights.items()}
    if is_deepspeed_zero3_enabled():  # its loader sends tensors to all processes, and takes no lazy ones
        if torch.distributed.get_rank() == 0:
            state = {key: weight.read() for key, weight in state.items()}
        else:  # the others need the shapes only
            state = {key: torch.empty(one.shape, dtype=torch_dtype, device="meta") for key, one in state.items()}
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, dtype=torch_dtype, **options
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if quantize is None:
            raise
        raise InputError(f"{quantize} is not available on {device}: {' '.join(str(error).split())}") from None
    return model.eval() if quantize is not None or "device_map" in options else model.to(device).eval()


def weight_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """torch's type of that name. InputError: it does not exist or is not floating-point."""
    torch_dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise InputError(f"{dtype!r} is not a type of weights; use float32, bfloat16 or float16")
    return torch_dtype


def check_device(device: str) -> None:
    """Raise InputError if torch has no such device here, before 26 GB are read for it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InputError(f"the device {device} is not available: {str(error).splitlines()[0]}") from None


def quantization(quantize: str, dtype: Any, plain: Sequence[str]) -> BitsAndBytesConfig:
    """bitsandbytes' settings; the parts in `plain` keep their type: they are small, and all pixels and tokens pass them."""
    if quantize not in QUANTIZED:
        raise InputError(f"quantize is {quantize!r}; expected {' or '.join(QUANTIZED)}")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{quantize} needs the package {package}: {install_hint('quantize')}")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(plain))
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=list(plain)
    )
