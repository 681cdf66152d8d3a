"""What 1.4 million training samples cost a process: converted once, then mapped.

    python benchmarks/records.py [--samples 1430000] [--converted 51200] [--folder FOLDER]

Writes a JSON of `--converted` samples in RoboPoint's form and converts it (peak memory, samples a CPU second). Its Arrow
file is then repeated to `--samples`, and a fresh process opens it as training does: all rows, their lengths, the order of an
epoch packed for 8 processes, 20,000 samples read in random order. What it holds for itself (anonymous memory) beyond the
imports is the cost; what its loader worker adds is measured too. RoboPoint's JSON of that size, read whole by `json`,
is the yardstick.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trace_vlm.core.prompts import POINTS_SUFFIX

RELATIONS = ("left", "right", "in front", "behind")


def write_samples(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for index in range(count):
            points = ", ".join(f"({x:.3f}, {y:.3f})" for x, y in rng.random((rng.integers(1, 21), 2)))
            place = f"the vacant area to the {RELATIONS[index % 4]} of the marked item"
            asked = f"<image>\nFind a few spots in {place}. {POINTS_SUFFIX}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"[{points}]"}]
            sample = {"id": f"region_{index:07d}", "image": f"region_ref/{index:07d}.png", "conversations": turns}
            file.write(("[" if index == 0 else ",\n") + json.dumps(sample))
        file.write("]\n")


def own_mib() -> float:
    """Anonymous memory. Pages of the mapped file are the page cache's, shared by all who map it, and given back."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def convert(path: Path) -> dict[str, float]:
    from trace_vlm.core.prompts import template
    from trace_vlm.model.build import nano_tokenizer
    from trace_vlm.train.token_cache import TokenEncoder, open_cache

    tokenizer, before, started = nano_tokenizer(), peak_mib(), time.process_time()
    records = open_cache(path, TokenEncoder(tokenizer, template("vicuna_v1")))
    spent = time.process_time() - started
    return {"file": str(records.path), "samples a CPU second": len(records) / spent, "MiB more": peak_mib() - before}


def read_whole(path: Path) -> dict[str, float]:
    before = peak_mib()
    count = len(json.loads(path.read_bytes()))
    return {"bytes a sample": (peak_mib() - before) * 2**20 / count}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def repeat(source: Path, target: Path, count: int) -> None:
    import pyarrow as pa

    with pa.memory_map(str(source)) as file, pa.OSFile(str(target), "wb") as out:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        with pa.ipc.new_file(out, reader.schema) as writer:
            for number in range(count // batches[0].num_rows):
                writer.write_batch(batches[number % len(batches)])


def open_as_training(path: Path) -> dict[str, float]:
    from small import small

    from trace_vlm.train import dataset as module
    from trace_vlm.train.batching import BatchSchedule, ProcessBatchSampler
    from trace_vlm.train.token_cache import TokenCache

    checkpoint = small(vision={"image_size": 336, "patch_size": 14})
    module.open_cache = lambda *_: TokenCache(path)
    module.RowDataset._check_images = lambda self: None  # there are none
    before, started = own_mib(), time.process_time()
    data = module.RowDataset(["data.json"], ".", checkpoint)
    schedule = BatchSchedule(data.lengths, 128, 0, "packed", 16, 8, len(data) // 128, 16384, 576)
    batches = ProcessBatchSampler(schedule, 0, schedule.passes())
    spent = time.process_time() - started
    for index in np.random.default_rng(0).permutation(len(data))[:20000]:
        data.sample(int(index))
    steps = sum(1 for _, _ in zip(batches, range(50), strict=False))
    assert steps == 50
    here = own_mib() - before
    with multiprocessing.get_context("fork").Pool(1, initializer=_keep, initargs=(data,)) as pool:
        worker = pool.apply(_work)
    return {"samples": len(data), "MiB a process": here, "MiB a worker": worker, "CPU s to open": spent}


_kept: list[Any] = []


def _keep(data: Any) -> None:
    _kept.append(data)


def _work() -> float:
    before = own_mib()  # of the process it was forked from
    for index in np.random.default_rng(os.getpid()).permutation(len(_kept[0]))[:20000]:
        _kept[0].sample(int(index))
    return own_mib() - before


def alone(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """The result of `work` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # which may start its own loader worker
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_430_000)
    parser.add_argument("--converted", type=int, default=51_200, help="a multiple of 512")
    parser.add_argument("--folder", type=Path, help="for the files, about 2 GB; by default a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        os.environ["TRACE_CACHE"] = str(folder / "cache")
        write_samples(folder / "data.json", args.converted)
        converted = alone(convert, folder / "data.json")
        arrow = Path(str(converted.pop("file")))
        size = (folder / "data.json").stat().st_size / args.converted
        results = {"json, bytes a sample": size, "converting": converted}
        results["read whole by json"] = alone(read_whole, folder / "data.json")
        repeat(arrow, folder / "big.arrow", args.samples)
        results["arrow, MiB"] = (folder / "big.arrow").stat().st_size / 2**20
        results["opened"] = alone(open_as_training, folder / "big.arrow")
    print(json.dumps(results, indent=2, default=lambda value: value))


if __name__ == "__main__":
    main()
