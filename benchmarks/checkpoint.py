"""Loading and converting against a plain read of the same files: processor time as a ratio, memory in weights.

    python benchmarks/checkpoint.py --gigabytes 3

Makes a LLaVA checkpoint of random weights in the original layout (float16, safetensors shards, CLIP-L/14-336 tower
inside) in a temporary folder, then measures three fresh processes: reading the files in pieces of 64 MB, loading
the model, converting the folder. Time is the process's own on the processor, waiting for the disk left out, so that
others on the machine change little. A process's peak is the system's own figure (VmHWM) less what the imported libraries
take before the work begins. Files are warm: each is read once before. `--folder` says where (3 x the size).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LAYERS = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16}  # 50.6 M parameters each
READ = """
import time
started = time.process_time()
buffer = bytearray(1 << 26)
for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with open(file, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
"""
LOAD = """
from trace_vlm.model import checkpoint_plan
from trace_vlm.model.checkpoint import load
import transformers.models.llava.modeling_llava, transformers.models.clip.modeling_clip
started, before = time.process_time(), memory()
checkpoint = load(sys.argv[1], dtype="float16")
"""
LOAD_WIDER = LOAD.replace("float16", "float32")
CONVERT = """
from trace_vlm.model import convert
import transformers.models.llava.modeling_llava, transformers.models.clip.modeling_clip
started, before = time.process_time(), memory()
convert.convert(sys.argv[1], sys.argv[2])
"""
FRAME = """
import json, re, sys, time
from pathlib import Path
def memory(field="VmRSS"):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = memory()
{work}
print(json.dumps({{"seconds": time.process_time() - started, "bytes": memory("VmHWM") - before}}))
"""


def make(folder: Path, size: int, tokenizer: Path) -> None:
    """A LLaVA checkpoint of about `size` bytes of float16, written a tensor at a time."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

    from trace_vlm.model import lazy_tensors
    from trace_vlm.model.build import expected_tensors, llava_configuration
    from trace_vlm.model.lazy_tensors import LazyTensor, write_weights
    from trace_vlm.model.llava_layout import llava_name
    from trace_vlm.model.presets import CLIP_L_336

    rest, layer = 2 * (304_000_000 + 2 * 1000 * 2048), 2 * 50_600_000
    layers = max(2, round((size - rest) / layer))
    text = {**LAYERS, "num_hidden_layers": layers, "vocab_size": 1000, "rms_norm_eps": 1e-5}
    config = llava_configuration(LlamaConfig(**text), CLIPVisionConfig(**CLIP_L_336), 1000)
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(shape, "float16", "random", lambda: (torch.randn(shape, generator=generator) * 0.02).half())

    folder.mkdir()
    weights = {llava_name(name): drawn(shape) for name, shape in expected_tensors(config).items()}
    lazy_tensors.SHARD_BYTES = 1_000_000_000
    write_weights(folder, weights)
    llava = {
        **text, "model_type": "llava", "mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(llava))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def measured(work: str, *arguments: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", FRAME.format(work=work), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(source: Path, target: Path) -> list[str]:
    """Lines of results: plain read, load in the stored type, load in float32, convert."""
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    measured(READ, source)  # warm
    plain = measured(READ, source)
    lines = [f"{size / 1e9:.2f} GB of float16; plain read {plain['seconds']:.2f} CPU s"]
    for name, work, weights in (
        ("load, float16", LOAD, size),
        ("load, float32", LOAD_WIDER, 2 * size),
        ("convert and verify", CONVERT, size),
    ):
        found = measured(work, source, target)
        lines.append(
            f"{name}: {found['seconds']:.2f} CPU s, {found['seconds'] / plain['seconds']:.1f} x the plain read; "
            f"peak memory {found['bytes'] / 1e9:.2f} GB, {found['bytes'] / weights:.3f} x the weights"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor time and memory of loading and converting a checkpoint.")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint (default: 4)")
    parser.add_argument("--folder", type=Path, help="where to make it; by default the system's temporary folder")
    arguments = parser.parse_args()
    tokenizer = Path(__file__).resolve().parent.parent / "tests" / "data" / "llava_original" / "tokenizer"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make(Path(folder) / "made", int(arguments.gigabytes * 1e9), tokenizer)
        print("\n".join(compare(Path(folder) / "made", Path(folder) / "converted")))


if __name__ == "__main__":
    main()
