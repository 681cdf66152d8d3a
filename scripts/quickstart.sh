#!/usr/bin/env bash
# From a fresh clone to a model that reasons and points: installs, makes scenes, trains, evaluates, and writes one page.
#
#   bash scripts/quickstart.sh [OUT]        OUT (default output/quickstart) gets everything; see OUT/report.html
#
# A second run reuses what is whole. TRACE_VENV=DIR takes another environment than .venv.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($# <= 1)) && [[ ${1:-} != -* ]] || die "$SCRIPT takes one folder, where the results go; --help explains"

OUT=${1:+$(absolute "$1")}
OUT=${OUT:-$ROOT/output/quickstart}
"${SETUP[@]}" --require-rendering

# >>> PIPELINE: generate, reason, train, answer, summarize, draw, report. "$PY" -m trace_vlm.MODULE ... into "$OUT". <<<
