"""Samples a second that the training data path delivers, against decoding the same pictures and nothing else.

    python benchmarks/loading.py --data DATA.json --images FOLDER [--samples 512] [--side 336] [--jpeg]

Both in one process without workers, taking turns by 16 samples, on the CPU time of the process. The path reads its
record, decodes, pads to a square, makes CLIP's pixels, builds the labels and collates; the yardstick, as every loader
must, opens the picture as RGB. `--jpeg` writes the pictures as JPEG first, as photographs mostly come.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from small import small

from trace_vlm.core.images import open_image
from trace_vlm.train.dataset import Collator, RowDataset
from trace_vlm.utils.files import read_json, write_json

TOGETHER = 16


def as_jpeg(data: Path, images: Path, folder: Path) -> Path:
    """The same samples over JPEG copies of their pictures, in `folder`."""
    samples = [sample for sample in read_json(data) if "image" in sample]
    for name in {sample["image"] for sample in samples}:
        copy = (folder / name).with_suffix(".jpg")
        copy.parent.mkdir(parents=True, exist_ok=True)
        open_image(images / name).save(copy, quality=90)
    for sample in samples:
        sample["image"] = str(Path(sample["image"]).with_suffix(".jpg"))
    write_json(folder / "data.json", samples)
    return folder / "data.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--side", type=int, default=336, help="pixels of the model's square")
    parser.add_argument("--jpeg", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, images = args.data, args.images
        if args.jpeg:
            data, images = as_jpeg(data, images, Path(folder)), Path(folder)
        print(json.dumps(measure(data, images, args.samples, args.side), indent=2))


def measure(data: Path, images: Path, samples: int, side: int) -> dict[str, float | str]:
    dataset = RowDataset([data], images, small(vision={"image_size": side, "patch_size": 14}))
    collate = Collator(0, packed=True)
    order = np.random.default_rng(0).permutation(len(dataset))[:samples].tolist()
    seconds = {"decode alone": 0.0, "data path": 0.0}
    for number, at in enumerate(range(-TOGETHER, len(order), TOGETHER)):  # the first ones warm up
        rows = order[max(at, 0) : max(at, 0) + TOGETHER]
        paths = [path for row in rows if (path := dataset.row(row).image) is not None]
        started = time.process_time()
        sizes = {open_image(path).size for path in paths}
        between = time.process_time()
        collate([dataset[row] for row in rows])
        ended = time.process_time()
        if number:
            seconds["decode alone"] += between - started
            seconds["data path"] += ended - between
    results: dict[str, float | str] = {
        f"{name}, samples a CPU second": round(len(order) / spent, 1) for name, spent in seconds.items()
    }
    shown = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
    ratio = round(seconds["decode alone"] / seconds["data path"], 3)
    return results | {"ratio": ratio, "samples": len(order), "pictures": shown, "side": side}


if __name__ == "__main__":
    main()
