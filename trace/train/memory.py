"""How many bytes one process holds while it trains, by part: plain arithmetic, no torch.

What is counted, for every way of sharding: the weights; the gradients of what learns; the optimizer's float32 copy and
two moments; what the forward pass keeps for the backward pass; the buffers that shards are gathered and reduced in. A
step needs the activations first and float32 gradients after, so the larger of the two counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import TrainConfig
from .model_size import Dimensions, total_params, trained_params

LIVE_WEIGHTS = 1_000_000_000  # stage3_max_live_parameters of configs/deepspeed
GATHERED_WEIGHTS = 500_000_000  # allgather_bucket_size of configs/deepspeed/zero2.json
LARGEST = 512  # no larger micro-batch is looked for


@dataclass(frozen=True)
class Setting:
    """How a run is sharded; stage 0 is a copy in every process, without DeepSpeed."""

    name: str
    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. `activations` and `step` are not needed at the same time."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    step: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buffers + max(self.activations, self.step)


def memory(
    config: TrainConfig,
    size: Dimensions,
    setting: Setting,
    processes: int,
    length: int,
    micro_batch: int,
    learned: float,
) -> Memory:
    """Of a run with `micro_batch` rows of `length` tokens a forward pass, `learned` of which carry a label."""
    total, trained = total_params(size, config.modes, config.rank), trained_params(size, config.modes, config.rank)
    half = config.precision == "bf16"
    wide = 2 if half and setting.stage else 4  # without DeepSpeed bf16 is autocast over float32 weights
    shards = processes if setting.stage else 1
    weights = wide * total / (shards if setting.stage == 3 else 1)
    gradients = wide * trained / shards
    optimizer = (12 if setting.stage else 8) * trained / shards
    step = 4 * trained / shards if setting.stage else 0.0
    bucket = 2 * wide * size.hidden**2  # reduce_bucket_size "auto", twice because communication overlaps
    if setting.stage == 3:
        buffers = bucket + wide * min(total, LIVE_WEIGHTS) * (1 if processes > 1 or setting.offload_weights else 0)
    elif setting.stage == 2:
        buffers = bucket + (wide * min(trained, GATHERED_WEIGHTS) if processes > 1 else 0)
    else:
        buffers = wide * trained if processes > 1 else 0.0  # DistributedDataParallel's buckets
    if setting.offload_optimizer:
        gradients = optimizer = step = 0.0
    if setting.offload_weights:
        weights = 0.0
    return Memory(
        weights, gradients, optimizer, _activations(config, size, length, micro_batch, learned), buffers, step
    )


def _activations(config: TrainConfig, size: Dimensions, length: int, rows: int, learned: float) -> float:
    tokens = config.pack_tokens if config.packing else rows * length
    images = tokens / length
    narrow = 2 if config.precision == "bf16" else 4
    layer = tokens * _kept_by_a_layer(config, size, narrow)
    working = tokens * narrow * (2 * size.mlp + 2 * size.hidden)  # gradients on their way
    kept = tokens * narrow * size.hidden * size.layers + layer if config.gradient_checkpointing else layer * size.layers
    labelled = images * learned if config.packing else rows * min(length, 2 * learned)  # padded rows share columns
    head = labelled * size.vocabulary * (3 * 4 + 2 * narrow)  # logits, their float32, log-probabilities, gradients
    patches = images * (size.image_tokens + 1)
    tower = patches * narrow * (8 * size.vision_hidden + 3 * size.vision_mlp)
    if config.modes.vision == "full" and not config.gradient_checkpointing:
        tower *= size.vision_layers
    return kept + max(working, head) + tower


def _kept_by_a_layer(config: TrainConfig, size: Dimensions, narrow: int) -> float:
    """Bytes a token that a layer's forward pass keeps for its backward pass."""
    hidden, mlp, kv = size.hidden, size.mlp, size.hidden * size.kv_heads // size.heads
    # Of the adapters' seven inputs each is kept by itself behind dropout, with dropout's mask of a byte (where it is
    # shared: one of queries, keys and values, one of gate and up); or without dropout as it is, the attention's output
    # counted below. What the first matrices make of them comes on top; the frozen matrices keep none.
    if config.lora is not None and config.lora.dropout:
        inputs = (3 if config.lora.shared_dropout else 6) * hidden + mlp
        adapters = narrow * (inputs + 7 * config.rank) + inputs
    else:
        adapters = narrow * (2 * hidden + mlp + 7 * config.rank)
    if config.compile:
        # Two sums of the residual stream, rotated queries and keys, values, the attention's output, gate and up; the
        # norms and the activation are computed again in the backward pass's own kernels.
        layer = narrow * (4 * hidden + 2 * kv + 2 * mlp)
        return layer + (adapters if config.modes.llm == "lora" else narrow * (2 * hidden + mlp))  # inputs, some shared
    # Also the float32 copies of two norms, queries and keys before they are rotated, activation and product of the MLP.
    if config.modes.llm == "lora":
        return narrow * (2 * hidden + 2 * kv + 3 * mlp) + 4 * 2 * hidden + adapters
    return narrow * (6 * hidden + 4 * kv + 4 * mlp) + 4 * 2 * hidden


def largest_micro_batch(
    config: TrainConfig,
    size: Dimensions,
    setting: Setting,
    processes: int,
    length: int,
    learned: float,
    capacity: float,
) -> int:
    """The most rows a forward pass that fit into `capacity` bytes, less a tenth for fragments; 0 when none does."""

    def fits(rows: int) -> bool:
        return memory(config, size, setting, processes, length, rows, learned).total <= 0.9 * capacity

    if config.packing:
        return 1 if fits(1) else 0
    share = config.global_batch_size // processes
    return next((rows for rows in _divisors_from_the_top(min(share, LARGEST)) if fits(rows)), 0)


def _divisors_from_the_top(number: int) -> list[int]:
    return [rows for rows in range(number, 0, -1) if number % rows == 0]
