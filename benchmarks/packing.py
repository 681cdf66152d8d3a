"""Samples a second when a step's rows are laid end to end, against padding them as LLaVA collates.

    python benchmarks/packing.py [--steps 3] [--out packing.json]

One model (the nano model's kind, wider, random weights), one set of rows: texts of log-uniform length, 30 to 400 tokens,
nine tenths of them behind an image of 576: a mix of which LLaVA's grouping leaves a quarter padding. Steps of 64 rows,
forward and backward pass; the ways take turns within one run and are charged with the CPU time of the process. The
tower is left out: it costs the same in all of them.

`llava`, the yardstick, groups as LLaVA and RoboPoint do: a step of one modality, its forward passes balanced by their
sums of tokens, each padded to its longest row. `shuffled` takes rows as they come, `grouped` and `packed` are ours.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from small import small

from trace_vlm.train.batching import Batches, BatchSchedule, batch_rows, pack_rows
from trace_vlm.train.dataset import Collator
from trace_vlm.train.varlen_attention import IMPLEMENTATION, PackedRows

ROWS, MICRO, IMAGE, VOCABULARY = 64, 16, 576, 1300
SIZE = {
    "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 688, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip

Lengths = NDArray[np.int32]


def rows_of(lengths: Lengths, rng: np.random.Generator) -> list[dict[str, torch.Tensor]]:
    """Rows of random tokens, the last fifth of each learned."""
    rows = []
    for index, length in enumerate(lengths):
        ids = torch.tensor(rng.integers(3, VOCABULARY, length))
        labels = ids.clone()
        labels[: length - length // 5] = -100
        known = {"row": index, "input_ids": ids, "labels": labels, "kinds": torch.full_like(ids, -1)}
        rows.append({**known, "position_ids": torch.arange(length), "branch": torch.zeros(length, dtype=torch.long)})
    return rows


def llava(lengths: Lengths, pictured: NDArray[np.bool_], rng: np.random.Generator) -> list[Batches]:
    """Steps of one modality each, the forward passes of a step balanced by their sums of tokens."""
    steps = []
    for kind in (pictured, ~pictured):
        shuffled = rng.permutation(np.flatnonzero(kind))
        steps += [balanced(shuffled[at : at + ROWS], lengths) for at in range(0, len(shuffled), ROWS)]
    return steps


def balanced(rows: NDArray[np.int64], lengths: Lengths) -> Batches:
    bins: Batches = [[] for _ in range(-(-len(rows) // MICRO))]
    sums = [0] * len(bins)
    for row in rows[np.argsort(-lengths[rows], kind="stable")].tolist():
        target = min((number for number, one in enumerate(bins) if len(one) < MICRO), key=sums.__getitem__)
        bins[target].append(row)
        sums[target] += int(lengths[row])
    return bins


def step(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    started = time.process_time()
    for batch in batches:
        call = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
        if "row_ends" in batch:
            call["packed_rows"] = PackedRows(batch["row_ends"], None, torch.device("cpu"))
        columns = batch["columns"]
        logits = model(**call, logits_to_keep=columns, use_cache=False).logits.flatten(0, 1).float()
        wanted = batch["labels"][:, columns + 1].flatten()
        torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum").backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - started


def padding_share(steps: list[Batches], lengths: Lengths) -> float:
    """The share of padding tokens when every batch is padded to its longest row."""
    batches = [lengths[rows] for step in steps for rows in step]
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    return 1 - sum(int(batch.sum()) for batch in batches) / padded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shortest", type=int, default=30, help="text tokens of the shortest row")
    parser.add_argument("--longest", type=int, default=400)
    parser.add_argument("--with-image", type=float, default=0.9, help="share of rows")
    parser.add_argument("--line", type=int, default=8192, help="tokens of a packed forward pass")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    model = small(SIZE).model.train()
    count = ROWS * args.steps
    pictured = rng.random(count) < args.with_image
    text = np.exp(rng.uniform(np.log(args.shortest), np.log(args.longest), count))
    lengths = (text + IMAGE * pictured).astype(np.int32)
    rows = rows_of(lengths, rng)
    schedule = BatchSchedule(lengths, ROWS, 0, "packed", MICRO, 1, args.steps, args.line)
    plain, lines = list(schedule.steps_of(0)), schedule.passes()
    ways = {
        "llava": llava(lengths, pictured, rng),
        "shuffled": [batch_rows(chosen, MICRO) for chosen in plain],
        "grouped": [batch_rows(chosen, MICRO, lengths) for chosen in plain],
        "packed": [pack_rows(chosen, lengths, lines) for chosen in plain],
    }
    seconds = dict.fromkeys(ways, 0.0)
    for number in range(-1, max(map(len, ways.values()))):  # the first one warms up
        for name, steps in ways.items():
            if number >= len(steps):
                continue
            collate = Collator(0, packed=name == "packed")
            model.set_attn_implementation({"text_config": IMPLEMENTATION if name == "packed" else "sdpa"})
            spent = step(model, [collate([rows[row] for row in line]) for line in steps[max(number, 0)]])
            seconds[name] += spent if number >= 0 else 0.0
    result = {"machine": platform.processor() or platform.machine(), "rows": count, "tokens": int(lengths.sum())}
    result |= {
        name: {
            "samples_per_cpu_second": round(count / spent, 3),
            "ratio_to_llava": round(seconds["llava"] / spent, 3),
            "padding_share": 0.0 if name == "packed" else round(padding_share(ways[name], lengths), 3),
        }
        for name, spent in seconds.items()
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
