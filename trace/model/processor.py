"""The processor of a model: the original LLaVA's token ids in plain transformers too, its pixels, a chat template.

The original tokenizes the text before and after `<image>` on its own, so that the text after it starts with
sentencepiece's prefix. Tokenizers of transformers cut one string at added tokens instead:

* with `legacy: true` (the default of old configurations) every stretch gets a prefix, as in the original, if a
  normalizer writes it: `Metaspace` leaves it out before a space;
* with `legacy: false` only the first stretch does: a normalizer writes a space after the last `<image>` of a run.

Both are part of the saved tokenizer.json, so that any program that reads the folder gets the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers
from transformers import LlamaTokenizer, LlavaProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..core.prompts import IMAGE_ID, IMAGE_TAG, TEMPLATES, Rendered, encode
from ..utils.command import InputError
from ..utils.files import read_json, write_json
from .checkpoint_formats import input_errors, read_object

_PREFIX = "▁"
# The settings of transformers' image processor that decide the pixels.
_PIXEL_SETTINGS = (
    "do_pad", "do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model or LLaVA checkpoint as the original does, with the image token.

    If tokenizer_config.json does not say `legacy`, it is true, as for LlamaTokenizer when LLaVA was written.
    """
    model, complete, config = (folder / name for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"))
    if not model.is_file() and not complete.is_file():
        raise InputError(f"{folder} has no tokenizer: expected tokenizer.model or tokenizer.json")
    settings = read_object(config) if config.is_file() else {}
    with input_errors(f"the tokenizer in {folder}"):
        if model.is_file():
            legacy = settings.get("legacy", True) is not False
            tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=legacy, add_bos_token=True)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # transformers accepts an empty tokenizer.model
        raise InputError(f"the tokenizer in {folder} has no pieces: the file is empty or cut off. Get it again")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return with_image_token(tokenizer)


def with_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add `<image>` as a token of its own, at which texts are cut as in the original.

    The token follows the text's pieces; an existing one keeps its id. The result is a plain fast tokenizer:
    LlamaTokenizer is rebuilt from its vocabulary when it is loaded, without the normalizer.
    """
    image, text = tokenizer.get_vocab().get(IMAGE_TAG), f"a: {IMAGE_TAG}\nb"
    original = [image if token == IMAGE_ID else token for token in encode(tokenizer, Rendered(text, ())).input_ids]
    if image is not None and tokenizer(text)["input_ids"] == original:
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    scheme = (state["pre_tokenizer"] or {}).get("prepend_scheme")
    others = [token for token in state["added_tokens"] if token["content"] != IMAGE_TAG]
    index = len(tokenizer) if image is None else image
    tag = {"id": index, "content": IMAGE_TAG, "single_word": False, "lstrip": False, "rstrip": False, "special": False}
    state["added_tokens"] = sorted([*others, tag | {"normalized": scheme == "first"}], key=lambda token: token["id"])
    backend = Tokenizer.from_str(json.dumps(state))
    if scheme == "always":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_PREFIX), normalizers.Replace(" ", _PREFIX)])
    if scheme == "first":
        # \z: the tag alone, which the token itself is normalised as, stays as it is.
        behind = normalizers.Replace(Regex(rf"{IMAGE_TAG}(?!{IMAGE_TAG}|\z)"), f"{IMAGE_TAG} ")
        backend.normalizer = normalizers.Sequence([behind, *([backend.normalizer] if backend.normalizer else [])])
    words = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=tokenizer.model_max_length, padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # without it transformers 4 adds token_type_ids
        **{word: getattr(tokenizer, word) for word in words if getattr(tokenizer, word) is not None},
    )  # fmt: skip


def make_processor(tokenizer: PreTrainedTokenizerBase, patch_size: int, pixels: Mapping[str, Any]) -> LlavaProcessor:
    """A processor that writes LLaVA's prompt and pixels; `pixels` as from `vision_tower.pixel_settings`."""
    tokenizer.padding_side = "left"  # generation continues every row of a batch at its end
    return LlavaProcessor(
        LlavaImageProcessorPil(**pixels), tokenizer, patch_size=patch_size, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=IMAGE_TAG, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def load_processor(folder: Path, patch_size: int) -> LlavaProcessor:
    """Load the processor of a folder in Hugging Face's format, on PIL: torchvision's pixels differ by 0.015.

    It keeps the folder's pixel settings and writes the original's tokens, even if the folder's tokenizer does not.
    """
    # Without trust_remote_code=False, transformers asks the user.
    stored = LlavaProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    settings = stored.image_processor.to_dict()
    pixels = {key: settings[key] for key in _PIXEL_SETTINGS if settings.get(key) is not None}
    processor = make_processor(with_image_token(stored.tokenizer), patch_size, pixels)
    if stored.chat_template:
        processor.chat_template = _without_blank(stored.chat_template)
    return processor


def _without_blank(template: Any) -> Any:
    """A chat template (or several, by name) without a space after the image: the tokenizer here adds its own."""
    if isinstance(template, dict):
        return {name: _without_blank(text) for name, text in template.items()}
    return template.replace(f"{IMAGE_TAG} \\n", f"{IMAGE_TAG}\\n").replace(f"{IMAGE_TAG} \n", f"{IMAGE_TAG}\n")


def save_processor(processor: LlavaProcessor, folder: Path) -> None:
    """Write the processor so that transformers 4 and 5 and the servers built on either read it."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json: transformers 4 looks for it
    file = folder / "tokenizer_config.json"
    # TokenizersBackend, by the name that transformers 4 has too
    write_json(file, read_json(file) | {"tokenizer_class": "PreTrainedTokenizerFast"})


# The system sentence of training, unless there is a system message. An image comes first in its turn, as in LLaVA, and
# the text after it is stripped. An open user turn ends with the assistant's prefix.
CHAT_TEMPLATE = (
    "{%- macro words(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
    "{%- set system = '" + TEMPLATES["vicuna_v1"].system.replace("'", "\\'") + "' -%}"
    "{%- set turns = messages -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = words(messages[0]['content']) -%}{%- set turns = messages[1:] -%}"
    "{%- endif -%}"
    "{{ system + ' ' }}"
    "{%- for message in turns -%}"
    "{%- set text = words(message['content']) -%}"
    "{%- if message['role'] == 'user' -%}"
    "{%- set found = namespace(images='') -%}"
    "{%- if message['content'] is not string -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] in ('image', 'image_url') -%}"
    "{%- set found.images = found.images + '<image>\\n' -%}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ 'USER: ' + (found.images + (text | trim) if found.images else text) + ' ASSISTANT:' }}"
    "{%- else -%}{{ ' ' + text + '</s>' }}{%- endif -%}"
    "{%- endfor -%}"
)
