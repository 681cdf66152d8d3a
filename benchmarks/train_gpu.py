"""Training on a GPU: tokens a second, MFU and peak memory, packed against padded, SDPA against varlen, in one script.

    python benchmarks/train_gpu.py --out train_gpu.json           one GPU, under nine minutes
    python benchmarks/train_gpu.py --tiny --out train_gpu.json    a CPU with a tiny model: tests the script

Random weights at the real dimensions, 336-pixel images, lengths as instruction data has them (log-uniform text behind
an image of 576 tokens). Each case is a fresh process with a time limit: 7B LoRA, 13B LoRA, 7B full fine-tuning. Adam's
float32 states of a full 7B take more than one GPU's memory, so that case steps with plain SGD and says so; time and MFU
of forward and backward are the same. MFU counts useful operations (`trace.train.arithmetic`) against the maker's dense
bf16 peak; what gradient checkpointing computes a second time is not counted. A case that does not fit says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = [  # (model, what of the llm learns, layout, attention)
    ("trace-7b", "lora", "padded", "sdpa"),
    ("trace-7b", "lora", "packed", "varlen"),
    ("trace-7b", "lora", "packed", "sdpa"),
    ("trace-7b", "full", "padded", "sdpa"),
    ("trace-7b", "full", "packed", "varlen"),
    ("trace-13b", "lora", "padded", "sdpa"),
    ("trace-13b", "lora", "packed", "varlen"),
]
LIMIT = 75.0  # seconds of one case
ROWS, LINE, SHORTEST, LONGEST = 32, 8192, 32, 1024
RANK = 128


def model_of(name: str, tiny: bool, device: Any) -> Any:
    """Random weights in bfloat16, drawn on the device."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

    from trace_vlm.model.build import llava_configuration
    from trace_vlm.model.presets import PRESETS

    preset = PRESETS[name]
    text, vision = dict(preset.text), dict(preset.vision)
    if tiny:
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"num_key_value_heads": 2, "vocab_size": 512}
        vision |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": 56}
    config = llava_configuration(LlamaConfig(**text), CLIPVisionConfig(**vision), text["vocab_size"] - 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)


def rows_of(model: Any, count: int, seed: int = 0) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    config, rows = model.config, []
    image = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    longest = LONGEST if config.text_config.hidden_size > 64 else 64
    for index in range(count):
        text = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(longest))))
        words = torch.tensor(rng.integers(3, config.text_config.vocab_size - 64, text))
        ids = torch.cat([torch.full((image,), config.image_token_index), words])
        labels = torch.where(torch.arange(len(ids)) >= len(ids) - text // 2, ids, -100)
        pixels = torch.tensor(
            rng.standard_normal((3, config.vision_config.image_size, config.vision_config.image_size))
        )
        rows.append({
            "row": index, "input_ids": ids, "labels": labels, "kinds": torch.full_like(ids, -1), "pixel_values":
            pixels.to(torch.bfloat16), "position_ids": torch.arange(len(ids)), "branch": torch.zeros_like(ids),
        })  # fmt: skip
    return rows


def run_case(name: str, trained: str, layout: str, attention: str, tiny: bool, seconds: float) -> dict[str, Any]:
    import numpy as np
    import torch

    from trace_vlm.data.collate import Collator
    from trace_vlm.data.packing import in_order, laid_out
    from trace_vlm.train import packed
    from trace_vlm.train.arithmetic import Work, dimensions, training_flops
    from trace_vlm.train.config import Lora, Trainable, TrainConfig
    from trace_vlm.train.parts import choose
    from trace_vlm.train.tally import peak_flops, peak_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainConfig(
        name, ["none"], "none", trainable=Trainable(llm=trained),
        lora=Lora(r=4 if tiny else RANK) if trained == "lora" else None,
    )  # fmt: skip
    model = choose(model_of(name, tiny, device), config).to(device)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kernel = packed.IMPLEMENTATION if layout == "packed" else "sdpa"
    model.set_attn_implementation({"text_config": kernel, "vision_config": "sdpa"})
    if attention == "sdpa":
        packed.uses_varlen = lambda tensor: False
    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5) if trained == "lora" else torch.optim.SGD(learning, lr=1e-5)
    rows = rows_of(model, ROWS)
    lengths = np.array([len(row["input_ids"]) for row in rows], np.int32)
    everything = np.arange(ROWS)
    lines = -(-int(lengths.sum()) // (LINE if not tiny else 512))
    bins = laid_out(everything, lengths, lines) if layout == "packed" else in_order(everything, 8)
    collate = Collator(0, packed=layout == "packed")
    size = dimensions(model.config.text_config.to_dict(), model.config.vision_config.to_dict(), name)
    learned = sum(int((row["labels"] != -100).sum()) for row in rows)
    work = Work(float(lengths.sum()), float((lengths.astype(float) ** 2).sum()), learned, ROWS)
    model.train()

    def one_step() -> float:
        started = time.perf_counter()
        for line in bins:
            batch = {
                key: value.to(device) if torch.is_tensor(value) else value
                for key, value in collate([rows[row] for row in line]).items()
            }
            names = ("input_ids", "position_ids", "attention_mask", "pixel_values")
            call = {key: batch[key] for key in names if key in batch}
            if layout == "packed":
                call["line"] = packed.Line(tuple(batch["row_ends"].tolist()), None, device)
            columns = (batch["labels"][:, 1:] != -100).any(0).nonzero()[:, 0]
            logits = model(**call, logits_to_keep=columns, use_cache=False).logits.flatten(0, 1).float()
            wanted = batch["labels"][:, columns + 1].flatten()
            loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum") / learned
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    one_step()  # warms up, and makes the optimizer's states
    deadline, times = time.monotonic() + seconds, []
    while not times or (time.monotonic() < deadline and len(times) < 5):
        times.append(one_step())
    spent = sorted(times)[len(times) // 2]
    peak = peak_flops(device)
    return {
        "tokens_per_second": lengths.sum() / spent,
        "samples_per_second": ROWS / spent,
        "mfu": training_flops(size, work, config.modes) / spent / peak if peak else None,
        "peak_memory_gib": peak_memory(device) / 2**30,
        "padding_share": 1 - lengths.sum() / sum(int(lengths[line].max()) * len(line) for line in bins)
        if layout == "padded" else 0.0,
        "optimizer": type(optimizer).__name__,
        "steps": len(times),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("train_gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, to test this script without a GPU")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print("RESULT " + json.dumps(run_case(*CASES[args.case], args.tiny, LIMIT / 3), default=float))
        return
    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; --tiny tests the script on a CPU")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        if args.only and number not in args.only:
            continue
        told = dict(zip(("model", "llm", "layout", "attention"), case, strict=True))
        command = [sys.executable, __file__, "--case", str(number), *(["--tiny"] if args.tiny else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=None if args.tiny else LIMIT)
            found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            lines = done.stderr.strip().splitlines()
            told |= json.loads(found[0][7:]) if found else {"failed": lines[-1] if lines else str(done.returncode)}
        except subprocess.TimeoutExpired:
            told["failed"] = f"not done within {LIMIT:g} s"
        results.append(told)
        print(json.dumps(told), flush=True)
        written = {"machine": machine, "torch": torch.__version__, "tiny": args.tiny, "cases": results}
        args.out.write_text(json.dumps({**written, "ratios": ratios(results)}, indent=2) + "\n")


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Packed against padded, and varlen against SDPA, for each model and way of learning that has both."""
    speed = {
        (one["model"], one["llm"], one["layout"], one["attention"]): one["tokens_per_second"]
        for one in results
        if "tokens_per_second" in one
    }
    found = {}
    for (model, llm, layout, attention), value in speed.items():
        if layout == "packed" and (model, llm, "padded", "sdpa") in speed:
            found[f"{model} {llm}: packed ({attention}) / padded"] = value / speed[model, llm, "padded", "sdpa"]
        if attention == "varlen" and (model, llm, "packed", "sdpa") in speed:
            found[f"{model} {llm}: varlen / sdpa"] = value / speed[model, llm, "packed", "sdpa"]
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
