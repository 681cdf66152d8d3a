"""Every other vision-language model of transformers, through its own processor and chat template.

The processor decides the token ids, the pixels and how many tokens an image has. What is learned of a conversation follows
one rule: render the prompt and the prompt with its answer; if the first is the beginning of the second and the answer
contains an end-of-sequence token, learn the answer up to it. Otherwise the text is the prompt, the answer and that token.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from ...core.conventions import CONVENTIONS, Convention, convention, convention_of, write_turns
from ...core.prompts import IGNORE, IMAGE_TAG, Encoded, Rendered
from ...core.records import Turn
from ...utils.command import InputError
from ...utils.files import write_json
from ..build import quantization, weight_dtype
from ..checkpoint_formats import input_errors, read_object
from ..presets import hub_repository, model_name
from ..record import RECORD
from ..saving import ModelCard, make_card, write_card
from .base import Checkpoint, count_parts
from .image_places import image_places, patch_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDINARY_SIZE = (640, 480)  # of an image that is not known yet
# Layers that see the rows beside them in a packed batch: a convolution or a recurrent state, or a window of positions.
MIXING_LAYERS = ("linear_attention", "sliding_attention", "chunked_attention")
PROCESSOR_FILES = (
    "tokenizer*", "*.jinja", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as the model is trained on it: its text with the image tokens, its tokens, and the inputs."""

    rendered: Rendered
    encoded: Encoded
    inputs: dict[str, Tensor]  # batches of one


@dataclass
class AnyCheckpoint(Checkpoint):
    """A model of `AutoModelForImageTextToText`; `folder` holds its processor's files."""

    folder: Path = field(default_factory=Path)

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_id)  # not the processor's: Gemma's names the token before the image

    @property
    def image_tokens(self) -> None:
        return None

    @property
    def text_vocab_size(self) -> int:
        weight = self.model.get_output_embeddings().weight
        return int(getattr(weight, "ds_shape", weight.shape)[0])  # a shard of ZeRO-3 has no shape of its own

    @cached_property
    def suppressed_ids(self) -> list[int]:
        config, kinds = self.model.config, ("image", "video", "vision", "boi", "eoi")
        names = [
            name for name in dir(config) if name.startswith(kinds) and name.endswith(("_token_id", "_token_index"))
        ]
        special = {getattr(config, name) for name in names if isinstance(getattr(config, name), int)}
        return sorted(set(range(self.text_vocab_size)) - set(self.tokenizer.get_vocab().values()) | special)

    @property
    def end_ids(self) -> list[int]:
        ids = self.model.generation_config.eos_token_id
        return [self.tokenizer.eos_token_id] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    @property
    def packs(self) -> bool:
        layers = getattr(self.text_config, "layer_types", None) or ()
        return not set(layers) & set(MIXING_LAYERS) and "token_type_ids" not in self.processor.model_input_names

    def native_coordinates(self) -> str:
        how = native_convention(self.name, self.folder, self.model.config)
        return how.name if how is not None else super().native_coordinates()

    @cached_property
    def answer_lead(self) -> str:
        rendered = self._rendered_answers([Turn("human", "question"), Turn("gpt", "answer")])
        return "" if rendered is None else rendered.text[rendered.answers[0][0] :].partition("answer")[0]

    # --- text ------------------------------------------------------------------------------------------------------

    def render(self, turns: Sequence[Turn]) -> str:
        """A conversation as the template writes it; a last human turn leaves the text open for the answer."""
        messages = []
        for index, turn in enumerate(turns):
            if turn.speaker != ("gpt" if index % 2 else "human"):
                raise InputError(f"turn {index} is by {turn.speaker!r}: turns must alternate human, gpt, human ...")
            words = turn.text.replace(IMAGE_TAG, "").strip()
            if self.image_word in words:
                raise InputError(
                    f"the text contains {self.image_word!r}, which {self.name} reads as an image. Remove it"
                )
            parts = [{"type": "image"}] * turn.text.count(IMAGE_TAG) + [{"type": "text", "text": words}]
            messages.append({"role": "assistant" if index % 2 else "user", "content": parts})
        return str(self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=len(turns) % 2 == 1, **self.template_options))  # fmt: skip

    @cached_property
    def image_word(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @cached_property
    def template_options(self) -> dict[str, Any]:
        # Reasoning is part of the answer here, not of a block that the template opens and hides.
        return {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}

    def prompt(self, question: str, style: str = "vicuna_v1", answer: str = "") -> str:
        if style != "vicuna_v1":  # the default
            raise InputError(f"the conversation template {style!r} is for LLaVA; {self.name} has its own")
        prompt = self.render([Turn("human", f"{IMAGE_TAG}\n{question}")])
        return prompt + (f"{self.answer_lead}{answer}" if answer else "")

    def learned_conversations(self, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        """The rows that a conversation becomes: itself, or one an answer where its text does not begin with its parts."""
        count = len(turns) // 2 * 2
        if count < 2:
            raise InputError("no turn by gpt to learn from")
        if count == 2 or self._rendered_answers(turns[:count]):
            return [turns[:count]]
        return [turns[:end] for end in range(2, count + 1, 2)]

    def _rendered_answers(self, turns: Sequence[Turn]) -> Rendered | None:
        """The conversation as the template writes it, and its answers up to their ends; None if one breaks the rule."""
        text, answers = self.render(turns), []
        for index in range(1, len(turns), 2):
            before, after = self.render(turns[:index]), self.render(turns[: index + 1])
            ends = [
                after.find(word, len(before)) + len(word) for word in self.end_words if word in after[len(before) :]
            ]
            if not ends or not after.startswith(before) or not text.startswith(after[: min(ends)]):
                return None
            answers.append((len(before), min(ends)))
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        straddles = any(first < start < last for start, _ in answers for first, last in offsets)
        return None if straddles else Rendered(text, tuple(answers))

    @cached_property
    def end_words(self) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self.end_ids)

    @property
    def _end(self) -> str:
        return str(self.tokenizer.eos_token or self.end_words[0])

    # --- tensors ---------------------------------------------------------------------------------------------------

    def tensors(self, texts: Sequence[str], images: Sequence[Image.Image | None], **options: Any) -> dict[str, Any]:
        """What the processor makes of texts with an image each, or none, as a padded batch."""
        first = self.tokenizer.bos_token
        if first and texts[0].startswith(first):  # the template wrote it
            options["add_special_tokens"] = False
        pictures = [[image] if image is not None else [] for image in images] if any(images) else None
        return dict(self.processor(text=list(texts), images=pictures, return_tensors="pt", padding=True, **options))

    def prompt_ids(self, prompt: str, image: Image.Image | None = None) -> list[int]:
        ids: list[int] = self.tensors([prompt], [image or Image.new("RGB", ORDINARY_SIZE)])["input_ids"][0].tolist()
        self.check_positions(len(ids))
        return ids

    def inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        batch = self.tensors(prompts, images, padding_side="left")
        self.check_positions(batch["input_ids"].shape[1])
        kinds = {name: self.model.dtype if tensor.is_floating_point() else None for name, tensor in batch.items()}
        return {name: tensor.to(self.model.device, kinds[name]) for name, tensor in batch.items()}

    def example(self, turns: Sequence[Turn], image: Image.Image | None) -> Example:
        """One conversation with its labels, and everything else that the model is given."""
        turns = self._written(turns, None if image is None else image.size)
        rendered = self._rendered_answers(turns)
        text = self.render(turns[:-1]) if rendered is None else rendered.text
        inputs = self.tensors([text], [image], return_offsets_mapping=True, return_text_replacement_offsets=True)
        spans = [tuple(span) for span in inputs.pop("offset_mapping")[0].tolist()]
        replaced = next(iter(inputs.pop("text_replacement_offsets", ())), ())  # the image's words -> its tokens
        for item in reversed(replaced):
            text = text[: item["span"][0]] + item["replacement"] + text[item["span"][1] :]

        def moved(position: int) -> int:
            before = (item for item in replaced if item["span"][1] <= position)
            return position + sum(len(item["replacement"]) - len(item["text"]) for item in before)

        if rendered is None:  # the answer is tokenized by itself, as if it had been generated after the prompt
            answer, end = turns[-1].text + self._end, len(text)
            encoded = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
            spans += [(first + end, last + end) for first, last in encoded["offset_mapping"]]
            added = torch.tensor([encoded["input_ids"]])
            fills = {"input_ids": added, "attention_mask": torch.ones_like(added)}
            for name in [name for name in inputs if inputs[name].shape == inputs["attention_mask"].shape]:
                inputs[name] = torch.cat([inputs[name], fills.get(name, torch.zeros_like(added))], dim=1)
            text, answers = text + answer, ((end, end + len(answer)),)
        else:
            answers = tuple((moved(start), moved(end)) for start, end in rendered.answers)
        ids = inputs["input_ids"][0].tolist()
        labels = [
            token if any(start <= first < last <= end for start, end in answers) else IGNORE
            for token, (first, last) in zip(ids, spans, strict=True)
        ]
        return Example(Rendered(text, answers), Encoded(ids, labels, spans), inputs)

    def length(self, turns: Sequence[Turn], size: tuple[int, int] | None) -> int:
        """The number of tokens of an `example` with an image of this size, or without one; no pixels are read."""
        turns = self._written(turns, size)
        rendered = self._rendered_answers(turns)
        texts = [self.render(turns[:-1]), turns[-1].text + self._end] if rendered is None else [rendered.text]
        return self._count(texts) + self._of_size(size)[0]

    def _written(self, turns: Sequence[Turn], size: tuple[int, int] | None) -> Sequence[Turn]:
        """Turns about an image of this size, with their points in the checkpoint's convention."""
        if size is None or self.coordinates == "unit":
            return turns
        how = CONVENTIONS[self.coordinates]
        return write_turns(turns, how, self._of_size(size)[1] if how.scale is None else size)

    def _count(self, texts: list[str]) -> int:
        return sum(map(len, self.tokenizer(texts, add_special_tokens=False)["input_ids"]))

    def _of_size(self, size: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
        """The tokens that the processor adds to a text for an image of this size, and the size that the model sees."""
        if size not in self._sizes:
            image, turn = None if size is None else Image.new("RGB", size), Turn("human", f"{IMAGE_TAG}?")
            text = self.render([turn if image else Turn("human", "?")])
            added = self.tensors([text], [image])["input_ids"].shape[1] - self._count([text])
            self._sizes[size] = added, (0, 0) if image is None else self.seen_size(image)
        return self._sizes[size]

    @cached_property
    def _sizes(self) -> dict[tuple[int, int] | None, tuple[int, tuple[int, int]]]:
        return {}

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Positions of one row for packing: `[1, 1, tokens]`; `[4, 1, tokens]` where images have axes of their own."""
        places = torch.arange(inputs["input_ids"].shape[1])[None, None]
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        if "image_grid_thw" not in inputs or not hasattr(base.model, "get_rope_index"):
            return places.expand(4, 1, -1) if hasattr(base.model, "get_rope_index") else places
        names = ("input_ids", "image_grid_thw", "mm_token_type_ids", "attention_mask")
        return torch.cat([places, base.model.get_rope_index(**{name: inputs[name] for name in names})[0]])

    def patch_weights(self, image: Image.Image, inputs: Mapping[str, Tensor]) -> NDArray[Any]:
        return patch_weights(image_places(self.processor, self.model.config, image, inputs), image.size)

    def seen_size(self, image: Image.Image) -> tuple[int, int]:
        pixels = self.processor.image_processor
        if not hasattr(pixels, "merge_size"):
            return image.size
        _, rows, columns = pixels([image], return_tensors="pt")["image_grid_thw"][0].tolist()
        return columns * pixels.patch_size, rows * pixels.patch_size

    # --- files -----------------------------------------------------------------------------------------------------

    def write_processor(self, folder: Path) -> None:
        # What a processor without its video half saves is no processor to AutoProcessor: the base's files are copied.
        for file in (file for pattern in PROCESSOR_FILES for file in self.folder.glob(pattern)):
            shutil.copyfile(file, folder / file.name)

    def write_model(self, folder: Path, tensors: Mapping[str, Tensor], dtype: str | None, card: ModelCard) -> None:
        kind = None if dtype is None else getattr(torch, dtype)
        state = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        self.model.save_pretrained(folder, state_dict=state)
        if dtype is not None:
            write_json(folder / "config.json", read_object(folder / "config.json") | {"dtype": dtype})
        self.write_processor(folder)
        write_card(folder, card, self.name)


def load_any(
    folder: Path, adapter: Path | None, name: str, path: str, dtype: Any, device: str, quantize: str | None,
    options: Mapping[str, Any],
) -> AnyCheckpoint:  # fmt: skip
    """Load the model in `folder`, and merge the adapter; arguments as for `checkpoint.load`."""
    from transformers import AutoModelForImageTextToText

    processor, config = load_processor(folder)
    kind = weight_dtype(stored_dtype(folder) if dtype == "auto" else dtype)
    if quantize is not None:
        parts = ["lm_head", "model.visual", "model.vision_tower", "model.vision_model", "model.multi_modal_projector",
                 "model.connector"]  # fmt: skip
        options = {"device_map": {"": device}, **options, "quantization_config": quantization(quantize, kind, parts)}
    if isinstance(attention := options.get("attn_implementation"), str):  # Gemma 4's audio tower knows eager alone
        options = {**options, "attn_implementation": dict.fromkeys(("text_config", "vision_config"), attention)}
    with input_errors(folder):
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, dtype=kind, output_loading_info=True, **options
        )
        if report["missing_keys"]:  # transformers fills them with random numbers, and warns
            names = sorted(report["missing_keys"])
            raise InputError(f"{folder} lacks {len(names)} weights, such as {names[0]}. Get the complete model")
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model = model if "device_map" in options else model.to(device)
    model.name_or_path = model.config.name_or_path = hub_repository(folder) or str(folder)  # an adapter's base
    card, coordinates = make_card(str(folder), folder), read_coordinates(folder, adapter, config)
    return AnyCheckpoint(model.eval(), processor, name, path, card, coordinates=coordinates, folder=folder)


def read_coordinates(folder: Path, adapter: Path | None, config: Any) -> str:
    """The convention in which a model writes points: as recorded with it or its base, or its family's, or "unit"."""
    for path in (place / RECORD for place in (adapter, folder) if place is not None):
        if path.is_file():
            with input_errors(path):
                return convention(read_object(path)["coordinates"]).name
    how = native_convention(model_name(adapter or folder), folder, config)
    return "unit" if how is None else how.name


def native_convention(name: str, folder: Path, config: Any) -> Convention | None:
    """The convention of a model's family: by its name, its base's, or the type of its architecture."""
    found = (convention_of(known) for known in (name, model_name(folder), config.model_type))
    return next((how for how in found if how is not None), None)


def load_processor(folder: Path) -> tuple[Any, Any]:
    """The processor of a folder, on PIL and without its video half, and the model's configuration.

    InputError: the model reads no images, or transformers has no processor of PIL's pictures for it.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    with input_errors(folder / "config.json"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or type(config) not in PROCESSOR_MAPPING:
        raise InputError(
            f"{folder / 'config.json'} is of a {config.model_type!r} model, which reads no images. Choose another model"
        )
    stored = PROCESSOR_MAPPING[type(config)]
    pil = f"{folder}: transformers has no processor on PIL for {config.model_type!r} models. Choose another model"
    if getattr(stored, "is_dummy", False):  # the class itself wants torchvision (Mistral 3)
        raise InputError(pil)
    with input_errors(f"the processor of {folder}"):
        options = {"video_processor": None} if "video_processor" in stored.get_attributes() else {}
        processor = without_video(stored).from_pretrained(folder, backend="pil", trust_remote_code=False, **options)
    if not type(processor.image_processor).__name__.endswith("Pil"):
        raise InputError(pil)
    if processor.chat_template is None:
        raise InputError(f"{folder} has no chat template (chat_template.jinja). Take an instruction-tuned model")
    processor.tokenizer.padding_side = "right"  # of training; generation asks for left
    return processor, config


def stored_dtype(folder: Path) -> str:
    """The type of the weights on disk, as the model's configuration says; float32 where it does not."""
    config = read_object(folder / "config.json")
    text = config.get("text_config") or {}
    return str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32")


def describe_any(folder: Path, adapter: Path | None) -> dict[str, str]:
    """What `checkpoint inspect` prints; reads no weights."""
    checkpoint = without_weights(folder)
    config, text = checkpoint.model.config, checkpoint.text_config
    lines = {"folder": str(adapter or folder), "format": f"{config.model_type}, of transformers"}
    if adapter is not None:
        settings = read_object(adapter / "adapter_config.json")
        lines |= {"adapter": f"rank {settings.get('r')}, alpha {settings.get('lora_alpha')}", "base": str(folder)}
    width, layers, heads = text.hidden_size, text.num_hidden_layers, text.num_attention_heads
    lines["language model"] = f"width {width}, {layers} layers, {heads} heads, vocabulary {text.vocab_size}"
    counts = count_parts(checkpoint.model)
    lines["parameters"] = ", ".join(f"{part} {count:,}" for part, count in counts.items()) + f", {stored_dtype(folder)}"
    ids = checkpoint.prompt_ids(checkpoint.prompt("Where is the mug?"))
    columns, rows = ORDINARY_SIZE
    lines["image tokens"] = f"{ids.count(checkpoint.image_token_id)} of an image of {columns} x {rows} pixels"
    lines["answers end with"] = " or ".join(checkpoint.end_words)
    how = CONVENTIONS[read_coordinates(folder, adapter, config)]
    lines["coordinates"] = f"{how.name}: {how.summary}"
    lines["packing"] = "exact" if checkpoint.packs else "not possible: some layers would mix the rows"
    return lines


def without_weights(folder: Path) -> AnyCheckpoint:
    """The checkpoint in a folder, its model without memory for weights: names and shapes only."""
    from transformers import AutoModelForImageTextToText, GenerationConfig

    processor, config = load_processor(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return AnyCheckpoint(model, processor, folder.name, str(folder), folder=folder)


def without_video(stored: type) -> type:
    """A processor class without its video half, which needs torchvision."""
    kept = [name for name in stored.get_attributes() if name != "video_processor"]
    none = SimpleNamespace(num_frames=None, fps=None)  # SmolVLM's processor asks for them
    fields = {"get_attributes": classmethod(lambda _: kept), "video_processor": none}
    return type(stored.__name__, (stored, _WithoutVideo), fields)


class _WithoutVideo(ProcessorMixin):
    """Stands behind a processor's own class, which hands its video half (Gemma4's by name) to this constructor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.pop("video_processor", None)
        super().__init__(*args, **options)
