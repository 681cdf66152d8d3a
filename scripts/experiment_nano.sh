#!/usr/bin/env bash
# Where reasoning pays: trains the arms of the experiment on the nano model, compares them, and writes docs/experiments/nano.md.
#
#   bash scripts/experiment_nano.sh [OUT] [--quick] [--sections hops dose ...]     OUT is output/experiment_nano by default
#
# About twenty CPU hours by estimate, two arms at a time; every stage continues where it was stopped, and an arm whose scores
# are in OUT/scores is neither trained nor asked again. --quick takes minutes: few scenes and steps, one seed, and a page
# in OUT alone, to try the commands out.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_environment
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 # two arms at a time, one thread each
exec "$PY" scripts/experiment_nano.py "$@"
