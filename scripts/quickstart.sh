#!/usr/bin/env bash
# From a fresh clone to a model that reasons and points: installs, makes scenes, trains, evaluates, and writes one page.
#
#   bash scripts/quickstart.sh [--from-scratch] [OUT]      OUT (default output/quickstart) gets everything: OUT/report.html
#
# --from-scratch trains one starting point for both ways, instead of the two that ship with the package (an hour or more).
# A second run reuses what is whole. TRACE_VENV=DIR takes another environment than .venv; SCENES and STEPS change the
# size of the job (1600 scenes, 500 steps), SCRATCH_STEPS that of the three stages of --from-scratch ("2600 2600 5000").
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
SCRATCH=0
[[ ${1:-} != --from-scratch ]] || { SCRATCH=1; shift; }
(($# <= 1)) && [[ ${1:-} != -* ]] || die "$SCRIPT takes --from-scratch and one folder, where the results go; --help explains"
SCENES=${SCENES:-1600} STEPS=${STEPS:-500}
read -r VISION_STEPS PROJECTOR_STEPS POINTING_STEPS <<<"${SCRATCH_STEPS:-2600 2600 5000}"

OUT=${1:+$(absolute "$1")}
OUT=${OUT:-$ROOT/output/quickstart}
"${SETUP[@]}" --require-rendering

mkdir -p "$OUT" 2>/dev/null && [[ -w $OUT ]] || die "the output folder $OUT cannot be written"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 # the two cores get a process each
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT # what runs in the background ends with the script

BACKGROUND=
module() { ${BACKGROUND:+exec} "$PY" -m "trace_vlm.$@"; } # in the background Python itself is the job that the trap ends
step() { printf '\n== %s\n' "$*"; }
scenes() { module data.scenes.generate --config configs/scenes/nano_quickstart.yaml --size 128 --views 1 --workers 2 "$@"; }
train() { # arm, starting point, training file, steps
  module train.train --config configs/train_nano.yaml --set model="$2" data="$OUT/data/$3" image_folder="$OUT/data" \
    output_dir="$OUT/train/$1" max_steps="$4"
}
answer() { # arm, --reasoning | --no-reasoning
  module eval.model_vqa --model "$OUT/train/$1" --images "$OUT/bench/images" --batch-size 64 "$2" \
    --questions "$OUT/bench/point_questions.jsonl" --answers "$OUT/answers/$1.jsonl"
}

step "scenes to train on, and a benchmark of others"
scenes --out "$OUT/data" --scenes "$SCENES" --seed 201
scenes --out "$OUT/bench" --scenes 200 --seed 202 --benchmark

step "reasoning, written from what each scene knows"
[[ -f $OUT/data/cor.json ]] ||
  module data.cor.build --data "$OUT/data/data.json" --out "$OUT/data/cor.json" --reasoner rules --coordinates --decimals 2

START=trace/assets/nano DIRECT_START=trace/assets/nano-direct # trained as long on the same scenes without reasoning
if ((SCRATCH)); then
  step "the starting point, from nothing: vision, names and places, pointing (an hour or more)"
  START=$OUT/train/pointing DIRECT_START=$OUT/train/pointing
  CAPTIONS=$OUT/data/captions.json
  stage() { module train.train --config "configs/nano_$1.yaml" --set output_dir="$OUT/train/$1" image_folder="$OUT/data" "${@:2}"; }
  [[ -f $CAPTIONS ]] || module data.scenes.captions --data "$OUT/data" --out "$CAPTIONS"
  stage vision data="$OUT/data" max_steps="$VISION_STEPS"
  stage projector model="$OUT/train/vision" data="$CAPTIONS" max_steps="$PROJECTOR_STEPS"
  stage pointing model="$OUT/train/projector" data="[$OUT/data/data.json,$OUT/data/cor.json,$CAPTIONS]" max_steps="$POINTING_STEPS"
fi

step "fine-tuning with reasoning (its log: $OUT/train_cor.log) and, beside it, without"
BACKGROUND=1 train cor "$START" cor.json "$STEPS" >>"$OUT/train_cor.log" 2>&1 &
COR=$!
train no_cor "$DIRECT_START" data.json "$STEPS"

step "and without reasoning once more, for as long as reasoning takes"
LONGER=$("$PY" - "$OUT/train/cor/log.jsonl" "$OUT/train/no_cor/run.json" "$OUT/train/no_cor_time/run.json" <<'PYTHON'
import json, os, sys
log, no_cor, begun = sys.argv[1:]
if os.path.exists(begun):  # a second run continues what the first one chose
    print(json.load(open(begun))["config"]["max_steps"])
else:
    cor = [entry for entry in map(json.loads, open(log)) if "cpu_seconds" in entry][-1]
    no_cor = json.load(open(no_cor))
    print(round(no_cor["steps"] * (cor["cpu_seconds"] / cor["step"]) / (no_cor["cpu_seconds"] / no_cor["steps"])))
PYTHON
)
BACKGROUND=1 train no_cor_time "$DIRECT_START" data.json "$LONGER" >>"$OUT/train_no_cor_time.log" 2>&1 &
TIME=$!
wait "$COR" || die "fine-tuning with reasoning failed; see $OUT/train_cor.log"

step "answers to the benchmark"
answer no_cor --no-reasoning
answer cor --reasoning
step "attention at each step of the reasoning"
"$PY" visualization/attention_map.py --model "$OUT/train/cor" --data "$OUT/bench" --out "$OUT/attention" \
  --end-idx 84 --every 7 --resume  # 12 questions about 10 images, which have eight each
step "waiting for the longer fine-tuning without reasoning (its log: $OUT/train_no_cor_time.log)"
wait "$TIME" || die "fine-tuning without reasoning failed; see $OUT/train_no_cor_time.log"
answer no_cor_time --no-reasoning

step "accuracy"
LABELS=(reasoning "no reasoning" "no reasoning, equal time") # the first one is what the others are compared with
module eval.summarize_vqa --answers "$OUT"/answers/{cor,no_cor,no_cor_time}.jsonl --labels "${LABELS[@]}" \
  --data "$OUT/bench" --out "$OUT"
step "pictures and the page"
"$PY" visualization/visualize_results.py --answers "$OUT"/answers/{cor,no_cor,no_cor_time}.jsonl \
  --labels "${LABELS[@]}" --sort disagree --data "$OUT/bench" --out "$OUT/comparison" --num 16
module report.page --run "$OUT" --title "Pointing with and without reasoning"
printf '\nopen %s\n' "$OUT/report.html"
