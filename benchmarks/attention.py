"""What recording attention costs: against plain generation, and against the published way of doing it.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --out attention.json

One model with random weights (8 layers of 1024, 576 image tokens), 480 new tokens, greedy. Four ways, each in a process
of its own, one after the other:

    plain            generation, nothing recorded
    recorded         the same tokens, then the attention of the last three layers recorded in one pass over them
    teacher-forced   the same rows of an answer that is there already, in one pass
    five passes      the yardstick: as the reference does, five calls of `model(...)` with `output_attentions` over the
                     growing sequence (20, 40, 60, 80, 100 % of the answer): eager attention, the cache that its
                     configuration asks for, logits of every position, one call's outputs alive until the next returns;
                     then the last three layers averaged

The vocabulary is that of LLaVA's models, the only one that the reference's code reads. In a model this shallow its head
is a quarter of the weights, in a 13B model a hundredth: `--vocabulary 1408` measures with that share.

Seconds are those of the process, so that other work on the machine does not count. Memory is the peak of the process
over what the loaded model takes, in a process of its own that returns large blocks at once: the holes that a growing
cache leaves in glibc's heap come to tens of megabytes, by chance, and would hide everything else. What the yardstick
finds at its five places is compared with the recorded rows.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("plain", "recorded", "teacher-forced", "five passes")
LAYERS = 3
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}  # blocks from 1 MB on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new-tokens", type=int, default=480)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32064, help="rows of the head")
    parser.add_argument("--image-size", type=int, default=336, help="pixels; patches of 14")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way is not None:
        _measure(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = {way: _in_process(way, folder, sys.argv[1:]) for way in WAYS}
        result = _compare(found, Path(folder))
    result |= {"new_tokens": arguments.new_tokens, "vocabulary": arguments.vocabulary,
               "machine": platform.processor() or platform.machine(),
               "threads": os.environ.get("OMP_NUM_THREADS", "all")}  # fmt: skip
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["same tokens"] and result["largest difference of a map"] < 1e-5 else 1


def _in_process(way: str, folder: str, words: list[str]) -> dict[str, float]:
    """Seconds of one process, megabytes of another."""
    found: dict[str, float] = {}
    for what, flags, more in (("seconds", [], {}), ("megabytes", ["--memory"], RETURNED)):
        command = [sys.executable, __file__, *words, "--way", way, "--folder", folder, *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **more})
        found[what] = json.loads((Path(folder) / f"{way}.json").read_text())[what]
    return found


def _compare(found: dict[str, dict[str, float]], folder: Path) -> dict[str, Any]:
    plain, recorded, forced, five = (found[way] for way in WAYS)
    maps = {way: np.load(folder / f"{way}.npz") for way in WAYS}
    ids = [maps[way]["ids"].tolist() for way in WAYS[:2]]
    rows = maps["recorded"]["attention"].mean(0)
    places = maps["five passes"]["places"]
    gap = max(
        float(np.abs(rows[places] - maps["five passes"]["attention"]).max()),
        float(np.abs(rows - maps["teacher-forced"]["attention"].mean(0)).max()),
    )
    targets = [
        ("recorded / plain, time", recorded["seconds"] / plain["seconds"], "at most", 1.25),
        ("recorded - plain, MB", recorded["megabytes"] - plain["megabytes"], "at most", 50),
        ("five passes / teacher-forced, time", five["seconds"] / forced["seconds"], "at least", 6),
        ("teacher-forced / five passes, memory", forced["megabytes"] / five["megabytes"], "at most", 0.25),
        ("recorded / five passes, memory", recorded["megabytes"] / five["megabytes"], "at most", 0.25),
    ]
    return {
        "seconds": {way: round(one["seconds"], 2) for way, one in found.items()},
        "memory over the model, MB": {way: round(one["megabytes"], 1) for way, one in found.items()},
        "targets": [
            {"what": what, "measured": round(value, 3), "target": f"{bound} {limit}",
             "holds": value <= limit if bound == "at most" else value >= limit}
            for what, value, bound, limit in targets
        ],
        "answer and maps: (plain + five passes) / recorded, time": round(
            (plain["seconds"] + five["seconds"]) / recorded["seconds"], 2
        ),
        "same tokens": ids[0] == ids[1],
        "largest difference of a map": gap,
    }  # fmt: skip


# --- one way, in its own process -----------------------------------------------------------------------------------


def _measure(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from trace_vlm.attention.capture import CaptureConfig, capture_teacher_forced, capture_while_generating
    from trace_vlm.core.prompts import question_text, render_prompt
    from trace_vlm.inference.generation import AnswerRow, Decoding, generate_with_transformers

    checkpoint = _model(arguments.hidden, arguments.layers, arguments.vocabulary, arguments.image_size)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
    prompt = render_prompt(question_text("Find free space left of the mug.", True))
    config = CaptureConfig(dtype="float32")
    new = arguments.new_tokens
    # Random weights may end at once, or write an image: every way gets the same number of tokens, all of them text.
    end = {"min_new_tokens": new, "suppress_tokens": [checkpoint.image_token_id]}
    path = arguments.folder / f"{arguments.way}.npz"

    def plain() -> dict[str, Any]:
        inputs = checkpoint.inputs([picture], [prompt])
        row = AnswerRow(0, ())
        generate_with_transformers(checkpoint, [row], inputs, Decoding(max_new_tokens=new), **end)
        return {"ids": np.array(row.token_ids)}

    def recorded() -> dict[str, Any]:
        found = capture_while_generating(checkpoint, picture, prompt, config, max_new_tokens=new, **end)
        return {"ids": np.array(found.token_ids), "attention": found.attention}

    def forced() -> dict[str, Any]:
        found = capture_teacher_forced(checkpoint, picture, prompt, _ids(arguments.folder), config)
        return {"attention": found.attention}

    def five() -> dict[str, Any]:
        return _five_passes(checkpoint, checkpoint.inputs([picture], [prompt]), _ids(arguments.folder))

    ways = dict(zip(WAYS, (plain, recorded, forced, five), strict=True))
    capture_while_generating(checkpoint, picture, prompt, config, max_new_tokens=2)  # first calls choose kernels
    result, seconds, megabytes = _timed(ways[arguments.way])
    if not arguments.memory:
        np.savez(path, **result)
    (arguments.folder / f"{arguments.way}.json").write_text(json.dumps({"seconds": seconds, "megabytes": megabytes}))


def _ids(folder: Path) -> list[int]:
    with np.load(folder / "plain.npz") as found:
        return found["ids"].tolist()


def _five_passes(checkpoint: Any, inputs: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """The yardstick: the whole attention of every layer and head, five times, for the last row of each pass.

    `found` lives until the next call has returned, as the variable of the reference's loop does.
    """
    import torch

    model = checkpoint.model
    columns = (inputs["input_ids"][0] == checkpoint.image_token_id).nonzero()[:, 0]
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    places = [max(1, len(ids) * part // 5) - 1 for part in range(1, 6)]
    maps = []
    for place in places:
        both = torch.cat([inputs["input_ids"], torch.tensor([ids[: place + 1]])], dim=1)
        with torch.inference_mode():
            found = model(input_ids=both, pixel_values=inputs["pixel_values"], output_attentions=True, use_cache=True)
        last = torch.stack([layer[0, :, -1, columns].mean(0) for layer in found.attentions[-LAYERS:]]).mean(0)
        maps.append(last.numpy())
    return {"attention": np.stack(maps), "places": np.array(places)}


def _timed(run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float, float]:
    """The result, seconds of the process, and the peak of its memory over what it held before, in MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building the model left free would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before, started = _status("VmRSS"), time.process_time()
    result = run()
    return result, time.process_time() - started, (_status("VmHWM") - before) / 1e6


def _status(name: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _model(hidden: int, layers: int, vocabulary: int, side: int) -> Any:
    """A checkpoint with random weights that reads 576 image tokens (at 336 pixels) with a tower of its own size."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

    from trace_vlm.model import build
    from trace_vlm.model.families.llava import LlavaCheckpoint

    tokenizer = build.nano_tokenizer()
    text = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)), hidden_size=hidden, intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=16, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, image_size=side,
        patch_size=14,
    )  # fmt: skip
    config = build.llava_configuration(text, vision, tokenizer.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    return LlavaCheckpoint(model, build.build_processor(tokenizer, vision), "random", "random")


if __name__ == "__main__":
    raise SystemExit(main())
