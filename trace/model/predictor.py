"""Ask a model: images and instructions in, predictions out, batched and repeatable.

    trace-vlm predict table.png "Find free space left of the mug." --model M --overlay answer.png

The batches of a job depend only on its questions and the batch size, not on what was already answered, and every
batch is seeded by its own number: a job that was interrupted samples, once resumed, what it would have sampled.
Greedy answers do not depend on the batch they are in.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import InputError, Parser, output_folder, run
from ..files import read_json
from ..images import open_image
from ..points import Point
from ..prompts import TEMPLATES, question_text, render_prompt, template
from ..reasoning import Response, parse

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .checkpoint import Checkpoint

PICTURES = (".png", ".jpg", ".jpeg")
READERS = 4  # threads that decode images while the model generates


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one instruction.

    `text` is the raw answer without the end-of-sequence token, `token_ids` what was generated up to that token,
    `response` what was read from the text (points normalised to the original image), `prompt` the whole text that
    the model was asked with, `seconds` this answer's share of its batch's time. `confidence` is not estimated: None.
    """

    text: str
    token_ids: tuple[int, ...]
    response: Response
    prompt: str
    confidence: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated. Temperature 0 is greedy, or beam search where `num_beams` exceeds 1."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        # Not `<`: NaN has to fail too.
        if not (0 <= self.temperature < math.inf):
            raise InputError(f"the temperature has to be 0 (greedy) or above, not {self.temperature}")
        if not (0 < self.top_p <= 1):
            raise InputError(f"top-p has to lie above 0 and be at most 1, not {self.top_p}")
        if self.num_beams < 1 or self.max_new_tokens < 1:
            raise InputError("the numbers of beams and of new tokens have to be at least 1")
        if not (0 <= self.seed < 2**63):
            raise InputError(f"the seed has to lie between 0 and 2**63, not {self.seed}")


class Predictor:
    """A loaded model that answers questions about images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @classmethod
    def load(
        cls, path: str | Path, base: str | Path | None = None, device: str | None = None, dtype: str | None = None
    ) -> Predictor:
        """Load a checkpoint in any format that is known.

        Args:
            base: the model that an adapter at `path` belongs to.
            device: as torch names it; a GPU when there is one.
            dtype: as torch names it; float32 on a CPU, on a GPU the type that the weights are stored in.
        Raises:
            InputError: the path is no model, or the device or type is not to be had.
        """
        import torch

        from .checkpoint import load

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if device == "cpu" else _stored_dtype(Path(path)))
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InputError(f"{dtype!r} is no type of weights; float32, bfloat16 and float16 are")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        return cls(load(path, base=base, dtype=dtype, device=device))

    def predict(
        self,
        images: Sequence[Image | Path | str],
        instructions: Sequence[str],
        *,
        reasoning: bool = True,
        batch_size: int = 32,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        num_beams: int = 1,
        seed: int = 0,
        style: str = "vicuna_v1",
        progress: Callable[[int], object] | None = None,
    ) -> list[Prediction]:
        """Answer one instruction an image, in the order given.

        Args:
            reasoning: ask for the Chain of Reasoning before the points.
            style: the conversation template, `prompts.TEMPLATES`.
            progress: called with the number of answers after each batch.
        Raises:
            InputError: an image cannot be read, or an option is out of range.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, num_beams, seed)
        found: dict[int, Prediction] = {}
        for batch in self.stream(
            images, instructions, decoding, reasoning=reasoning, batch_size=batch_size, style=style
        ):
            found.update(batch)
            if progress is not None:
                progress(len(batch))
        return [found[index] for index in range(len(instructions))]

    def stream(
        self,
        images: Sequence[Image | Path | str],
        instructions: Sequence[str],
        decoding: Decoding | None = None,
        *,
        reasoning: bool = True,
        batch_size: int = 32,
        style: str = "vicuna_v1",
        done: Collection[int] = (),
    ) -> Iterator[dict[int, Prediction]]:
        """Predictions batch by batch, longest questions first, keyed by position; the next images load meanwhile.

        Args:
            done: positions that need no answer. They change neither the batches nor the samples of the others.
        """
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} images for {len(instructions)} instructions")
        decoding = decoding or Decoding()
        prompts = [render_prompt(question_text(text, reasoning), style) for text in instructions]
        batches = [
            (number, batch)
            for number, batch in enumerate(plan_batches(prompts, batch_size))
            if not all(index in done for index in batch)
        ]
        with ThreadPoolExecutor(READERS) as readers:

            def start(place: int) -> list[Future[Image]]:
                batch = batches[place][1] if place < len(batches) else []
                return [readers.submit(_as_image, images[index]) for index in batch]

            upcoming = start(0)
            for place, (number, batch) in enumerate(batches):
                loading, upcoming = upcoming, start(place + 1)
                pictures = [picture.result() for picture in loading]
                predictions = self._answer(pictures, [prompts[index] for index in batch], decoding, number)
                yield {
                    index: prediction for index, prediction in zip(batch, predictions, strict=True) if index not in done
                }

    def _answer(
        self, images: Sequence[Image], prompts: Sequence[str], decoding: Decoding, number: int
    ) -> list[Prediction]:
        started = time.perf_counter()
        rows = self._generate(self.checkpoint.inputs(images, prompts), decoding, number)
        texts = [self.checkpoint.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            Prediction(text, tuple(row), parse(text, image.size), prompt, None, seconds)
            for text, row, image, prompt in zip(texts, rows, images, prompts, strict=True)
        ]

    def _generate(self, inputs: dict[str, Tensor], decoding: Decoding, number: int) -> list[list[int]]:
        """Generated ids of every row, up to the end-of-sequence token and without it."""
        import numpy as np
        import torch

        model = self.checkpoint.model
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            seed = np.random.SeedSequence([decoding.seed, number]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed >> np.uint64(1)))  # torch takes 63 bits
            sequences = model.generate(**inputs, generation_config=self._configuration(decoding))
        end = self.checkpoint.tokenizer.eos_token_id
        rows = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    def _configuration(self, decoding: Decoding) -> Any:
        """Every setting is given: generate fills what is None from the checkpoint's own file, whatever that says."""
        from transformers import GenerationConfig

        sampled = decoding.temperature > 0
        tokenizer = self.checkpoint.tokenizer
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=0,
            do_sample=sampled,
            temperature=decoding.temperature if sampled else 1.0,
            top_p=decoding.top_p if sampled else 1.0,
            top_k=0 if sampled else 50,  # 50 is the default, which greedy search does not warn about
            num_beams=decoding.num_beams,
            num_return_sequences=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            return_dict_in_generate=False,
            suppress_tokens=self._never(),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )

    def _never(self) -> list[int]:
        """Ids that are no text: the image's own, and those that only round the vocabulary up."""
        rows = self.checkpoint.model.get_output_embeddings().weight.shape[0]
        never = set(range(len(self.checkpoint.tokenizer), rows)) | {self.checkpoint.image_token_id}
        return sorted(token for token in never if token < rows)


def _stored_dtype(path: Path) -> str:
    """What the configuration of a checkpoint says about its weights; bfloat16 where it says nothing (adapters)."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def plan_batches(prompts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Positions of `prompts` in batches of similar length, longest first: what does not fit in memory shows at once."""
    if batch_size < 1:
        raise InputError(f"a batch of {batch_size} cannot be: --batch-size has to be at least 1")
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _as_image(image: Image | Path | str) -> Image:
    return open_image(image) if isinstance(image, str | Path) else image.convert("RGB")


# --- the command -----------------------------------------------------------------------------------------------


def add_decoding_flags(parser: Parser) -> None:
    """The flags that say how a model is loaded and how it generates; shared by every command that asks one."""
    default = Decoding()
    parser.add_argument("--temperature", type=float, default=default.temperature, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=default.top_p, help="nucleus sampling, where temperature > 0")
    parser.add_argument("--num-beams", type=int, default=default.num_beams)
    parser.add_argument("--max-new-tokens", type=int, default=default.max_new_tokens)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--conv-mode", default="vicuna_v1", metavar="TEMPLATE", help=f"conversation template: {', '.join(TEMPLATES)}"
    )
    parser.add_argument("--device", help="as torch names it; by default a GPU when there is one")
    parser.add_argument("--dtype", help="of the weights; by default float32 on a CPU, on a GPU as stored")


def decoding_of(arguments: Any) -> Decoding:
    """The settings that `add_decoding_flags` collected. InputError: one is out of range."""
    template(arguments.conv_mode)
    return Decoding(
        arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.num_beams, arguments.seed
    )


def main(argv: Sequence[str] | None = None) -> int:
    import argparse

    parser = Parser(description="Ask a model to point at something in one image.")
    parser.add_argument("image", type=Path)
    parser.add_argument("instruction", help="what to point at, in words")
    parser.add_argument("--model", "--model-path", required=True, help="folder of the model")
    parser.add_argument("--model-base", help="the model that an adapter belongs to")
    parser.add_argument(
        "--reasoning", action=argparse.BooleanOptionalAction, default=True, help="reason before pointing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--overlay", type=Path, metavar="PNG", help="draw the answer over the image")
    add_decoding_flags(parser)
    arguments = parser.parse_args(argv)
    decoding = decoding_of(arguments)
    image = open_image(arguments.image)  # before the model: a mistake shows at once
    if arguments.overlay is not None:
        if arguments.overlay.suffix.lower() not in PICTURES:
            raise InputError(f"the overlay {arguments.overlay} has to end in {', '.join(PICTURES)}")
        output_folder(arguments.overlay.parent)
    predictor = Predictor.load(arguments.model, arguments.model_base, arguments.device, arguments.dtype)
    (batch,) = predictor.stream(
        [image], [arguments.instruction], decoding, reasoning=arguments.reasoning, style=arguments.conv_mode
    )
    prediction = batch[0]
    if arguments.overlay is not None:
        _draw(arguments.overlay, image, arguments.instruction, prediction, predictor.checkpoint.name)
    if arguments.json:
        print(json.dumps(as_json(prediction, image.size), indent=2))
    else:
        print(describe(prediction, image.size))
    return 0


def as_json(prediction: Prediction, size: tuple[int, int]) -> dict[str, Any]:
    """What a program wants of a prediction for an image of `size` (width, height)."""
    return {
        "points": [
            {"x": point.x, "y": point.y, "pixel": list(point.to_pixels(*size)), "inside": point.inside}
            for point in centers(prediction.response)
        ],
        "boxes": [
            {"normalized": [box.x0, box.y0, box.x1, box.y1], "pixels": list(box.to_pixels(*size))}
            for box in prediction.response.points
            if not isinstance(box, Point)
        ],
        "steps": [{"key": step.key, "text": step.text} for step in prediction.response.steps],
        "text": prediction.text,
        "image_size": list(size),
        "confidence": prediction.confidence,
        "seconds": round(prediction.seconds, 3),
    }


def centers(response: Response) -> list[Point]:
    """The points of an answer, a box by its centre."""
    return [item if isinstance(item, Point) else item.center for item in response.points]


def describe(prediction: Prediction, size: tuple[int, int]) -> str:
    """The answer for a terminal: the text, then every point in both units."""
    lines = [prediction.text, ""]
    for point in centers(prediction.response):
        x, y = point.to_pixels(*size)
        note = "" if point.inside else "  (outside the image)"
        lines.append(f"({point.x:.3f}, {point.y:.3f})  pixel ({x:.1f}, {y:.1f}) of {size[0]} x {size[1]}{note}")
    if not prediction.response.parsable:
        lines.append("no point could be read from this answer")
    return "\n".join([*lines, f"{len(prediction.token_ids)} tokens in {prediction.seconds:.2f} s"])


def _draw(path: Path, image: Image, instruction: str, prediction: Prediction, name: str) -> None:
    from ..canvas import save
    from ..plots import Panel, comparison

    try:
        save(comparison(image, instruction, [Panel(name, prediction.response)]), path)
    except (OSError, ValueError) as error:
        raise InputError(f"the overlay {path} cannot be written: {error}") from None


if __name__ == "__main__":
    raise SystemExit(run(main))
