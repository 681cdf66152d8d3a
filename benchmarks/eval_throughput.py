"""Questions a second: a loop over `generate` at batch 1, as the reference evaluates, against the project's batches.

    OMP_NUM_THREADS=1 python benchmarks/eval_throughput.py --out eval_throughput.json            # CPU: 8 layers of 1024
    python benchmarks/eval_throughput.py --out eval_throughput.json --preset 13b                 # GPU: bfloat16

Random weights, 128 new tokens, greedy. All ways are measured in one process, one after the other:

    loop                transformers' generate, one question at a time
    batched             the same tokens, which is checked (in bfloat16: the share that is equal is printed)
    constrained         --constrain: headings and punctuation are fast-forwarded
    shared, shared constrained    the same with several questions about an image

Constrained answers may be shorter than 128 tokens: they are set against a loop that makes as many tokens as they have
(the time of its first token and of every further one are known).

On a CPU seconds are those of the process, so that other work on the machine does not count. On a GPU they are the
clock's, and tokens a second of decoding are set against the bound that reading the weights and the cache once a step
puts on a batch (--bandwidth, in bytes a second).
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Callable
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
}  # fmt: skip
TARGETS = {"cpu": {"batched": 2.3, "constrained": 3.0}, "cuda": {"batched": 15.0}}
SUBJECTS = ["red mug", "small blue bowl", "wooden spoon", "green plate beside the window", "yellow box", "white cup"]
WAYS = ["left of", "right of", "behind", "in front of", "next to", "on the left part of the table, near"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SIZES, default="1024x8")
    parser.add_argument("--questions", type=int, default=32, help="for the batched ways")
    parser.add_argument("--loop-questions", type=int, default=4, help="for the loop, whose rate is steady")
    parser.add_argument("--batch-size", type=int, default=None, help="as many as fit by default")
    parser.add_argument("--per-image", type=int, default=4, help="questions about an image, for the shared way")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="of the GPU's memory, bytes a second")
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments)
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["tokens_equal"] == 1.0 or result["dtype"] != "float32" else 1


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from trace_vlm.model.predictor import Predictor

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = make_model(arguments.preset, device)
    predictor = Predictor(checkpoint)
    images, texts = questions(arguments.questions)
    clock = time.perf_counter if device == "cuda" else time.process_time
    new = {"max_new_tokens": arguments.new_tokens, "batch_size": arguments.batch_size}

    def rate(run: Callable[[], list[Any]]) -> tuple[list[Any], float]:
        if device == "cuda":
            torch.cuda.synchronize()
        started = clock()
        found = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return found, (clock() - started) / len(found)

    def loop(count: int, tokens: int) -> tuple[list[Any], float]:
        return rate(lambda: loop_at(checkpoint, predictor, images[:count], texts[:count], tokens))

    predictor.predict(images[:2], texts[:2], max_new_tokens=4)  # first calls allocate and choose kernels
    predictor.predict(images[:1], texts[:1], constrain=True, max_new_tokens=arguments.new_tokens)
    loop(1, 4)
    seconds: dict[str, float] = {}
    count = arguments.loop_questions
    alone, seconds["loop"] = loop(count, arguments.new_tokens)
    _, first = loop(count, 1)
    batched, seconds["batched"] = rate(lambda: predictor.predict(images, texts, **new))
    constrained, seconds["constrained"] = rate(lambda: predictor.predict(images, texts, constrain=True, **new))
    shared = [images[place // arguments.per_image] for place in range(len(images))]
    _, seconds["shared"] = rate(lambda: predictor.predict(shared, texts, **new))
    few, seconds["shared constrained"] = rate(lambda: predictor.predict(shared, texts, constrain=True, **new))

    def as_long(answers: list[Any]) -> float:
        """What the loop needs for as many tokens as these answers have."""
        tokens = sum(len(one.token_ids) for one in answers) / len(answers)
        return first + (seconds["loop"] - first) * (tokens - 1) / (arguments.new_tokens - 1)

    equal = sum(list(one.token_ids) == ids for one, ids in zip(batched, alone, strict=False)) / count
    ratios = {name: seconds["loop"] / seconds[name] for name in ("batched", "shared")}
    ratios["constrained"] = as_long(constrained) / seconds["constrained"]
    ratios["shared constrained"] = as_long(few) / seconds["shared constrained"]
    decoding = predictor.checkpoint.model
    return {
        "preset": arguments.preset,
        "parameters": sum(one.numel() for one in decoding.parameters()),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "dtype": str(decoding.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "new_tokens": arguments.new_tokens,
        "batch_size": arguments.batch_size or predictor.largest_batch(texts, _decoding(arguments)),
        "seconds_a_question": {name: round(value, 4) for name, value in seconds.items()},
        "questions_a_second": {name: round(1 / value, 4) for name, value in seconds.items()},
        "ratio_to_loop": {name: round(value, 2) for name, value in ratios.items()},
        "targets": TARGETS[device],
        "tokens_equal": equal,
        "questions_an_image": {"shared": arguments.per_image, "others": 1},
        "seconds_to_the_loops_first_token": round(first, 4),
        "constrained_tokens": round(sum(len(one.token_ids) for one in constrained) / len(constrained), 1),
        "parsable": sum(one.response.parsable for one in constrained) / len(constrained),
        **(_bound(arguments, predictor, seconds["batched"], texts) if device == "cuda" else {}),
    }


def _decoding(arguments: argparse.Namespace) -> Any:
    from trace_vlm.model.predictor import Decoding

    return Decoding(max_new_tokens=arguments.new_tokens)


def _bound(arguments: argparse.Namespace, predictor: Any, seconds: float, texts: list[str]) -> dict[str, float]:
    """Tokens a second over the whole run, and what the memory's bandwidth would allow the decoding alone."""
    model = predictor.checkpoint.model
    text = model.config.text_config
    batch = min(len(texts), arguments.batch_size or predictor.largest_batch(texts, _decoding(arguments)))
    weights = sum(one.numel() * one.itemsize for one in model.model.language_model.parameters())
    columns = predictor.checkpoint.patches**2 + 150 + arguments.new_tokens / 2
    cache = 2 * columns * text.num_hidden_layers * text.hidden_size * model.dtype.itemsize
    return {
        "tokens_a_second": round(arguments.new_tokens / seconds, 1),
        "bound_tokens_a_second": round(batch * arguments.bandwidth / (weights + batch * cache), 1),
    }


def loop_at(checkpoint: Any, predictor: Any, images: list[Any], texts: list[str], tokens: int) -> list[list[int]]:
    """The reference's way: each question alone, through transformers' generate."""
    import torch

    from trace_vlm.prompts import question_text, render_prompt

    found = []
    for image, text in zip(images, texts, strict=True):
        inputs = checkpoint.inputs([image], [render_prompt(question_text(text, True))])
        with torch.inference_mode():
            ids = checkpoint.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, suppress_tokens=predictor._never(), use_cache=True,
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


def make_model(preset: str, device: str) -> Any:
    """Random weights; a token ends an answer only where a grammar says so, since its logit is always 0."""
    import torch

    from trace_vlm.model import build
    from trace_vlm.model.checkpoint import Checkpoint
    from trace_vlm.model.presets import Preset

    text, vision = SIZES[preset]
    tokenizer = make_tokenizer()
    shape = {"vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    pixels = {"image_size": 336, "patch_size": 14, "projection_dim": 768}
    index = tokenizer.convert_tokens_to_ids("<image>")
    made = Preset(preset, {**text, **shape}, {**vision, **pixels}, image_token_index=index)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build.build(made, tokenizer).to(dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from a tie between two tokens
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    return Checkpoint(model.to(device).eval(), build.processor(tokenizer, model.config.vision_config), preset, preset)


def make_tokenizer() -> Any:
    """Pieces about as long as Vicuna's: words of the repository's own documentation, digits one by one."""
    import tempfile

    import sentencepiece
    from transformers import LlamaTokenizer

    from trace_vlm.model.build import with_image_token
    from trace_vlm.reasoning import HEADINGS, render

    files = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "trace/prompts.py", Path(__file__)]
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
