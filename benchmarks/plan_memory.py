"""Memory that the plan predicts against what a training process takes at its peak, on a CPU, for models of three sizes.

    python benchmarks/plan_memory.py --data DATA.json --images FOLDER [--out plan_memory.json]

Each run is a fresh process that trains two steps in float32 with AdamW. Its peak is the system's own figure (VmHWM)
less what the imported libraries take before the model is loaded. The prediction is `trace.train.memory`'s, from the same
configuration. Random weights; the sizes are chosen so that the model, not the interpreter, decides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"25M": (512, 8, 1376), "50M": (640, 10, 1728), "100M": (768, 14, 2048)}  # hidden, layers, mlp
WORK = """
import json, re, sys
from pathlib import Path
import torch
from trace_vlm.utils.config import build_config
from trace_vlm.train import sft, step_metrics, train
from trace_vlm.train.config import TrainConfig
import transformers.models.llava.modeling_llava, transformers.models.clip.modeling_clip, peft

def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = memory("VmRSS")
train.train(build_config(TrainConfig, json.loads(sys.argv[1]), "benchmark"))
print("BYTES", memory("VmHWM") - before)
"""


def make(folder: Path, hidden: int, layers: int, mlp: int) -> None:
    from small import small

    from trace_vlm.model.checkpoint import save

    text = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": mlp}
    save(small({**text, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}), folder)


def measure(settings: dict[str, Any]) -> int:
    done = subprocess.run([sys.executable, "-c", WORK, json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(next(line for line in done.stdout.splitlines() if line.startswith("BYTES")).split()[1])


def predict(settings: dict[str, Any], length: int) -> float:
    from trace_vlm.train.config import TrainConfig
    from trace_vlm.train.memory import Sharding, plan_memory
    from trace_vlm.train.plan import model_dimensions
    from trace_vlm.utils.config import build_config

    config = build_config(TrainConfig, settings, "benchmark")
    _, size = model_dimensions(config)
    return plan_memory(config, size, Sharding("one process", 0), 1, length, config.micro_batch_size, 25).total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--length", type=int, default=95, help="tokens of a padded row of this data")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for name, sizes in SIZES.items():
        for trained, checkpointing in (("full", True), ("full", False), ("lora", True)):
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder) / "model", *sizes)
                settings = {
                    "model": f"{folder}/model", "data": [str(args.data)], "image_folder": str(args.images),
                    "output_dir": f"{folder}/run", "trainable": {"llm": trained}, "precision": "fp32", "max_steps": 2,
                    "global_batch_size": 16, "micro_batch_size": 16, "gradient_checkpointing": checkpointing,
                    "dataloader_workers": 0, "report_to": [], "save_steps": 100, "max_length": 512,
                }  # fmt: skip
                if trained == "lora":
                    settings["lora"] = {"r": 16, "alpha": 32}
                found, expected = measure(settings), predict(settings, args.length)
            row = {"model": name, "llm": trained, "recompute": checkpointing}
            row |= {"measured_mib": round(found / 2**20), "predicted_mib": round(expected / 2**20)}
            rows.append({**row, "ratio": round(expected / found, 3)})
            print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
