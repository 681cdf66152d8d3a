"""The processor of a model: a tokenizer that gives the original's ids in plain transformers too, pixels, chat template.

The original tokenises the text before and after `<image>` on its own, so that the piece after it opens with
sentencepiece's prefix. Tokenizers of transformers cut one string at added tokens instead:

* where every stretch gets a prefix (`legacy: true`, the default of old configurations), that is what is wanted once
  the prefix is written by a normalizer: `Metaspace` leaves it out before a space;
* where only the first one does (`legacy: false`), a normalizer writes a space behind the last `<image>` of a run.

Both are part of the saved tokenizer.json, so any program that reads the folder gets the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers
from transformers import (
    LlamaTokenizer,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..core.prompts import IMAGE_ID, IMAGE_TAG, TEMPLATES, Rendered, encode
from ..utils.command import InputError
from ..utils.files import read_json, write_json
from .formats import read_object, understood

_PREFIX = "▁"
# What decides an image's pixels, in transformers' words.
_PIXEL_SETTINGS = (
    "do_pad", "do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model or a LLaVA checkpoint, as the original loads it, with the image's token.

    Where tokenizer_config.json does not say `legacy`, it is true, as it was for LlamaTokenizer when LLaVA was written.

    Raises:
        InputError: the folder holds none.
    """
    model, whole, config = (folder / name for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"))
    if not model.is_file() and not whole.is_file():
        raise InputError(f"{folder} holds no tokenizer: expected tokenizer.model or tokenizer.json")
    settings = read_object(config) if config.is_file() else {}
    with understood(f"the tokenizer in {folder}"):
        if model.is_file():
            tokenizer = LlamaTokenizer.from_pretrained(
                folder, legacy=settings.get("legacy", True) is not False, add_bos_token=True
            )
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # what transformers makes of an empty tokenizer.model
        raise InputError(
            f"the tokenizer in {folder} holds no pieces of text: the file is empty or cut off; get it again"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return with_image_token(tokenizer)


def with_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with `<image>` as a token of its own, which cuts a text there as the original does.

    The token comes behind the text's pieces, unless it is there already: then it keeps its id. The tokenizer comes
    back as a plain fast one: LlamaTokenizer, once saved, is built anew from its vocabulary when it is loaded, and forgets
    the normalizer.
    """
    if _cuts_as_the_original(tokenizer):
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    scheme = (state["pre_tokenizer"] or {}).get("prepend_scheme")
    first = scheme == "first"
    at = tokenizer.get_vocab().get(IMAGE_TAG, len(tokenizer))
    others = [one for one in state["added_tokens"] if one["content"] != IMAGE_TAG]
    tag = {"id": at, "content": IMAGE_TAG, "single_word": False, "lstrip": False, "rstrip": False, "special": False}
    state["added_tokens"] = sorted([*others, tag | {"normalized": first}], key=lambda one: one["id"])
    backend = Tokenizer.from_str(json.dumps(state))
    if scheme == "always":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_PREFIX), normalizers.Replace(" ", _PREFIX)])
    if first:
        # \z: the tag alone, which is what the token itself is normalised as, stays what it is.
        behind = normalizers.Replace(Regex(rf"{IMAGE_TAG}(?!{IMAGE_TAG}|\z)"), f"{IMAGE_TAG} ")
        backend.normalizer = normalizers.Sequence([behind, *([backend.normalizer] if backend.normalizer else [])])
    words = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # without it transformers 4 adds token_type_ids
        **{word: getattr(tokenizer, word) for word in words if getattr(tokenizer, word) is not None},
    )


def _cuts_as_the_original(tokenizer: PreTrainedTokenizerBase) -> bool:
    image = tokenizer.get_vocab().get(IMAGE_TAG)
    text = f"a: {IMAGE_TAG}\nb"
    apart = [image if one == IMAGE_ID else one for one in encode(tokenizer, Rendered(text, ())).input_ids]
    return image is not None and tokenizer(text)["input_ids"] == apart


def make_processor(
    tokenizer: PreTrainedTokenizerBase, patch_size: int, pixels: Mapping[str, Any], strategy: str = "default"
) -> LlavaProcessor:
    """A processor that writes LLaVA's prompt and pixels. `pixels`: see towers.pixel_settings."""
    tokenizer.padding_side = "left"  # generation continues every row of a batch at its end
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(**pixels),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE_TAG,
        chat_template=CHAT_TEMPLATE,
    )


def load_processor(folder: Path, patch_size: int) -> LlavaProcessor:
    """The processor of a folder in Hugging Face's format, on PIL: torchvision's pixels differ by 0.015.

    It makes the pixels that the folder says, and the original's tokens, also where the folder's own tokenizer does not.
    """
    # Where trust_remote_code is not said, transformers asks the user.
    found = LlavaProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    said = found.image_processor.to_dict()
    pixels = {key: said[key] for key in _PIXEL_SETTINGS if said.get(key) is not None}
    made = make_processor(with_image_token(found.tokenizer), patch_size, pixels)
    made.chat_template = _without_blank(found.chat_template) if found.chat_template else CHAT_TEMPLATE
    return made


def _without_blank(written: Any) -> Any:
    """A chat template (or several, by name) that writes no space behind the image: the tokenizer here adds its own."""
    if isinstance(written, dict):
        return {name: _without_blank(one) for name, one in written.items()}
    return written.replace(f"{IMAGE_TAG} \\n", f"{IMAGE_TAG}\\n").replace(f"{IMAGE_TAG} \n", f"{IMAGE_TAG}\n")


def save_processor(processor: LlavaProcessor, folder: Path) -> None:
    """Write the processor so that transformers 4 and 5 and the servers built on either read it."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json: transformers 4 looks for it
    file = folder / "tokenizer_config.json"
    settings = read_json(file)
    settings["tokenizer_class"] = (
        "PreTrainedTokenizerFast"  # TokenizersBackend, by the name that transformers 4 has too
    )
    write_json(file, settings)


# The system sentence of training unless a system message says another; an image stands first in its turn, as LLaVA puts
# it, and the text around it loses its outer blanks; an open user turn asks for an answer.
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
