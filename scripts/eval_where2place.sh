#!/usr/bin/env bash
# Answers the questions of Where2Place, or of any folder in its layout, and prints the accuracy.
#
#   bash scripts/eval_where2place.sh MODEL_PATH [DATA_DIR [OUT_DIR]] [arguments of trace_vlm.eval.model_vqa ...]
#
# DATA_DIR (default datasets/where2place) holds images/, masks/ and point_questions.jsonl. OUT_DIR (default
# output/where2place/NAME_OF_THE_MODEL) gets answers.jsonl and summary.json; the same command continues an evaluation
# that was cut off. An adapter needs --model-base BASE.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

given=()
while (($#)) && [[ $1 != --* ]]; do given+=("$1"); shift; done
((${#given[@]} >= 1 && ${#given[@]} <= 3)) || die "$SCRIPT needs MODEL_PATH [DATA_DIR [OUT_DIR]]; --help explains them"
model=${given[0]}
[[ ! -e $CALLER/$model ]] || model=$(absolute "$model") # otherwise a preset, or a full path
data=${given[1]:+$(absolute "${given[1]}")}
data=${data:-$ROOT/datasets/where2place}
out=${given[2]:+$(absolute "${given[2]}")}
out=${out:-$ROOT/output/where2place/$(basename "$model")}
[[ -f $data/point_questions.jsonl ]] || die "$SCRIPT found no point_questions.jsonl in $data; give the benchmark's folder as DATA_DIR, or see: python -m trace.eval.published_benchmarks"
need_environment

"$PY" -m trace_vlm.eval.model_vqa --model "$model" --data "$data" --answers "$out/answers.jsonl" "$@"
"$PY" -m trace_vlm.eval.summarize_vqa --answers "$out/answers.jsonl" --data "$data"
