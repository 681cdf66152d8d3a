#!/usr/bin/env bash
# What waits for a GPU, in one command of under nine minutes: bash benchmarks/gpu.sh OUT
#
# Qwen3-VL's training, the 13B LLaVA's generation and attention, with random weights: torch, transformers, peft, offline.
# What fails, or takes longer than its time, does not stop the rest.
set -uo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
run() { # seconds, script, its arguments
  echo "$(date +%T) $2, at most $1 s"
  timeout "$1" "${PYTHON:-python3}" "$(dirname "$0")/$2" "${@:3}" || echo "$2: status $?"
}
run 325 train_gpu.py --model qwen3-vl --out "$out/train_qwen3_vl.json"
run 210 eval_throughput.py --static --preset 13b --device cuda --out "$out/static_13b.json"
