#!/usr/bin/env bash
# Trains the projector alone, LLM and vision tower frozen (LLaVA's first stage): configs/pretrain_projector.yaml.
#
#   bash scripts/pretrain_projector.sh [DATA_FILE OUT_DIR MODEL_SIZE BATCH_PER_GPU GRAD_ACC_STEPS LR NUM_EPOCHS NUM_GPUS
#                                       NUM_NODES SAVE_FREQ] [--set KEY=VALUE ...]
#
# A position that is absent or "" keeps the configuration's value. MODEL_SIZE is 7b or 13b. NUM_GPUS are those of one
# node (default: all). Several nodes: HOSTFILE=FILE, a SLURM allocation, or MASTER_ADDR and NODE_RANK on every node.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$ROOT/scripts/launch.sh"
launch_training configs/pretrain_projector.yaml "$@"
