"""Training on a GPU: tokens a second, MFU and peak memory, packed against padded, SDPA against varlen, in one script.

    python benchmarks/train_gpu.py --out train_gpu.json                    one GPU, under nine minutes: LLaVA
    python benchmarks/train_gpu.py --model qwen3-vl --out train_gpu.json   one GPU, five minutes: Qwen3-VL 4B and 8B
    python benchmarks/train_gpu.py --tiny --out train_gpu.json             a CPU, a tiny model: tests the script

Random weights at the real dimensions, lengths as instruction data has them: log-uniform text behind an image of 336
pixels and 576 tokens, or for Qwen3-VL of 640 x 480 pixels and 300 tokens, as its own processor makes it. The cases of
a model and way of learning share a process with a time limit, so that what `compile: true` made for one serves the
next: 7B full fine-tuning, 7B LoRA, 13B LoRA, 4B and 8B LoRA. Every result is printed as soon as it is there.

LoRA steps with torch's AdamW, or where `engine` says so in DeepSpeed's ZeRO-2, as its recipe does, with float32 copies
of what learns. Adam's float32 states of a full 7B take more than one GPU's memory, so that case steps with plain SGD
and says so; time and MFU of forward and backward are the same. Beside the peak memory stands what `trace.train.memory`
predicts. MFU counts useful operations (the same module) against the maker's dense bf16 peak; what gradient
checkpointing computes a second time is not counted. A case that does not fit says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
    compiled: bool = False  # compile: true
    engine: str = "torch"  # what steps: torch's optimizer, or zero2
    rank: int = 128  # of LoRA

    @property
    def group(self) -> tuple[str, str]:
        return self.model, self.llm


CASES = [
    Case("trace-7b", "full", "packed", "varlen", recompute=False, compiled=True),
    Case("trace-7b", "full", "padded", "sdpa", compiled=True),
    Case("trace-7b", "full", "packed", "varlen", compiled=True),
    Case("trace-7b", "full", "packed", "sdpa", compiled=True),
    Case("trace-7b", "lora", "packed", "varlen", recompute=False, compiled=True),
    Case("trace-7b", "lora", "packed", "varlen", recompute=False, compiled=True, engine="zero2"),
    Case("trace-7b", "lora", "packed", "varlen", compiled=True, engine="zero2"),
    Case("trace-7b", "lora", "padded", "sdpa", compiled=True, engine="zero2"),
    Case("trace-7b", "lora", "packed", "varlen", recompute=False, compiled=True, engine="zero2"),
    Case("trace-13b", "lora", "packed", "varlen", engine="zero2"),
    Case("trace-13b", "lora", "padded", "sdpa", engine="zero2"),
    Case("trace-13b", "lora", "packed", "varlen", False, line=4096, compiled=True, engine="zero2"),
    Case("qwen3-vl-4b", "lora", "packed", "varlen", rank=8),
    Case("qwen3-vl-4b", "lora", "padded", "sdpa", rank=8),
    Case("qwen3-vl-4b", "lora", "packed", "varlen", recompute=False, rank=8),
    Case("qwen3-vl-4b", "lora", "packed", "varlen", recompute=False, compiled=True, rank=8),
    Case("qwen3-vl-8b", "lora", "packed", "varlen", rank=8),
    Case("qwen3-vl-8b", "lora", "padded", "sdpa", rank=8),
    Case("qwen3-vl-8b", "lora", "packed", "varlen", recompute=False, rank=8),
]
LIMITS = {("trace-7b", "full"): 150.0, ("trace-7b", "lora"): 240.0, ("trace-13b", "lora"): 160.0,
          ("qwen3-vl-4b", "lora"): 190.0, ("qwen3-vl-8b", "lora"): 130.0}  # seconds  # fmt: skip
TIMED = 7.0  # seconds of a case's steps, after the first
ROWS, MICRO_BATCH, SHORTEST, LONGEST = 32, 8, 32, 1024
# The published text and vision configurations; what both have is in `qwen3_vl`.
QWEN3_VL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3-vl-4b": ({"hidden_size": 2560, "intermediate_size": 9728}, {"depth": 24, "hidden_size": 1024,
                    "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}),
    "qwen3-vl-8b": ({"hidden_size": 4096, "intermediate_size": 12288}, {"depth": 27, "hidden_size": 1152,
                    "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}),
}  # fmt: skip


def checkpoint_of(name: str, tiny: bool, device: Any) -> Any:
    """Random weights in bfloat16, drawn on the device."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return qwen3_vl(name, tiny) if name in QWEN3_VL else llava(name, tiny)
    finally:
        torch.set_default_dtype(before)


def qwen3_vl(name: str, tiny: bool) -> Any:
    """The published dimensions, with the tokenizer, template and processor that the tests make offline."""
    from transformers import AutoModelForImageTextToText

    sys.path.insert(0, str(ROOT / "tests"))
    import tiny_models

    from trace_vlm.model.families.any import AnyCheckpoint

    config, processor = tiny_models.qwen3_vl()
    if not tiny:
        text, vision = QWEN3_VL[name]
        rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6}
        text |= {"vocab_size": 151936, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
        text |= {"head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "rope_parameters": rope}
        config.text_config.update(text)
        vision |= {"num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": text["hidden_size"]}
        config.vision_config.update(vision)
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = name == "qwen3-vl-4b"
        processor.image_processor.size = {"shortest_edge": 256**2, "longest_edge": 4096**2}
    return AnyCheckpoint(AutoModelForImageTextToText.from_config(config), processor, name, "")


def llava(name: str, tiny: bool) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

    from trace_vlm.model.build import llava_configuration
    from trace_vlm.model.families.llava import LlavaCheckpoint
    from trace_vlm.model.presets import PRESETS

    preset = PRESETS[name]
    text, vision = dict(preset.text), dict(preset.vision)
    if tiny:
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"num_key_value_heads": 2, "vocab_size": 512}
        vision |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": 56}
    config = llava_configuration(LlamaConfig(**text), CLIPVisionConfig(**vision), text["vocab_size"] - 1)
    return LlavaCheckpoint(LlavaForConditionalGeneration(config), None, name, "")


def rows_of(checkpoint: Any, count: int) -> list[dict[str, Any]]:
    """Rows as `train.dataset` makes them: `[tokens]`, or `[1, tokens]` where the processor makes them."""
    import numpy as np
    import torch
    from PIL import Image

    from trace_vlm.train.memory import IMAGE_SIZE

    rng = np.random.default_rng(0)
    config, rows, inputs = checkpoint.model.config, [], {}
    longest = LONGEST if config.text_config.hidden_size > 64 else 64
    if checkpoint.image_tokens is None:
        picture = Image.fromarray(rng.integers(0, 255, (*IMAGE_SIZE[::-1], 3), np.uint8))
        inputs = checkpoint.tensors([checkpoint.prompt("")], [picture])
        beginning, words = inputs["input_ids"][0], 300  # the tokenizer is small, and ends with its special tokens
    else:
        side, words = config.vision_config.image_size, config.text_config.vocab_size - 64
        beginning = torch.full((checkpoint.image_tokens,), config.image_token_index)
    for index in range(count):
        text = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(longest))))
        ids = torch.cat([beginning, torch.tensor(rng.integers(3, words, text))])
        labels = torch.where(torch.arange(len(ids)) >= len(ids) - text // 2, ids, -100)
        row = {"input_ids": ids, "labels": labels, "kinds": torch.full_like(ids, -1)}
        if inputs:
            row |= {
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": (ids == checkpoint.image_token_id).int(),
            }
            row = {name: tensor[None] for name, tensor in row.items()} | {"image_grid_thw": inputs["image_grid_thw"]}
            row["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
            row["position_ids"] = checkpoint.positions(row)
        else:
            pixels = torch.tensor(rng.standard_normal((3, side, side))).to(torch.bfloat16)
            row |= {"pixel_values": pixels, "position_ids": torch.arange(len(ids)), "branch": torch.zeros_like(ids)}
        rows.append({"row": index, **row})
    return rows


def configuration(case: Case, tiny: bool) -> Any:
    from trace_vlm.train.config import Lora, Trainable, TrainConfig

    trainable = Trainable(case.llm, projector="frozen" if case.model in QWEN3_VL else "full")  # as in the recipes
    return TrainConfig(
        case.model, ["none"], "none", trainable=trainable,
        lora=Lora(r=4 if tiny else case.rank) if case.llm == "lora" else None,
        gradient_checkpointing=case.recompute, packing=case.layout == "packed", pack_tokens=case.line,
        micro_batch_size=MICRO_BATCH, deepspeed="zero2" if case.engine == "zero2" else None, compile=case.compiled,
    )  # fmt: skip


def bins_of(case: Case, lengths: Any, tiny: bool) -> list[list[int]]:
    import numpy as np

    from trace_vlm.train.batching import batch_rows, pack_rows

    everything = np.arange(len(lengths))
    line = 512 if tiny else case.line
    if case.layout == "padded":
        return batch_rows(everything, MICRO_BATCH)
    passes = -(-int(lengths.sum()) // line)
    while True:
        bins = pack_rows(everything, lengths, passes)
        if int(lengths[bins[0]].sum()) <= line:
            return bins
        passes += 1


@dataclasses.dataclass(frozen=True)
class Engine:
    """What computes, differentiates and steps; `backward` takes whether this is the step's last loss."""

    forward: Callable[..., Any]
    backward: Callable[[Any, bool], None]
    step: Callable[[], None]
    optimizer: str


def torch_engine(model: Any, llm: str, on_gpu: bool) -> Engine:
    """Plain SGD for a full fine-tune, AdamW for LoRA."""
    import torch

    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer: Any = torch.optim.SGD(learning, lr=1e-6)
    if llm == "lora":
        optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=on_gpu or None)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Engine(model, lambda loss, last: loss.backward(), step, type(optimizer).__name__)


def zero2_engine(model: Any, llm: str, on_gpu: bool) -> Engine:
    """DeepSpeed's ZeRO-2 with AdamW."""
    import torch

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    os.environ |= alone if on_gpu else alone | {"DS_ACCELERATOR": "cpu"}
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # for inference; it would be compiled first
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
    settings = json.loads((ROOT / "configs/deepspeed/zero2.json").read_text())
    settings |= {"bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    settings |= {"train_batch_size": 1, "gradient_clipping": 1.0}
    settings["zero_optimization"]["reduce_bucket_size"] = model.config.text_config.hidden_size**2
    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=on_gpu or None)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def backward(loss: Any, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)

    return Engine(engine, backward, engine.step, "AdamW in ZeRO-2")


ENGINES = {"torch": torch_engine, "zero2": zero2_engine}


def run_group(cases: list[Case], tiny: bool, written: Path) -> None:
    """Measure cases that share a model; each result is a line of `written` as soon as it is there."""
    import torch

    from trace_vlm.train.memory import checkpoint_dimensions
    from trace_vlm.train.param_groups import set_trainable
    from trace_vlm.train.sft import compile_layers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = checkpoint_of(cases[0].model, tiny, device)
    size, rows = checkpoint_dimensions(checkpoint), rows_of(checkpoint, 2 * MICRO_BATCH if tiny else ROWS)
    model = set_trainable(checkpoint.model, configuration(cases[0], tiny)).to(device).train()
    engine, kind, compiled = None, None, False
    for case in cases:
        if case.compiled and not compiled:
            compile_layers(model)
            compiled = True
        if case.engine != kind:
            engine = None  # gives the other's memory back
            gc.collect()
            engine, kind = ENGINES[case.engine](model, case.llm, device.type == "cuda"), case.engine
        assert engine is not None
        try:
            found = run_case(case, tiny, model, size, rows, engine)
        except RuntimeError as error:  # out of memory, or a kernel or compiler that fails
            found = {"failed": " ".join(str(error).split())}
            model.zero_grad()
        found = {**dataclasses.asdict(case), **found}
        print(time.strftime("%H:%M:%S"), json.dumps(found, default=float), flush=True)
        with written.open("a") as file:
            file.write(json.dumps(found, default=float) + "\n")


def run_case(case: Case, tiny: bool, model: Any, size: Any, rows: list[Any], engine: Engine) -> dict[str, Any]:
    import numpy as np
    import torch

    from trace_vlm.train import varlen_attention
    from trace_vlm.train.memory import Workload, training_flops
    from trace_vlm.train.step_metrics import peak_flops, peak_memory

    device, config, is_packed = model.device, configuration(case, tiny), case.layout == "packed"
    if case.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    model.set_attn_implementation(
        {"text_config": varlen_attention.IMPLEMENTATION if is_packed else "sdpa", "vision_config": "sdpa"}
    )
    lengths = np.array([row["labels"].numel() for row in rows], np.int32)
    bins = bins_of(case, lengths, tiny)
    learned = sum(int((row["labels"] != -100).sum()) for row in rows)
    work = Workload(float(lengths.sum()), float((lengths.astype(float) ** 2).sum()), learned, len(rows))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    usual = varlen_attention.uses_varlen
    varlen_attention.uses_varlen = (lambda tensor: False) if case.attention == "sdpa" else usual
    try:
        times = timed(lambda: one_step(model.device, is_packed, bins, rows, engine, learned), device)
    finally:
        varlen_attention.uses_varlen = usual
    spent = sorted(times[1:])[(len(times) - 1) // 2]
    widest = max(int(lengths[line].max()) for line in bins)
    columns = max(labelled(rows, line) for line in bins)
    longest = max(int(lengths[line].sum()) for line in bins)
    if is_packed:
        planned = plan(config, size, engine.optimizer, lengths.mean(), learned / len(rows), longest)
    else:
        planned = plan(config, size, engine.optimizer, widest, columns / 2)
    peak = peak_flops(device)
    useful = training_flops(size, work, config.modes, config.lora_rank)
    return {
        "tokens_per_second": lengths.sum() / spent,
        "samples_per_second": len(rows) / spent,
        "mfu": useful / spent / peak if peak else None,
        "peak_memory_gib": peak_memory(device) / 2**30,
        "peak_by_plan": peak_memory(device) / planned["total"],
        "planned_gib": {name: value / 2**30 for name, value in planned.items()},
        "padding_share": 0.0
        if is_packed
        else 1 - lengths.sum() / sum(int(lengths[line].max()) * len(line) for line in bins),
        "longest_row": widest,
        "longest_line": longest,
        "learned_a_row": learned / len(rows),
        "labelled_columns": columns,
        "tokens_a_row": lengths.mean(),
        "passes": len(bins),
        "optimizer": engine.optimizer,
        "steps": len(times) - 1,
        "seconds_a_step": spent,
        "seconds_of_the_first": times[0],
    }


def timed(step: Callable[[], None], device: Any) -> list[float]:
    """Seconds of a first step, which compiles and makes the optimizer's states, and of those after it."""
    import torch

    times: list[float] = []
    while len(times) < 2 or (device.type == "cuda" and sum(times[1:]) < TIMED and len(times) < 5):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times


def one_step(
    device: Any, is_packed: bool, bins: list[list[int]], rows: list[dict[str, Any]], engine: Engine, learned: int
) -> None:
    """Forward and backward of all lines or micro-batches, and a step."""
    import torch
    from torch.nn import functional

    from trace_vlm.train import varlen_attention
    from trace_vlm.train.dataset import Collator, ProcessorCollator

    collate = (Collator if rows[0]["labels"].ndim == 1 else ProcessorCollator)(0, packed=is_packed)
    for line in bins:
        batch = collate([rows[row] for row in line])
        batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        names = ("input_ids", "position_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
        call = {key: batch[key] for key in names if key in batch}
        if is_packed:
            call["packed_rows"] = varlen_attention.PackedRows(batch["row_ends"], None, device)
        columns = (batch["labels"][:, 1:] != -100).any(0).nonzero()[:, 0]
        logits = engine.forward(**call, logits_to_keep=columns, use_cache=False).logits.float().flatten(0, 1)
        wanted = batch["labels"][:, columns + 1].flatten()
        log_probs = logits.log_softmax(-1)  # as LanguageTrainer.compute_loss
        loss = functional.nll_loss(log_probs, wanted, ignore_index=-100, reduction="sum") / learned
        engine.backward(loss, line is bins[-1])
        del logits, log_probs, loss
    engine.step()


def labelled(rows: list[dict[str, Any]], line: list[int]) -> int:
    """Columns of a padded batch in which some row has a label: there logits are computed for all of its rows."""
    import numpy as np

    seen = np.zeros(max(row["labels"].numel() for row in rows), bool)
    for row in line:
        labels = rows[row]["labels"].flatten().numpy()
        seen[: len(labels)] |= labels != -100
    return int(seen.sum())


def plan(
    config: Any, size: Any, optimizer: str, length: float, learned: float, line: int | None = None
) -> dict[str, float]:
    """What the plan predicts for this case, bytes by part; without DeepSpeed there are no float32 copies.

    Args:
        length: of a row, the longest where rows are padded.
        learned: tokens of a row that carry a label; half the labelled columns where rows are padded.
        line: tokens of the longest packed forward pass.
    """
    from trace_vlm.train.memory import Sharding, plan_memory, trained_params

    if line is not None:
        config = dataclasses.replace(config, pack_tokens=line, max_length=min(line, config.max_length))
    found = plan_memory(config, size, Sharding("ZeRO-2", 2), 1, round(length), config.micro_batch_size, learned)
    if "ZeRO" not in optimizer:
        one = 2 * trained_params(size, config.modes, config.lora_rank)  # in bfloat16
        states = 2 * one if optimizer == "AdamW" else 0.0
        found = dataclasses.replace(found, optimizer=states, gradients=one, step=0.0, buffers=0.0)
    return {**dataclasses.asdict(found), "total": found.total}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("train_gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, to test this script without a GPU")
    parser.add_argument("--model", default="trace", help="the beginning of the names of models")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    chosen = [CASES[number] for number in args.only or range(len(CASES))]
    chosen = chosen if args.only else [case for case in chosen if case.model.startswith(args.model)]
    if args.group is not None:
        run_group(chosen, args.tiny, args.group)
        return
    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; --tiny tests the script on a CPU")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results: list[dict[str, Any]] = []
    for _, group in itertools.groupby(chosen, key=lambda case: case.group):
        results += measured(list(group), args.tiny)
        written = {"machine": machine, "torch": torch.__version__, "tiny": args.tiny, "cases": results}
        args.out.write_text(json.dumps({**written, "ratios": ratios(results)}, indent=2) + "\n")


def measured(cases: list[Case], tiny: bool) -> list[dict[str, Any]]:
    """The group's results from a process of its own; a case that it did not get to says why."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "results.jsonl"
        numbers = [str(CASES.index(case)) for case in cases]
        command = [sys.executable, __file__, "--group", str(written), "--only", *numbers]
        started, limit = time.monotonic(), None if tiny else LIMITS[cases[0].group]
        try:
            done = subprocess.run(
                [*command, *(["--tiny"] if tiny else [])], stderr=subprocess.PIPE, text=True, timeout=limit
            )
            why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            why = f"not done within {limit:g} s for the group"
        found = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    results = found + [{**dataclasses.asdict(case), "failed": why} for case in cases[len(found) :]]
    print(f"{cases[0].model} {cases[0].llm}: {time.monotonic() - started:.0f} s in all", flush=True)
    return results


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
