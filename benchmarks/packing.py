"""Samples a second when a step's rows are laid end to end, against padding them as LLaVA collates.

    python benchmarks/packing.py [--steps 3] [--out packing.json]

One model (the nano model's kind, random weights), one set of rows with log-uniform lengths, the same steps of 32 rows,
forward and backward pass; the ways take turns within one run. Yardstick: `padded`, rows in shuffled order, padded to
the longest of their forward pass.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from trace_vlm.data.collate import Collator
from trace_vlm.data.packing import Bins, by_length, in_order, laid_out, padding_share
from trace_vlm.model.checkpoint import load
from trace_vlm.train.packed import IMPLEMENTATION, Line

ROWS, MICRO, LINES = 32, 8, 4


def rows_of(lengths: np.ndarray, vocabulary: int, rng: np.random.Generator) -> list[dict[str, torch.Tensor]]:
    """Rows of random tokens, the last fifth of each learned."""
    rows = []
    for index, length in enumerate(lengths):
        ids = torch.tensor(rng.integers(3, vocabulary, length))
        labels = ids.clone()
        labels[: length - length // 5] = -100
        known = {"row": index, "input_ids": ids, "labels": labels, "kinds": torch.full_like(ids, -1)}
        rows.append({**known, "position_ids": torch.arange(length), "branch": torch.zeros(length, dtype=torch.long)})
    return rows


def step(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    started = time.process_time()
    for batch in batches:
        call = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
        if "row_ends" in batch:
            call["line"] = Line(tuple(batch["row_ends"].tolist()), None, torch.device("cpu"))
        columns = (batch["labels"][:, 1:] != -100).any(0).nonzero()[:, 0]
        logits = model(**call, logits_to_keep=columns, use_cache=False).logits.flatten(0, 1).float()
        wanted = batch["labels"][:, columns + 1].flatten()
        torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum").backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shortest", type=int, default=32, help="tokens of the shortest row")
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    model = load("nano").model.train()
    count = ROWS * args.steps
    lengths = np.exp(rng.uniform(np.log(args.shortest), np.log(args.longest), count)).astype(np.int32)
    rows = rows_of(lengths, 1300, rng)
    ways: dict[str, Callable[[np.ndarray], Bins]] = {
        "padded": lambda chosen: in_order(chosen, MICRO),
        "grouped": lambda chosen: by_length(chosen, lengths, MICRO),
        "packed": lambda chosen: laid_out(chosen, lengths, LINES),
    }
    seconds = dict.fromkeys(ways, 0.0)
    steps = [np.arange(start, start + ROWS) for start in range(0, count, ROWS)]
    for number, chosen in enumerate([steps[0], *steps]):  # the first one warms up
        for name, lay in ways.items():
            collate = Collator(0, packed=name == "packed")
            model.set_attn_implementation({"text_config": IMPLEMENTATION if name == "packed" else "sdpa"})
            spent = step(model, [collate([rows[row] for row in line]) for line in lay(chosen)])
            seconds[name] += spent if number else 0.0
    told = {
        name: {
            "samples_per_cpu_second": round(count / spent, 3),
            "ratio_to_padded": round(seconds["padded"] / spent, 3),
            "padding_share": 0.0
            if name == "packed"
            else round(padding_share([ways[name](s) for s in steps], lengths), 3),
        }
        for name, spent in seconds.items()
    }
    result = {
        "machine": platform.processor() or platform.machine(),
        "tokens": int(lengths.sum()),
        "rows": count,
        **told,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
