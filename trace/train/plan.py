"""What a run will take, before anything is downloaded or started: memory, steps, hours, money, disk. No torch.

    python -m trace.train.plan --config configs/train_13b_fft.yaml --gpus 8 --gpu-memory 80 --nodes 1

Memory is arithmetic on the model's dimensions (`arithmetic`), checked against measured peaks of small models on a CPU
and of 7B and 13B models on one GPU (docs/training.md); what is shared between GPUs has not been compared, and the table
says so. Hours rest on a share of the GPUs' peak speed that
is assumed (`--mfu`), which is printed with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..model.presets import PRESETS, resolve_model
from ..utils.command import InputError, Parser, existing_file, run
from ..utils.files import read_json
from .config import ModelParts, TrainConfig, load_config
from .memory import Memory, Setting, largest_micro_batch, memory
from .model_size import Dimensions, Work, dimensions, total_params, trained_params, training_flops

GIB = 2**30
ROBOPOINT_SAMPLES = 1_430_000  # of RoboPoint's data, as published
SETTINGS = (
    Setting("ZeRO-2", 2),
    Setting("ZeRO-2, optimizer on the CPU", 2, offload_optimizer=True),
    Setting("ZeRO-3", 3),
    Setting("ZeRO-3, all on the CPU", 3, offload_optimizer=True, offload_weights=True),
)


@dataclass(frozen=True)
class Machine:
    gpus: int  # of one node
    nodes: int
    memory_gb: float
    peak_tflops: float
    mfu: float
    price: float | None  # of one GPU for an hour

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Data:
    samples: int
    text_tokens: float  # a sample, without its image
    learned_tokens: float
    with_image: float  # share
    source: str

    def length(self, size: Dimensions) -> float:
        return self.text_tokens + self.with_image * size.image_tokens


def model_dimensions(config: TrainConfig) -> tuple[str, Dimensions]:
    """The model's name and dimensions, from a preset, from the hub's names of the parts, or from a folder.

    Raises:
        InputError: a model that is neither; nothing is downloaded to find out.
    """
    model = config.model
    if isinstance(model, ModelParts):
        for preset in PRESETS.values():
            if preset.sources.get("llm") == model.llm:
                return preset.name, dimensions(preset.text, preset.vision, preset.name)
        text = _described(Path(model.llm))
        return model.llm, dimensions(text, _described(Path(model.vision)), model.llm)
    if model in PRESETS:
        preset = PRESETS[model]
        text = preset.text if preset.text["vocab_size"] else {**preset.text, "vocab_size": 1408}
        return model, dimensions(text, preset.vision, model)
    by_source = next((one for one in PRESETS.values() if model in one.sources.values()), None)
    if by_source is not None:
        return by_source.name, dimensions(by_source.text, by_source.vision, by_source.name)
    found = _described(Path(resolve_model(model)))
    return model, dimensions(found.get("text_config", {}), found.get("vision_config", {}), model)


def _described(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model: {folder} is neither a folder with config.json nor a known name; give --set model=trace-13b or "
            f"another of {', '.join(PRESETS)}"
        )
    found = read_json(folder / "config.json")
    return dict(found.get("vision_config", found)) if found.get("model_type") == "clip" else dict(found)


def read_data(config: TrainConfig, samples: int | None, text_tokens: float, learned: float, images: float) -> Data:
    """The number of samples and their lengths: counted in the data files that are there, assumed otherwise."""
    files = [Path(path) for path in config.data]
    if samples is None and files and all(path.is_file() for path in files):
        return _counted(files)
    if samples is not None:
        return Data(samples, text_tokens, learned, images, "given")
    missing = next((f"; {path} is not there" for path in files if not path.is_file()), "")
    source = f"assumed: RoboPoint's {ROBOPOINT_SAMPLES:,}{missing}"
    return Data(ROBOPOINT_SAMPLES, text_tokens, learned, images, source)


def _counted(files: Sequence[Path]) -> Data:
    from ..core.records import read_samples

    count = pictured = characters = said = 0
    for path in files:
        for sample in read_samples(path):
            count += 1
            pictured += sample.image is not None
            characters += sum(len(turn.text) for turn in sample.conversations)
            said += sum(len(turn.text) for turn in sample.conversations if turn.speaker == "gpt")
    if not count:
        raise InputError(f"data: {files[0]} holds no samples")
    characters_a_token, system = 3.5, 40  # English in Llama's vocabulary; the system sentence
    return Data(
        count, characters / count / characters_a_token + system, said / count / characters_a_token, pictured / count,
        f"counted in {len(files)} file(s), {characters_a_token:g} characters a token",
    )  # fmt: skip


# --- the tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything that is printed; sizes in bytes."""

    name: str
    total: int
    trained: int
    rows: list[tuple[Setting, bool, Memory, int]]  # (setting, checkpointing, memory, largest micro-batch that fits)
    steps: int
    tokens: float
    hours: float
    dollars: float | None
    checkpoint: int


def make_plan(config: TrainConfig, machine: Machine, data: Data) -> Plan:
    name, size = model_dimensions(config)
    trained, total = trained_params(size, config.modes, config.rank), total_params(size, config.modes, config.rank)
    length = min(config.max_length, round(data.length(size)))
    rows = []
    for setting in SETTINGS:
        for checkpointing in (True, False):
            asked = replace(config, gradient_checkpointing=checkpointing)
            asking = (asked, size, setting, machine.processes, length)
            largest = largest_micro_batch(*asking, data.learned_tokens, machine.memory_gb * 1e9)
            found = memory(*asking, config.micro_batch_size, data.learned_tokens)
            rows.append((setting, checkpointing, found, largest))
    if data.samples < config.global_batch_size:
        raise InputError(f"global_batch_size: {config.global_batch_size} is more than the {data.samples} samples")
    steps = config.steps(data.samples)
    samples = steps * config.global_batch_size
    work = Work(
        samples * data.length(size), samples * data.length(size) ** 2, samples * data.learned_tokens,
        samples * data.with_image,
    )  # fmt: skip
    useful = training_flops(
        size, work, config.modes, config.rank
    )  # as utilisation counts: without what is computed twice
    hours = useful / (machine.processes * machine.peak_tflops * 1e12 * machine.mfu) / 3600
    dollars = None if machine.price is None else hours * machine.processes * machine.price
    return Plan(
        name, total, trained, rows, steps, work.tokens, hours, dollars, _checkpoint_bytes(config, total, trained)
    )


def _checkpoint_bytes(config: TrainConfig, total: int, trained: int) -> int:
    """One checkpoint: the weights that are written, and the optimizer's float32 numbers (under DeepSpeed its copy too).

    Measured on checkpoints of two processes (tests/train/test_distributed.py): ZeRO-2 writes the weights twice, once to
    be loaded by anybody and once for itself.
    """
    written = total if config.modes.llm != "lora" else trained
    if config.deepspeed is None:
        return 4 * written + 8 * trained
    settings = read_json(existing_file(config.deepspeed, "deepspeed: the configuration"))
    try:
        stage = settings["zero_optimization"]["stage"]
    except (KeyError, TypeError):
        raise InputError(f"deepspeed: {config.deepspeed} names no zero_optimization.stage") from None
    wide, copies = 2 if config.precision == "bf16" else 4, 1 if stage == 3 else 2
    return copies * wide * written + 12 * trained


def table(plan: Plan, config: TrainConfig, machine: Machine, data: Data) -> str:
    where = f"{machine.nodes} x {machine.gpus}" if machine.nodes > 1 else str(machine.gpus)
    shared, kept = config.share_image > 1, config.save_total_limit
    lines = [
        f"model        {plan.name}: {plan.total / 1e9:.3f} B parameters, {plan.trained / 1e9:.3f} B learn",
        f"machine      {where} GPUs of {machine.memory_gb:g} GB, {machine.peak_tflops:g} TFLOP/s each",
        f"data         {data.samples:,} samples of about {plan.tokens / (plan.steps * config.global_batch_size):.0f} "
        f"tokens ({data.source})",
        f"steps        {plan.steps:,} of {config.global_batch_size} samples; {plan.tokens / 1e9:.3f} B tokens",
        f"time         {plan.hours:.1f} h at an assumed {machine.mfu:.0%} of peak"
        + ("" if plan.dollars is None else f", {plan.dollars:,.0f} dollars at {machine.price:g} a GPU-hour"),
        f"disk         {plan.checkpoint / GIB:.2f} GiB a checkpoint, "
        f"{plan.checkpoint * (kept + 1) / GIB:.2f} GiB with a new one beside the last {kept}",
        *([f"rows         counted as samples; share_image {config.share_image} makes them fewer and longer"] * shared),
        "",
        f"GiB of one GPU, {_batch(config)} (one GPU without sharding: measured; shards and buffers: unvalidated)",
        f"{'':<30}{'recompute':>10}{'weights':>9}{'gradients':>10}{'optimizer':>10}{'activations':>12}"
        f"{'buffers':>9}{'sum':>9}  largest micro-batch",
    ]
    for setting, checkpointing, found, largest in plan.rows:
        fits = "does not fit" if not largest else "fits" if config.packing else f"{largest}"
        parts = (found.weights, found.gradients, found.optimizer)
        lines.append(
            f"{setting.name:<30}{'yes' if checkpointing else 'no':>10}"
            + "".join(f"{part / GIB:>{width}.2f}" for part, width in zip(parts, (9, 10, 10), strict=True))
            + f"{found.activations / GIB:>12.2f}{found.buffers / GIB:>9.2f}{found.total / GIB:>9.2f}  {fits}"
        )
    return "\n".join(lines)


def _batch(config: TrainConfig) -> str:
    return f"lines of {config.pack_tokens} tokens" if config.packing else f"micro-batch {config.micro_batch_size}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.train.plan", description="What a training run will take: memory, steps, hours, disk.")
    parser.add_argument("--config", required=True, help="the YAML file of the run")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--gpus", type=int, default=8, help="of one node")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GB of one GPU")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of one GPU, dense bf16 (H100 989, A100 312)")
    parser.add_argument("--mfu", type=float, default=0.4, help="the share of peak that useful work is assumed to reach")
    parser.add_argument("--price", type=float, help="dollars of one GPU for an hour")
    parser.add_argument("--samples", type=int, help="instead of counting those of the data files")
    parser.add_argument("--tokens", type=float, default=150.0, help="text tokens a sample, where they are not counted")
    parser.add_argument(
        "--learned", type=float, help="of which are learned, where they are not counted: 60, or all of less"
    )
    parser.add_argument("--with-image", type=float, default=1.0, help="share of samples with an image, not counted")
    args = parser.parse_args(argv)
    args.learned = min(60.0, args.tokens) if args.learned is None else args.learned
    for name in ("gpus", "nodes", "gpu_memory", "peak", "mfu", "price", "samples", "tokens", "learned"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: {value} is not positive")
    for name, largest in (("mfu", 1.0), ("with_image", 1.0), ("learned", args.tokens)):
        if not 0 <= getattr(args, name) <= largest:
            raise InputError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not from 0 to {largest:g}")
    config = load_config(existing_file(args.config, "the configuration"), args.set)
    machine = Machine(args.gpus, args.nodes, args.gpu_memory, args.peak, args.mfu, args.price)
    if not config.packing:
        config.accumulation(machine.processes)
    elif config.global_batch_size < machine.processes:
        raise InputError(f"global_batch_size: {config.global_batch_size} rows are fewer than {machine.processes} GPUs")
    data = read_data(config, args.samples, args.tokens, args.learned, args.with_image)
    plan = make_plan(config, machine, data)
    print(table(plan, config, machine, data))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
