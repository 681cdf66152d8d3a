"""Estimate a training run before it starts: memory, steps, hours, cost, disk. Reads no weights, downloads nothing.

    python -m trace.train.plan --config configs/train_13b_fft.yaml --gpus 8 --gpu-memory 80 --nodes 1

Memory (`trace.train.memory`) was checked against measured peaks of small models on a CPU and of 7B and 13B models on
one GPU; sharding over GPUs was not compared, and the table says so. Hours assume a share of the GPUs' peak (`--mfu`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..core.records import read_samples
from ..model.checkpoint import any_model
from ..model.presets import PRESETS, resolve_model
from ..utils.command import InputError, Parser, existing_file, run
from ..utils.files import read_json
from . import memory
from .config import ModelParts, TrainConfig, load_config

GIB = 2**30
ROBOPOINT_SAMPLES = 1_430_000  # of RoboPoint's data, as published
CHARACTERS_A_TOKEN, SYSTEM_TOKENS = 3.5, 40  # English in Llama's vocabulary; the system sentence
SHARDINGS = (
    memory.Sharding("ZeRO-2", 2),
    memory.Sharding("ZeRO-2, optimizer on the CPU", 2, offload_optimizer=True),
    memory.Sharding("ZeRO-3", 3),
    memory.Sharding("ZeRO-3, all on the CPU", 3, offload_optimizer=True, offload_weights=True),
)


@dataclass(frozen=True)
class DataSize:
    samples: int
    text_tokens: float  # a sample, without its image
    labelled_tokens: float
    with_image: float  # share
    source: str


def model_dimensions(config: TrainConfig) -> tuple[str, memory.ModelDimensions]:
    """Return the model's name and dimensions, from a preset, from the hub's names of its parts, or from a folder.

    Raises:
        InputError: the model is none of these; nothing is downloaded to find out.
    """
    model = config.model
    name = model.llm if isinstance(model, ModelParts) else model
    preset = PRESETS.get(name) or next((preset for preset in PRESETS.values() if name in preset.sources.values()), None)
    if preset is not None:
        text = preset.text if preset.text["vocab_size"] else {**preset.text, "vocab_size": 1408}
        return preset.name, memory.dimensions(text, preset.vision, preset.name)
    described = _read_config(Path(resolve_model(name)))
    if isinstance(model, ModelParts):
        return name, memory.dimensions(described, _read_config(Path(model.vision)), name)
    if (found := any_model(resolve_model(name))) is not None:
        from ..model.families.any import without_weights

        checkpoint = without_weights(found[0])
        config.check_model(checkpoint)
        return name, memory.checkpoint_dimensions(checkpoint)
    return name, memory.dimensions(described.get("text_config", {}), described.get("vision_config", {}), name)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        advice = f"Download it and use --set model=FOLDER, or a preset: {', '.join(PRESETS)}."
        raise InputError(f"model: {folder} is neither a folder with config.json nor a known name. {advice}")
    config = read_json(folder / "config.json")
    return dict(config.get("vision_config", config)) if config.get("model_type") == "clip" else dict(config)


def read_data(config: TrainConfig, samples: int | None, text: float, labelled: float, images: float) -> DataSize:
    """Count the samples and their lengths in the data files; assume them where the files or the counts are given."""
    files = [Path(path) for path in config.data]
    missing = next((f"; {path} does not exist" for path in files if not path.is_file()), "")
    if samples is not None:
        return DataSize(samples, text, labelled, images, "given")
    if missing or not files:
        source = f"assumed: RoboPoint's {ROBOPOINT_SAMPLES:,}{missing}"
        return DataSize(ROBOPOINT_SAMPLES, text, labelled, images, source)
    count = pictured = characters = answers = 0
    for sample in (sample for path in files for sample in read_samples(path)):
        count += 1
        pictured += sample.image is not None
        for turn in sample.conversations:
            characters += len(turn.text)
            answers += len(turn.text) * (turn.speaker == "gpt")
    if not count:
        raise InputError(f"data: no samples in {files[0]}.")
    source = f"counted in {len(files)} file(s), {CHARACTERS_A_TOKEN:g} characters a token"
    text, labelled = characters / count / CHARACTERS_A_TOKEN + SYSTEM_TOKENS, answers / count / CHARACTERS_A_TOKEN
    return DataSize(count, text, labelled, pictured / count, source)


def checkpoint_bytes(config: TrainConfig, total: int, trained: int) -> int:
    """Return the bytes of a checkpoint: the weights, and the optimizer's float32 numbers (under DeepSpeed its copy too).

    Measured on checkpoints of two processes (tests/train/test_distributed.py): ZeRO-2 writes the weights twice, once
    for `from_pretrained` and once for itself.
    """
    written = total if config.modes.llm != "lora" else trained
    if config.deepspeed is None:
        return 4 * written + 8 * trained
    settings = read_json(existing_file(config.deepspeed, "deepspeed: the configuration"))
    try:
        stage = settings["zero_optimization"]["stage"]
    except (KeyError, TypeError):
        raise InputError(f"deepspeed: no zero_optimization.stage in {config.deepspeed}.") from None
    width, copies = 2 if config.precision == "bf16" else 4, 1 if stage == 3 else 2
    return copies * width * written + 12 * trained


def format_plan(config: TrainConfig, args: argparse.Namespace, data: DataSize) -> str:
    processes = args.gpus * args.nodes
    if data.samples < config.global_batch_size:
        raise InputError(f"global_batch_size: {config.global_batch_size} is more than the {data.samples} samples.")
    name, size = model_dimensions(config)
    modes, rank = config.modes, config.lora_rank
    total, trained = memory.total_params(size, modes, rank), memory.trained_params(size, modes, rank)
    tokens, steps = data.text_tokens + data.with_image * size.image_tokens, config.steps(data.samples)
    count = steps * config.global_batch_size
    work = memory.Workload(count * tokens, count * tokens**2, count * data.labelled_tokens, count * data.with_image)
    flops = memory.training_flops(size, work, modes, rank)
    hours = flops / (processes * args.peak * 1e12 * args.mfu) / 3600
    price, disk = args.price, checkpoint_bytes(config, total, trained) / GIB
    cost = "" if price is None else f", {hours * processes * price:,.0f} dollars at {price:g} a GPU-hour"
    gpus = f"{args.nodes} x {args.gpus}" if args.nodes > 1 else str(args.gpus)
    batch = f"micro-batch {config.micro_batch_size}"
    if config.packing:
        batch = f"packed batches of {config.pack_tokens} tokens"
    rows = f"rows         counted as samples; share_image {config.share_image} makes them fewer and longer\n"
    lines = [
        f"model        {name}: {total / 1e9:.3f} B parameters, {trained / 1e9:.3f} B trained",
        f"machine      {gpus} GPUs of {args.gpu_memory:g} GB, {args.peak:g} TFLOP/s each",
        f"data         {data.samples:,} samples of about {tokens:.0f} tokens ({data.source})",
        f"steps        {steps:,} of {config.global_batch_size} samples; {work.tokens / 1e9:.3f} B tokens",
        f"time         {hours:.1f} h at an assumed {args.mfu:.0%} of peak{cost}",
        f"disk         {disk:.2f} GiB a checkpoint, {disk * (config.save_total_limit + 1):.2f} GiB with a new one beside "
        f"the last {config.save_total_limit}",
        rows if config.share_image > 1 else "",
        f"GiB of one GPU, {batch} (one GPU without sharding: measured; shards and buffers: unvalidated)",
        f"{'':<30}{'recompute':>10}{'weights':>9}{'gradients':>10}{'optimizer':>10}{'activations':>12}"
        f"{'buffers':>9}{'sum':>9}  largest micro-batch",
    ]
    length = min(config.max_length, round(tokens))
    for sharding, recompute in product(SHARDINGS, (True, False)):
        setup = (replace(config, gradient_checkpointing=recompute), size, sharding, processes, length)
        planned = memory.plan_memory(*setup, config.micro_batch_size, data.labelled_tokens)
        parts = (planned.weights, planned.gradients, planned.optimizer, planned.activations, planned.buffers)
        columns = zip((*parts, planned.total), (9, 10, 10, 12, 9, 9), strict=True)
        numbers = "".join(f"{part / GIB:>{width}.2f}" for part, width in columns)
        largest = memory.largest_micro_batch(*setup, data.labelled_tokens, args.gpu_memory * 1e9)
        fits = "does not fit" if not largest else "fits" if config.packing else f"{largest}"
        lines.append(f"{sharding.name:<30}{'yes' if recompute else 'no':>10}{numbers}  {fits}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Memory, steps, hours, cost and disk of a training run.", examples=__doc__)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of one node")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GB of one GPU")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of one GPU, dense bf16 (H100 989, A100 312)")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed share of peak that useful work reaches")
    parser.add_argument("--price", type=float, help="dollars of one GPU for an hour")
    parser.add_argument("--num-samples", type=int, help="number of samples, instead of counting them in the data files")
    parser.add_argument("--tokens", type=float, default=150.0, help="text tokens per sample, if not counted")
    parser.add_argument("--learned", type=float, help="answer tokens per sample (default 60)")
    parser.add_argument("--with-image", type=float, default=1.0, help="share of samples with an image, if not counted")
    args = parser.parse_args(argv)
    args.learned = min(60.0, args.tokens) if args.learned is None else args.learned
    for name in ("gpus", "nodes", "gpu_memory", "peak", "mfu", "price", "num_samples", "tokens", "learned"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: {value} is not positive.")
    for name, largest in (("mfu", 1.0), ("with_image", 1.0), ("learned", args.tokens)):
        if not 0 <= getattr(args, name) <= largest:
            raise InputError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not between 0 and {largest:g}.")
    config = load_config(existing_file(args.config, "the configuration"), args.set)
    processes = args.gpus * args.nodes
    if not config.packing:
        config.accumulation(processes)
    elif config.global_batch_size < processes:
        raise InputError(f"global_batch_size: {config.global_batch_size} rows are fewer than {processes} GPUs.")
    data = read_data(config, args.num_samples, args.tokens, args.learned, args.with_image)
    print(format_plan(config, args, data))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
