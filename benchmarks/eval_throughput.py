"""Questions a second: a loop over `generate` at batch 1, as the reference evaluates, against the project's batches.

    OMP_NUM_THREADS=1 python benchmarks/eval_throughput.py --out eval_throughput.json            # CPU: 8 layers of 1024
    python benchmarks/eval_throughput.py --out eval_throughput.json --preset 13b                 # GPU: bfloat16
    python benchmarks/eval_throughput.py --out static.json --preset 13b --static                 # GPU: the second part

Random weights, 128 new tokens, greedy. All ways are measured in one process, one after the other:

    loop                transformers' generate, one question at a time
    batched             the same tokens, which is checked (in bfloat16: the share that is equal is printed)
    constrained         --constrain: headings and punctuation are fast-forwarded
    shared, shared constrained    the same with several questions about an image

Constrained answers may be shorter than 128 tokens: they are set against a loop that makes as many tokens as they have
(the time of its first token and of every further one are known).

On a CPU seconds are those of the process, so that other work on the machine does not count. On a GPU they are the
clock's, and tokens a second of decoding are set against the bound that reading the weights and the cache once a step
puts on a batch (--bandwidth, in bytes a second). Progress is printed to standard error.

With --static, one batch (--batch-size, 32) by the project's loop and by `generate` with its caches, which decides
whether the loop stays, and one answer with its attention recorded. What fails does not stop the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "1024x8": ({"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
                "num_key_value_heads": 16},
               {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4}),
    "13b": ({"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
             "num_key_value_heads": 40},
            {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}),
    "tiny": ({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2},
             {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}),
}  # fmt: skip
WORTH = 1.3  # times the speed of `generate` with a static cache: below it the project's own loop goes
QUESTIONS = {"cpu": 32, "cuda": 96}
TARGETS = {"cpu": {"batched": 2.3, "constrained": 3.0}, "cuda": {"batched": 15.0}}
SUBJECTS = ["red mug", "small blue bowl", "wooden spoon", "green plate beside the window", "yellow box", "white cup"]
WAYS = ["left of", "right of", "behind", "in front of", "next to", "on the left part of the table, near"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SIZES, default="1024x8")
    parser.add_argument("--questions", type=int, help="for the batched ways; 32 on a CPU, 96 on a GPU")
    parser.add_argument("--loop-questions", type=int, default=4, help="for the loop, whose rate is steady")
    parser.add_argument("--batch-size", type=int, default=None, help="as many as fit by default")
    parser.add_argument(
        "--per-image", type=int, default=4, help="questions about an image, for the shared ways; 1: leave them out"
    )
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument(
        "--bandwidth", type=float, default=3.35e12, help="of the GPU's memory, bytes a second (H100 SXM)"
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--static", action="store_true", help="against `generate` with a static cache, and attention")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.static:
        compare_with_static(arguments)
        return 0
    result = measure(arguments)
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["tokens_equal"] == 1.0 or result["dtype"] != "float32" else 1


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from trace_vlm.inference.predictor import Predictor

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    say = Steps()
    checkpoint = make_model(arguments.preset, device)
    say(f"{arguments.preset} on {device}, {checkpoint.model.dtype}")
    predictor = Predictor(checkpoint)
    count, new_tokens = arguments.loop_questions, arguments.new_tokens
    images, texts = questions(arguments.questions or QUESTIONS[device.type])
    shared = [images[place // arguments.per_image] for place in range(len(images))]
    batch = arguments.batch_size or largest_batch(predictor, texts, new_tokens)

    def rate(name: str, run: Callable[[], list[Any]]) -> tuple[list[Any], float]:
        """What `run` gives, and seconds a question: of the process on a CPU, by the clock on a GPU."""
        started = clock(device)
        found = run()
        seconds = (clock(device) - started) / len(found)
        say(f"{name}: {seconds:.3f} s a question")
        return found, seconds

    def loop(name: str, questions: int, tokens: int) -> tuple[list[Any], float]:
        return rate(name, lambda: loop_at(checkpoint, images[:questions], texts[:questions], tokens))

    def ours(name: str, pictures: list[Any], tokens: int = new_tokens, **more: Any) -> tuple[list[Any], float]:
        options = {"max_new_tokens": tokens, "batch_size": batch, **more}
        return rate(name, lambda: predictor.predict(pictures, texts[: len(pictures)], **options))

    # First calls allocate, choose kernels and compile the grammar.
    warm = batch if device.type == "cuda" else 2
    ours("warming up", images[:warm], 2)
    ours("warming up, constrained", images[:1], constrain=True)
    loop("warming up, loop", 1, 4)
    alone, loop_seconds = loop("loop", count, new_tokens)
    _, first = loop("loop, its first token", count, 1)
    batched, seconds = ours("batched", images)
    found = {"loop": loop_seconds, "batched": seconds}
    constrained, found["constrained"] = ours("constrained", images, constrain=True)
    few: list[Any] = []
    if arguments.per_image > 1:
        _, found["shared"] = ours("shared", shared)
        few, found["shared constrained"] = ours("shared constrained", shared, constrain=True)
    measured = Measured(found, first, alone, batched, constrained, few)
    result = described(arguments, checkpoint, len(images), min(batch, len(images)), measured)
    if device.type == "cuda":
        _, prompt = ours("batched, its first token", images[:batch], 1)
        result |= bandwidth(arguments, predictor, min(batch, len(images)), texts, seconds, prompt)
    return result | {"minutes": round(say.elapsed / 60, 2)}


def compare_with_static(arguments: argparse.Namespace) -> None:
    """Time the ways of `--static`, each after a first call, and write what is known after each."""
    import torch

    from trace_vlm.attention.capture import capture_while_generating
    from trace_vlm.inference.generation import AnswerRow, Decoding, generate_with_transformers
    from trace_vlm.inference.predictor import Predictor

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    say, checkpoint = Steps(), make_model(arguments.preset, device)
    predictor, new = Predictor(checkpoint), arguments.new_tokens
    images, texts = questions(arguments.batch_size or 32)
    prompts = [rendered(text) for text in texts]

    def theirs(tokens: int, count: int = len(images), **options: Any) -> None:
        rows = [AnswerRow(index, ()) for index in range(count)]
        inputs = checkpoint.inputs(images[:count], prompts[:count])
        generate_with_transformers(checkpoint, rows, inputs, Decoding(max_new_tokens=tokens), **options)

    ways: dict[str, Callable[[int], object]] = {
        "ours": lambda tokens: predictor.predict(images, texts, max_new_tokens=tokens, batch_size=len(images)),
        "static": lambda tokens: theirs(tokens, cache_implementation="static", disable_compile=True),
        "one answer": lambda tokens: theirs(tokens, 1),
        "its attention recorded": lambda tokens: capture_while_generating(
            checkpoint, images[0], prompts[0], max_new_tokens=tokens
        ),
        "static, compiled": lambda tokens: theirs(tokens, cache_implementation="static"),  # default on a GPU
        "dynamic": theirs,
    }
    result: dict[str, Any] = {
        "preset": arguments.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "dtype": str(checkpoint.model.dtype), "torch": torch.__version__, "questions": len(images), "new_tokens": new,
        "seconds": {}, "failed": {},
    }  # fmt: skip
    for name, way in ways.items():
        try:
            way(new if "compiled" in name else min(new, 4))  # allocates, chooses kernels, compiles for this length
            started = clock(device)
            way(new)
            result["seconds"][name] = round(clock(device) - started, 4)
        except RuntimeError as error:  # out of memory, or a compiler that fails
            result["failed"][name] = " ".join(str(error).split())
        say(f"{name}: {result['seconds'].get(name) or result['failed'].get(name)} s")
        result |= verdict(result["seconds"])
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def verdict(seconds: dict[str, float]) -> dict[str, Any]:
    """The ratios that are known, and what the first means for the loop; the faster static cache counts."""
    found: dict[str, Any] = {}
    if "ours" in seconds and "static" in seconds:
        ratio = min(seconds["static"], seconds.get("static, compiled", math.inf)) / seconds["ours"]
        found = {"static / ours": round(ratio, 2), "our loop": "stays" if ratio >= WORTH else "goes"}
    if "one answer" in seconds and "its attention recorded" in seconds:
        found["attention recorded / not"] = round(seconds["its attention recorded"] / seconds["one answer"], 3)
    return found


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds a question of each way, those until the loop's first token, and the answers that are looked at."""

    seconds: dict[str, float]
    first: float
    alone: list[list[int]]
    batched: list[Any]
    constrained: list[Any]
    few: list[Any]  # constrained, with several questions about an image

    def loop_as_long(self, answers: list[Any], new_tokens: int) -> float:
        """What the loop needs for as many tokens as these answers have."""
        tokens = sum(len(one.token_ids) for one in answers) / len(answers)
        return self.first + (self.seconds["loop"] - self.first) * (tokens - 1) / (new_tokens - 1)

    def ratios(self, new_tokens: int) -> dict[str, float]:
        """How many times the loop's speed; a constrained way against a loop that makes as many tokens."""
        found = {
            name: self.seconds["loop"] / self.seconds[name] for name in ("batched", "shared") if name in self.seconds
        }
        for name, answers in (("constrained", self.constrained), ("shared constrained", self.few)):
            if answers:
                found[name] = self.loop_as_long(answers, new_tokens) / self.seconds[name]
        return found


def described(
    arguments: argparse.Namespace, checkpoint: Any, count: int, batch: int, measured: Measured
) -> dict[str, Any]:
    """What is written: on what it ran, the times, the ratios against their targets, and whether tokens are the same."""
    import torch

    device = checkpoint.model.device
    equal = [same_tokens(one.token_ids, ids) for one, ids in zip(measured.batched, measured.alone, strict=False)]
    ratios, targets = measured.ratios(arguments.new_tokens), TARGETS[device.type]
    constrained = measured.constrained
    return {
        "preset": arguments.preset,
        "parameters": sum(one.numel() for one in checkpoint.model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "questions": count,
        "new_tokens": arguments.new_tokens,
        "batch_size": batch,
        "seconds_a_question": {name: round(value, 4) for name, value in measured.seconds.items()},
        "questions_a_second": {name: round(1 / value, 4) for name, value in measured.seconds.items()},
        "ratio_to_loop": {name: round(value, 2) for name, value in ratios.items()},
        "targets": targets,
        "reached": {name: ratios[name] >= target for name, target in targets.items()},
        "tokens_equal": sum(share == 1 for share in equal) / len(measured.alone),
        "tokens_equal_before_the_first_difference": round(sum(equal) / len(measured.alone), 4),
        "questions_an_image": {"shared": arguments.per_image, "others": 1},
        "seconds_to_the_loops_first_token": round(measured.first, 4),
        "constrained_tokens": round(sum(len(one.token_ids) for one in constrained) / len(constrained), 1),
        "parsable": sum(one.response.parsable for one in constrained) / len(constrained),
    }


class Steps:
    """What is being measured, on standard error, with the seconds since the start."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def __call__(self, step: str) -> None:
        print(f"{self.elapsed:7.1f} s  {step}", file=sys.stderr, flush=True)


def clock(device: Any) -> float:
    import torch

    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def same_tokens(these: Sequence[int], those: Sequence[int]) -> float:
    """The share of the tokens before the first that differs."""
    pairs = enumerate(zip(these, those, strict=False))
    length = max(len(these), len(those))
    return next((place for place, (one, other) in pairs if one != other), min(len(these), len(those))) / length


def rendered(text: str) -> str:
    from trace_vlm.core.prompts import question_text, render_prompt

    return render_prompt(question_text(text, True))


def largest_batch(predictor: Any, texts: list[str], new_tokens: int) -> int:
    from trace_vlm.inference.predictor import Decoding

    return int(predictor.largest_batch([rendered(text) for text in texts], Decoding(max_new_tokens=new_tokens)))


def bandwidth(
    arguments: argparse.Namespace, predictor: Any, batch: int, texts: list[str], seconds: float, prompt: float
) -> dict[str, float]:
    """Tokens a second over everything and of the decoding alone, against what the memory's bandwidth allows: in each
    step the weights are read once (of the embeddings a few rows, but the head as well, which is as large) and the
    cache of every answer.

    Args:
        seconds: a question's.
        prompt: what of them passes until its first token.
    """
    import torch

    from trace_vlm.inference.vision_cache import row_bytes

    model, new = predictor.checkpoint.model, arguments.new_tokens
    weights = sum(one.numel() * one.itemsize for one in model.model.language_model.parameters())
    tokens = sum(predictor.prompt_tokens(rendered(text)) for text in texts) / len(texts) + new / 2
    cache = row_bytes(model, round(tokens)) - row_bytes(model, 0)
    bound = batch * arguments.bandwidth / (weights + batch * cache)
    decoding = (new - 1) / (seconds - prompt)
    return {
        "tokens_a_second": round(new / seconds, 1),
        "seconds_to_the_first_token": round(prompt, 4),
        "decoding_tokens_a_second": round(decoding, 1),
        "bound_tokens_a_second": round(bound, 1),
        "share_of_the_bound": round(decoding / bound, 3),
        "memory_gib": round(torch.cuda.max_memory_allocated(model.device) / 2**30, 1),
    }


def loop_at(checkpoint: Any, images: list[Any], texts: list[str], tokens: int) -> list[list[int]]:
    """The reference's way: each question alone, through transformers' generate."""
    import torch

    found = []
    for image, text in zip(images, texts, strict=True):
        inputs = checkpoint.inputs([image], [rendered(text)])
        with torch.inference_mode():
            ids = checkpoint.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, use_cache=True,
                pad_token_id=checkpoint.tokenizer.eos_token_id,
            )  # fmt: skip
        found.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def questions(count: int) -> tuple[list[Any], list[str]]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((640, 480)) for _ in range(count)]
    texts = [
        f"Find free space {WAYS[place % len(WAYS)]} the {SUBJECTS[place // len(WAYS) % len(SUBJECTS)]}."
        for place in range(count)
    ]
    return images, texts


def make_model(preset: str, device: Any) -> Any:
    """Random weights, drawn where they stay and in the type they have there.

    The logit of the token that ends an answer, of the image's and of those beyond the tokenizer's is always 0: they are
    never the greatest, in either way, and an answer ends where a grammar says so.
    """
    import torch

    from trace_vlm.model import build
    from trace_vlm.model.families.llava import LlavaCheckpoint
    from trace_vlm.model.presets import Preset

    text, vision = SIZES[preset]
    tokenizer = make_tokenizer()
    shape = {"vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    pixels = {"image_size": 336, "patch_size": 14, "projection_dim": 768}
    index = tokenizer.convert_tokens_to_ids("<image>")
    made = Preset(preset, {**text, **shape}, {**vision, **pixels}, image_token_index=index)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = build.build_model(made, tokenizer)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from a tie between two tokens
        model.lm_head.weight[[tokenizer.eos_token_id, index, *range(len(tokenizer), shape["vocab_size"])]] = 0
    return LlavaCheckpoint(model.eval(), build.build_processor(tokenizer, model.config.vision_config), preset, preset)


def make_tokenizer() -> Any:
    """Pieces about as long as Vicuna's: words of the repository's own documentation, digits one by one."""
    import tempfile

    import sentencepiece
    from transformers import LlamaTokenizer

    from trace_vlm.core.reasoning import HEADINGS, render
    from trace_vlm.model.processor import with_image_token

    files = [
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("docs/*.md")),
        ROOT / "trace/core/prompts.py",
        Path(__file__),
    ]
    lines = [line for file in files for line in re.split(r"\n+", file.read_text(encoding="utf-8")) if line.strip()]
    lines += [render(dict.fromkeys(HEADINGS, "The object."), [])] * 20
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=f"{folder}/tokenizer", model_type="bpe", vocab_size=3000,
            hard_vocab_limit=False, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
            max_sentencepiece_length=16, num_threads=1, minloglevel=2,
        )  # fmt: skip
        return with_image_token(
            LlamaTokenizer.from_pretrained(folder, legacy=False, add_bos_token=True, pad_token="<unk>")
        )


if __name__ == "__main__":
    raise SystemExit(main())
