"""What a model and a training run need: parameters, floating-point operations, and bytes of one process by part.

Plain arithmetic on the model's dimensions, without torch: the plan (`trace.train.plan`) is made before anything is
downloaded. A multiplication and an addition count as two operations. Of models other than LLaVA-1.5 the parameters are
counted, and an image is one of `IMAGE_SIZE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model.families.base import Checkpoint, count_parts, num_elements
from ..utils.command import InputError
from .config import Trainable, TrainConfig

LIVE_WEIGHTS = 1_000_000_000  # stage3_max_live_parameters of configs/deepspeed
GATHERED_WEIGHTS = 500_000_000  # allgather_bucket_size of configs/deepspeed/zero2.json
LARGEST_MICRO_BATCH = 512
IMAGE_SIZE = (640, 480)


@dataclass(frozen=True)
class ModelDimensions:
    """The numbers of LlamaConfig and CLIPVisionConfig that cost memory or time."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_mlp: int
    vision_side: int  # patches along a side
    patch: int

    @property
    def image_tokens(self) -> int:
        return self.vision_side**2

    @property
    def query_width(self) -> int:
        return self.hidden

    @property
    def kv_width(self) -> int:
        return self.query_width * self.kv_heads // self.heads

    @property
    def layer_params(self) -> int:
        return 2 * self.hidden**2 + 2 * self.hidden * self.kv_width + 3 * self.hidden * self.mlp

    @property
    def matrices(self) -> int:
        """Parameters that every token is multiplied with."""
        return self.layer_params * self.layers

    @property
    def pixels(self) -> int:
        """Numbers in an image's `pixel_values`."""
        return 3 * (self.vision_side * self.patch) ** 2

    @property
    def vision_tokens(self) -> int:
        return self.image_tokens + 1

    def vision_flops(self) -> float:
        """Return the operations of the vision tower's forward pass for one image."""
        width, patches = self.vision_hidden, self.vision_tokens
        layer = 2 * (4 * width**2 + 2 * width * self.vision_mlp) * patches + 4 * patches**2 * width
        return self.vision_layers * layer + 2 * 3 * self.patch**2 * width * self.image_tokens

    def part_params(self) -> dict[str, int]:
        norms = (2 * self.layers + 1) * self.hidden
        width, mlp = self.vision_hidden, self.vision_mlp
        layer = 4 * width * (width + 1) + 2 * width * mlp + width + mlp + 4 * width
        embeddings = width + 3 * self.patch**2 * width + (self.image_tokens + 1) * width
        return {
            "llm": 2 * self.vocabulary * self.hidden + self.layers * self.layer_params + norms,
            "projector": (self.vision_hidden + 1) * self.hidden + (self.hidden + 1) * self.hidden,
            "vision": embeddings + self.vision_layers * layer + 4 * width,  # and two layer norms
        }

    def lora_params(self, rank: int) -> int:
        """Return the parameters of adapters on all seven matrices of every layer."""
        sides = 4 * self.hidden + 2 * (self.hidden + self.kv_width) + 3 * (self.hidden + self.mlp)
        return self.layers * rank * sides


@dataclass(frozen=True)
class CountedDimensions(ModelDimensions):
    """Of a model whose parameters were counted; the vision tower's numbers only estimate its activations."""

    frames: int  # that a patch of the vision tower covers
    head_dim: int
    counts: Mapping[str, int]
    embeddings: int  # parameters, the output's included
    adapted: int  # inputs and outputs of all matrices that get adapters
    tokens: int  # of an image, for the language model
    pixel_values: int

    image_tokens = property(lambda self: self.tokens)
    query_width = property(lambda self: self.heads * self.head_dim)
    matrices = property(lambda self: self.counts["llm"] - self.embeddings)
    pixels = property(lambda self: self.pixel_values)
    vision_tokens = property(lambda self: self.pixel_values // (3 * self.frames * self.patch**2))

    def part_params(self) -> dict[str, int]:
        return dict(self.counts)

    def lora_params(self, rank: int) -> int:
        return rank * self.adapted

    def vision_flops(self) -> float:
        return 2.0 * self.counts["vision"] * self.vision_tokens


def checkpoint_dimensions(checkpoint: Checkpoint) -> ModelDimensions:
    """The dimensions of a loaded model, or of one without weights; adapters must not be on it yet."""
    model, text, vision = checkpoint.model, checkpoint.text_config, checkpoint.model.config.vision_config.to_dict()
    if checkpoint.image_tokens is not None:
        return dimensions(text.to_dict(), vision, checkpoint.name)
    from PIL import Image

    from .param_groups import lora_targets

    pixels = checkpoint.tensors([checkpoint.prompt("")], [Image.new("RGB", IMAGE_SIZE)])
    tables = {part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    targets = lora_targets(model).values()
    patch = vision["patch_size"]
    heads, width = text.num_attention_heads, vision.get("hidden_size") or vision.get("embed_dim") or 0
    return CountedDimensions(
        text.hidden_size, text.num_hidden_layers, text.intermediate_size, heads, text.num_key_value_heads or heads,
        text.vocab_size, width, vision.get("num_hidden_layers") or vision.get("depth") or 0,
        vision.get("intermediate_size") or 4 * width, vision_side=0,
        patch=patch if isinstance(patch, int) else patch[0],
        frames=vision.get("temporal_patch_size", 1), head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        counts=count_parts(model), embeddings=sum(map(num_elements, tables)),
        adapted=sum(matrix.in_features + matrix.out_features for matrix in targets),
        tokens=int((pixels["input_ids"] == checkpoint.image_token_id).sum()),
        pixel_values=pixels["pixel_values"].numel(),
    )  # fmt: skip


def dimensions(text: Mapping[str, Any], vision: Mapping[str, Any], source: str) -> ModelDimensions:
    """Read the dimensions from the two configurations; InputError names `source` if one is missing."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size")
    try:
        heads, patch = text["num_attention_heads"], vision["patch_size"]
        llm = (*(text[name] for name in names), heads, text.get("num_key_value_heads") or heads, text["vocab_size"])
        return ModelDimensions(*llm, *(vision[name] for name in names), vision["image_size"] // patch, patch)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{source} is not the configuration of a LLaVA model: {error!r}.") from None


def trained_params(size: ModelDimensions, modes: Trainable, rank: int) -> int:
    full = sum(count for part, count in size.part_params().items() if getattr(modes, part) == "full")
    return full + (size.lora_params(rank) if modes.llm == "lora" else 0)


def total_params(size: ModelDimensions, modes: Trainable, rank: int) -> int:
    return sum(size.part_params().values()) + (size.lora_params(rank) if modes.llm == "lora" else 0)


@dataclass(frozen=True)
class Workload:
    """What passes through the model: tokens, the sum of squared row lengths, labelled tokens, images."""

    tokens: float
    squares: float
    labelled: float
    images: float


def training_flops(size: ModelDimensions, work: Workload, modes: Trainable, rank: int = 0) -> float:
    """Return the useful operations of a forward and a backward pass, without recomputation.

    A backward pass costs one forward pass for the gradients of the inputs and one for those of the weights. Frozen
    matrices need the first only, a frozen vision tower neither.
    """
    matrices = 2 * size.matrices * work.tokens
    attention = 2 * work.squares * size.query_width * size.layers  # causal: half of 4 T^2 h
    head = 2 * size.hidden * size.vocabulary * work.labelled
    projector = 2 * size.part_params()["projector"] * size.image_tokens * work.images
    vision = work.images * size.vision_flops()
    llm = (3.0 if modes.llm == "full" else 2.0) * (matrices + attention + head + projector)
    adapters = 3.0 * 2 * size.lora_params(rank) * work.tokens if modes.llm == "lora" else 0.0
    return llm + adapters + (3.0 if modes.vision == "full" else 1.0) * vision


@dataclass(frozen=True)
class Sharding:
    """How a run is sharded; stage 0 is a copy in every process, without DeepSpeed."""

    name: str
    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process. A step needs the activations first and its float32 gradients (`step`) after them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    step: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buffers + max(self.activations, self.step)


def plan_memory(
    config: TrainConfig, size: ModelDimensions, sharding: Sharding, processes: int, length: int, micro_batch: int,
    labelled: float,
) -> MemoryPlan:  # fmt: skip
    """Plan a run with `micro_batch` rows of `length` tokens a forward pass, `labelled` of which carry a label."""
    rank, stage = config.lora_rank, sharding.stage
    total, trained = total_params(size, config.modes, rank), trained_params(size, config.modes, rank)
    width = 2 if config.precision == "bf16" and stage else 4  # without DeepSpeed bf16 is autocast over float32 weights
    shards = processes if stage else 1
    weights = width * total / (shards if stage == 3 else 1)
    gradients = width * trained / shards
    optimizer = (12 if stage else 8) * trained / shards  # two moments, and under DeepSpeed a float32 copy
    step = 4 * trained / shards if stage else 0.0
    bucket = 2 * width * size.hidden**2  # reduce_bucket_size "auto", twice because communication overlaps
    if stage == 3:
        buffers = bucket + width * min(total, LIVE_WEIGHTS) * (processes > 1 or sharding.offload_weights)
    elif stage == 2:
        buffers = bucket + width * min(trained, GATHERED_WEIGHTS) * (processes > 1)
    else:
        buffers = width * trained * (processes > 1)  # DistributedDataParallel's buckets
    if sharding.offload_optimizer:
        gradients = optimizer = step = 0.0
    if sharding.offload_weights:
        weights = 0.0
    tokens = config.pack_tokens if config.packing else micro_batch * length
    images = tokens / length
    width = 2 if config.precision == "bf16" else 4  # of an activation, also under autocast
    layer = tokens * bytes_a_token_and_layer(config, size, width)
    working = tokens * width * (2 * size.mlp + 2 * size.hidden)  # gradients in flight
    kept = tokens * width * size.hidden * size.layers + layer if config.gradient_checkpointing else layer * size.layers
    columns = images * labelled if config.packing else micro_batch * min(length, 2 * labelled)  # padded rows share them
    head = columns * size.vocabulary * (3 * 4 + 2 * width)  # logits, their float32, log-probabilities, gradients
    tower = images * size.vision_tokens * width * (8 * size.vision_hidden + 3 * size.vision_mlp)
    if config.modes.vision == "full" and not config.gradient_checkpointing:
        tower *= size.vision_layers
    return MemoryPlan(weights, gradients, optimizer, kept + max(working, head) + tower, buffers, step)


def bytes_a_token_and_layer(config: TrainConfig, size: ModelDimensions, width: int) -> float:
    """Return the bytes a token that a layer's forward pass keeps for its backward pass; `width` bytes an element."""
    hidden, mlp, kv, lora = size.hidden, size.mlp, size.kv_width, config.modes.llm == "lora"
    query = size.query_width
    # With dropout each of the adapters' seven inputs is kept by itself, with a mask of one byte; without dropout it is
    # kept as it is, and the attention's output is counted below. The outputs of the first matrices come on top; frozen
    # matrices keep nothing.
    adapters = width * (2 * hidden + mlp + 7 * config.lora_rank)
    if config.lora is not None and config.lora.dropout:
        adapters += (width * 4 + 6) * hidden + mlp
    if config.compile:
        # Two sums of the residual stream, rotated queries and keys, values, the attention's output, gate and up; norms
        # and activation are computed again in the kernels of the backward pass. Then the inputs, some of them shared.
        return width * (2 * hidden + 2 * query + 2 * kv + 2 * mlp) + (adapters if lora else width * (2 * hidden + mlp))
    # Also the float32 copies of two norms, queries and keys before rotation, activation and product of the MLP.
    if lora:
        return width * (2 * query + 2 * kv + 3 * mlp) + 4 * 2 * hidden + adapters
    return width * (4 * hidden + 2 * query + 4 * kv + 4 * mlp) + 4 * 2 * hidden


def largest_micro_batch(
    config: TrainConfig, size: ModelDimensions, sharding: Sharding, processes: int, length: int, labelled: float,
    capacity: float,
) -> int:  # fmt: skip
    """Return the most rows a forward pass that fit into 90 % of `capacity` bytes (the rest fragments); 0 if none."""
    share = min(config.global_batch_size // processes, LARGEST_MICRO_BATCH)
    sizes = [1] if config.packing else [rows for rows in range(share, 0, -1) if share % rows == 0]
    plans = ((rows, plan_memory(config, size, sharding, processes, length, rows, labelled)) for rows in sizes)
    return next((rows for rows, plan in plans if plan.total <= 0.9 * capacity), 0)
