"""Samples a second that the training data path delivers, against decoding the same pictures and nothing else.

    python benchmarks/loading.py --data DATA.json --image-folder FOLDER [--samples 512]

Both in one process without workers, on CPU time. The path reads its record, decodes, pads to a square, makes CLIP's
pixels, builds the labels and collates; the yardstick opens the picture as RGB.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from trace_vlm.data.dataset import Collator, RowDataset
from trace_vlm.images import open_image
from trace_vlm.model.checkpoint import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--image-folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = RowDataset([args.data], args.image_folder, load("nano"))
    collate = Collator(0, packed=True)
    order = np.random.default_rng(0).permutation(len(dataset))[: args.samples].tolist()
    images = [dataset.row(row).image for row in order]
    started = time.process_time()
    for path in images:
        if path is not None:
            open_image(path)
    decoding = time.process_time() - started
    started = time.process_time()
    for at in range(0, len(order), 16):
        collate([dataset[row] for row in order[at : at + 16]])
    path = time.process_time() - started
    told = {"decode alone": len(order) / decoding, "data path": len(order) / path, "ratio": decoding / path}
    print(json.dumps({name: round(value, 3) for name, value in told.items()}, indent=2))


if __name__ == "__main__":
    main()
