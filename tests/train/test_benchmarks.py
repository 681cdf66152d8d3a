"""The benchmark for GPUs runs here with tiny sizes: what it writes is complete, whoever has the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_gpu_benchmark_measures_a_padded_and_a_packed_case(tmp_path):
    pytest.importorskip("deepspeed", reason="these two cases step in ZeRO-2")
    out = tmp_path / "train_gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks/train_gpu.py"), "--tiny", "--out", str(out), "--only", "9", "10"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    found = json.loads(out.read_text())
    packed, padded = found["cases"]
    for case in (padded, packed):
        assert "failed" not in case and case["tokens_per_second"] > 0 and case["peak_memory_gib"] > 0
    assert padded["padding_share"] > packed["padding_share"] == 0
    assert set(found["ratios"]) == {"trace-13b lora: packed (varlen) / padded"}
    refused = subprocess.run([*command[:2], "--out", str(out)], capture_output=True, text=True)
    assert refused.returncode and "no CUDA device" in refused.stderr
