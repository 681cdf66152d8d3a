"""Estimate a training run before it starts: memory, steps, hours, cost, disk. Reads no weights, downloads nothing.

    python -m trace.train.plan --config configs/train_13b_fft.yaml --gpus 8 --gpu h100

Memory (`trace.train.memory`) was checked against measured peaks of small models on a CPU and of 7B and 13B models on
one GPU; sharding over GPUs was not compared, and the table says so. Hours take the share of the GPU's peak that was
measured on one H100 or H200 in the run's layout (MEASURED), or `--mfu`.
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
from .config import FEW_STEPS, FEWEST_STEPS, ModelParts, TrainConfig, load_config

GIB = 2**30
TRACE_SAMPLES, ROBOPOINT_SAMPLES = 200_000, 1_430_000  # of their data, as published
# GB and TFLOP/s, dense bf16 with sums in float32, of the makers' data sheets.
CARDS = {"4090": (24, 165), "a100": (80, 312), "h100": (80, 989), "h200": (141, 989), "l40s": (48, 362)}
# Share of the peak that a 7B reached, by LoRA, packing, recomputation, compiled layers
# (docs/experiments/2026-11-26-compiled-layers.md, 2026-11-26-h100-training.md).
MEASURED = {
    (False, False, True, False): 0.235, (False, False, True, True): 0.252, (False, True, True, False): 0.314,
    (False, True, True, True): 0.364, (False, True, False, False): 0.371, (False, True, False, True): 0.538,
    (True, False, True, False): 0.146, (True, False, True, True): 0.200, (True, True, True, False): 0.183,
    (True, True, True, True): 0.263, (True, True, False, False): 0.278, (True, True, False, True): 0.433,
}  # fmt: skip
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
        robopoint = any("robopoint" in str(file) for file in files)
        count = ROBOPOINT_SAMPLES if robopoint else TRACE_SAMPLES
        source = f"assumed: {'RoboPoint' if robopoint else 'TRACE'}'s {count:,}{missing}"
        return DataSize(count, text, labelled, images, source)
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


def measured_share(config: TrainConfig) -> tuple[float, str]:
    """Return the share of the GPU's peak to expect from a run's layout, and how it is known."""
    lora, layout = config.modes.llm == "lora", (config.packing, config.gradient_checkpointing, config.compile)
    if (share := MEASURED.get((lora, *layout))) is not None:
        return share, "measured with a 7B in this layout on one GPU"
    return MEASURED[lora, config.packing, True, config.compile], "measured with a 7B with recomputation on one GPU"


def format_plan(config: TrainConfig, args: argparse.Namespace, data: DataSize) -> str:
    processes = args.gpus * args.nodes
    if data.samples < config.global_batch_size:
        raise InputError(
            f"global_batch_size: {config.global_batch_size} is more than the {data.samples} samples. Lower it."
        )
    name, size = model_dimensions(config)
    modes, rank = config.modes, config.lora_rank
    total, trained = memory.total_params(size, modes, rank), memory.trained_params(size, modes, rank)
    tokens, steps = data.text_tokens + data.with_image * size.image_tokens, config.steps(data.samples)
    count = steps * config.global_batch_size
    work = memory.Workload(count * tokens, count * tokens**2, count * data.labelled_tokens, count * data.with_image)
    flops = memory.training_flops(size, work, modes, rank)
    share, reason = measured_share(config) if args.mfu is None else (args.mfu, "given")
    hours = flops / (processes * args.peak * 1e12 * share) / 3600
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
        f"time         {hours:.1f} h at {share:.0%} of peak ({reason}){cost}",
        f"disk         {disk:.2f} GiB a checkpoint, {disk * (config.save_total_limit + 1):.2f} GiB with a new one beside "
        f"the last {config.save_total_limit}",
        rows if config.share_image > 1 else "",
        f"GiB of one GPU, {batch} (one GPU without sharding: measured; shards and buffers: unvalidated)",
        f"{'':<30}{'recompute':>10}{'weights':>9}{'gradients':>10}{'optimizer':>10}{'activations':>12}"
        f"{'buffers':>9}{'sum':>9}  fits  largest micro-batch",
    ]
    if steps < FEWEST_STEPS:
        lines.insert(4, f"             {FEW_STEPS}")
    length = min(config.max_length, round(tokens))
    plain = () if config.deepspeed else (memory.Sharding("without DeepSpeed", 0),)
    for sharding, recompute in product((*plain, *SHARDINGS), (True, False)):
        setup = (replace(config, gradient_checkpointing=recompute), size, sharding, processes, length)
        planned = memory.plan_memory(*setup, config.micro_batch_size, data.labelled_tokens)
        parts = (planned.weights, planned.gradients, planned.optimizer, planned.activations, planned.buffers)
        columns = zip((*parts, planned.total), (9, 10, 10, 12, 9, 9), strict=True)
        numbers = "".join(f"{part / GIB:>{width}.2f}" for part, width in columns)
        largest = memory.largest_micro_batch(*setup, data.labelled_tokens, args.gpu_memory * 1e9)
        fits = "yes" if planned.total <= args.gpu_memory * 1e9 else "NO"
        most = "-" if config.packing or not largest else f"{largest}"
        lines.append(f"{sharding.name:<30}{'yes' if recompute else 'no':>10}{numbers}  {fits:<4}  {most}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Memory, steps, hours, cost and disk of a training run.", examples=__doc__)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of one node")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes")
    parser.add_argument("--gpu", choices=CARDS, default="h100", help="card, for its memory and peak")
    parser.add_argument("--gpu-memory", type=float, help="GB of one GPU (default: of --gpu)")
    parser.add_argument("--peak", type=float, help="TFLOP/s of one GPU, dense bf16 (default: of --gpu)")
    parser.add_argument("--mfu", type=float, help="share of peak that useful work reaches (default: as measured)")
    parser.add_argument("--price", type=float, help="dollars of one GPU for an hour")
    parser.add_argument("--num-samples", type=int, help="number of samples, instead of counting them in the data files")
    parser.add_argument("--tokens", type=float, default=150.0, help="text tokens per sample, if not counted")
    parser.add_argument("--learned", type=float, help="answer tokens per sample (default 60)")
    parser.add_argument("--with-image", type=float, default=1.0, help="share of samples with an image, if not counted")
    args = parser.parse_args(argv)
    for name, value in zip(("gpu_memory", "peak"), CARDS[args.gpu], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, float(value))
    args.learned = min(60.0, args.tokens) if args.learned is None else args.learned
    for name in ("gpus", "nodes", "gpu_memory", "peak", "mfu", "price", "num_samples", "tokens", "learned"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: {value} is not positive.")
    for name, largest in (("mfu", 1.0), ("with_image", 1.0), ("learned", args.tokens)):
        if not 0 <= (getattr(args, name) or 0) <= largest:
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
