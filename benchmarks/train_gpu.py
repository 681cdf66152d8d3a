"""Training on a GPU: tokens a second, MFU and peak memory, packed against padded, SDPA against varlen, in one script.

    python benchmarks/train_gpu.py --out train_gpu.json           one GPU, under nine minutes
    python benchmarks/train_gpu.py --tiny --out train_gpu.json    a CPU with a tiny model: tests the script

Random weights at the real dimensions, 336-pixel images, lengths as instruction data has them (log-uniform text behind
an image of 576 tokens). Each case is a fresh process with a time limit: 7B LoRA, 13B LoRA, 7B full fine-tuning.

LoRA runs in DeepSpeed's ZeRO-2 engine, as its recipe does, with float32 copies of what learns; beside its peak memory
stands what `trace.train.memory` predicts. Adam's float32 states of a full 7B take more than one GPU's memory, so that
case steps with plain SGD and says so; time and MFU of forward and backward are the same. MFU counts useful operations
(`trace.train.arithmetic`) against the maker's dense bf16 peak; what gradient checkpointing computes a second time is
not counted. A case that does not fit says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    llm: str  # how it learns
    layout: str
    attention: str
    recompute: bool = True  # gradient checkpointing
    line: int = 8192  # tokens of a packed forward pass


CASES = [
    Case("trace-7b", "lora", "padded", "sdpa"),
    Case("trace-7b", "lora", "packed", "varlen"),
    Case("trace-7b", "lora", "packed", "sdpa"),
    Case("trace-7b", "lora", "packed", "varlen", recompute=False, line=4096),
    Case("trace-13b", "lora", "padded", "sdpa"),
    Case("trace-13b", "lora", "packed", "varlen"),
    Case("trace-7b", "full", "padded", "sdpa"),
    Case("trace-7b", "full", "packed", "varlen"),
]
LIMIT = 75.0  # seconds of one case
TIMED = 12.0  # seconds of its steps, after the first
ROWS, MICRO_BATCH, SHORTEST, LONGEST = 32, 8, 32, 1024
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


def configuration(case: Case, tiny: bool) -> Any:
    from trace_vlm.train.config import Lora, Trainable, TrainConfig

    lora = case.llm == "lora"
    return TrainConfig(
        case.model, ["none"], "none", trainable=Trainable(llm=case.llm), lora=Lora(r=4 if tiny else RANK) if lora else
        None, gradient_checkpointing=case.recompute, packing=case.layout == "packed", pack_tokens=case.line,
        micro_batch_size=MICRO_BATCH, deepspeed="zero2" if lora else None,
    )  # fmt: skip


def bins_of(case: Case, lengths: Any, tiny: bool) -> list[list[int]]:
    import numpy as np

    from trace_vlm.data.packing import in_order, laid_out

    everything = np.arange(len(lengths))
    line = 512 if tiny else case.line
    if case.layout == "padded":
        return in_order(everything, MICRO_BATCH)
    passes = -(-int(lengths.sum()) // line)
    while True:
        bins = laid_out(everything, lengths, passes)
        if int(lengths[bins[0]].sum()) <= line:
            return bins
        passes += 1


def stepper(model: Any, case: Case, device: Any) -> tuple[Callable[[Any, bool], None], Callable[[], None], str]:
    """(backward of a loss, the step's last one or not; step; the optimizer's name).

    DeepSpeed's engine for LoRA, plain SGD for a full fine-tune.
    """
    import torch

    learning = [one for one in model.parameters() if one.requires_grad]
    if case.llm == "full" or importlib.util.find_spec("deepspeed") is None or device.type != "cuda":
        kind = torch.optim.SGD if case.llm == "full" else torch.optim.AdamW
        optimizer = kind(learning, lr=1e-5)

        def step() -> None:
            optimizer.step()
            optimizer.zero_grad()

        return (lambda loss, last: loss.backward()), step, kind.__name__
    import deepspeed

    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    settings = json.loads((ROOT / "configs/deepspeed/zero2.json").read_text())
    settings |= {"bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    settings |= {"train_batch_size": 1, "gradient_clipping": 1.0}
    settings["zero_optimization"]["reduce_bucket_size"] = model.config.text_config.hidden_size**2
    optimizer = torch.optim.AdamW(learning, lr=1e-5)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def backward(loss: Any, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)

    return backward, engine.step, "AdamW in ZeRO-2"


def run_case(case: Case, tiny: bool) -> dict[str, Any]:
    import numpy as np
    import torch
    from torch.nn import functional

    from trace_vlm.data.collate import Collator
    from trace_vlm.train import packed
    from trace_vlm.train.arithmetic import Work, dimensions, training_flops
    from trace_vlm.train.parts import choose
    from trace_vlm.train.tally import peak_flops, peak_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, is_packed = configuration(case, tiny), case.layout == "packed"
    model = choose(model_of(case.model, tiny, device), config).to(device)
    if case.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.set_attn_implementation(
        {"text_config": packed.IMPLEMENTATION if is_packed else "sdpa", "vision_config": "sdpa"}
    )
    if case.attention == "sdpa":
        packed.uses_varlen = lambda tensor: False
    rows = rows_of(model, ROWS)
    lengths = np.array([len(row["input_ids"]) for row in rows], np.int32)
    bins = bins_of(case, lengths, tiny)
    collate = Collator(0, packed=is_packed)
    size = dimensions(model.config.text_config.to_dict(), model.config.vision_config.to_dict(), case.model)
    learned = sum(int((row["labels"] != -100).sum()) for row in rows)
    work = Work(float(lengths.sum()), float((lengths.astype(float) ** 2).sum()), learned, ROWS)
    model.train()
    backward, step, optimizer = stepper(model, case, device)

    def one_step() -> float:
        started = time.perf_counter()
        for line in bins:
            batch = collate([rows[row] for row in line])
            batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
            names = ("input_ids", "position_ids", "attention_mask", "pixel_values")
            call = {key: batch[key] for key in names if key in batch}
            if is_packed:
                call["line"] = packed.Line(tuple(batch["row_ends"]), None, device)
            columns = (batch["labels"][:, 1:] != -100).any(0).nonzero()[:, 0]
            logits = model(**call, logits_to_keep=columns, use_cache=False).logits.float().flatten(0, 1)
            wanted = batch["labels"][:, columns + 1].flatten()
            log_probs = logits.log_softmax(-1)  # as LanguageTrainer.compute_loss
            loss = functional.nll_loss(log_probs, wanted, ignore_index=-100, reduction="sum") / learned
            backward(loss, line is bins[-1])
            del logits, log_probs, loss
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    one_step()  # warms up, and makes the optimizer's states
    deadline, times = time.monotonic() + TIMED, []
    while not times or (time.monotonic() < deadline and len(times) < 5):
        times.append(one_step())
    spent = sorted(times)[len(times) // 2]
    peak = peak_flops(device)
    widest = max(int(lengths[line].max()) for line in bins)
    columns = max(labelled(rows, line) for line in bins)
    planned = plan(
        config, size, optimizer, lengths.mean() if is_packed else widest, learned / ROWS if is_packed else columns / 2
    )
    return {
        "tokens_per_second": lengths.sum() / spent,
        "samples_per_second": ROWS / spent,
        "mfu": training_flops(size, work, config.modes) / spent / peak if peak else None,
        "peak_memory_gib": peak_memory(device) / 2**30,
        "planned_gib": {name: value / 2**30 for name, value in planned.items()},
        "padding_share": 0.0
        if is_packed
        else 1 - lengths.sum() / sum(int(lengths[line].max()) * len(line) for line in bins),
        "longest_row": widest,
        "learned_a_row": learned / ROWS,
        "labelled_columns": columns,
        "tokens_a_row": lengths.sum() / ROWS,
        "optimizer": optimizer,
        "steps": len(times),
        "seconds_a_step": spent,
    }


def labelled(rows: list[dict[str, Any]], line: list[int]) -> int:
    """Columns of a padded batch in which some row has a label: there logits are computed for all of its rows."""
    import numpy as np

    seen = np.zeros(max(len(row["input_ids"]) for row in rows), bool)
    for row in line:
        labels = rows[row]["labels"].numpy()
        seen[: len(labels)] |= labels != -100
    return int(seen.sum())


def plan(config: Any, size: Any, optimizer: str, length: float, learned: float) -> dict[str, float]:
    """What the plan predicts for this case, bytes by part; without DeepSpeed there are no float32 copies.

    Args:
        length: of a row, the longest where rows are padded.
        learned: tokens of a row that carry a label; half the labelled columns where rows are padded.
    """
    from trace_vlm.train.arithmetic import trained_params
    from trace_vlm.train.memory import Setting, memory

    found = memory(config, size, Setting("ZeRO-2", 2), 1, round(length), config.micro_batch_size, learned)
    if "ZeRO" not in optimizer:
        rank = config.lora.r if config.lora else 0
        one = 2 * trained_params(size, config.modes, rank)  # in bfloat16
        states = 2 * one if optimizer == "AdamW" else 0.0
        found = dataclasses.replace(found, optimizer=states, gradients=one, step=0.0, buffers=0.0)
    return {**dataclasses.asdict(found), "total": found.total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("train_gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, to test this script without a GPU")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print("RESULT " + json.dumps(run_case(CASES[args.case], args.tiny), default=float))
        return
    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; --tiny tests the script on a CPU")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        if args.only and number not in args.only:
            continue
        told: dict[str, Any] = dataclasses.asdict(case)
        command = [sys.executable, __file__, "--case", str(number), *(["--tiny"] if args.tiny else [])]
        started = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=None if args.tiny else LIMIT)
            found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            lines = done.stderr.strip().splitlines()
            told |= json.loads(found[0][7:]) if found else {"failed": lines[-1] if lines else str(done.returncode)}
        except subprocess.TimeoutExpired:
            told["failed"] = f"not done within {LIMIT:g} s"
        told["seconds_in_all"] = round(time.monotonic() - started, 1)
        results.append(told)
        print(json.dumps(told), flush=True)
        written = {"machine": machine, "torch": torch.__version__, "tiny": args.tiny, "cases": results}
        args.out.write_text(json.dumps({**written, "ratios": ratios(results)}, indent=2) + "\n")


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Packed against padded, and varlen against SDPA, for each model and way of learning that has both."""
    speed = {
        (one["model"], one["llm"], one["layout"], one["attention"]): one["tokens_per_second"]
        for one in results
        if "tokens_per_second" in one and one["recompute"]
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
