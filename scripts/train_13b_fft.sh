#!/usr/bin/env bash
# Full fine-tuning of the 13B model with DeepSpeed ZeRO-3; the hyper-parameters are in configs/train_13b_fft.yaml.
#
#   bash scripts/train_13b_fft.sh [DATA_FILE OUT_DIR MODEL_SIZE BATCH_PER_GPU GRAD_ACC_STEPS LR NUM_EPOCHS NUM_GPUS
#                                  NUM_NODES SAVE_FREQ] [--set KEY=VALUE ...]
#
# A position that is absent or "" keeps the configuration's value. MODEL_SIZE is 7b or 13b. NUM_GPUS are those of one
# node (default: all). Several nodes: HOSTFILE=FILE, a SLURM allocation, or MASTER_ADDR and NODE_RANK on every node.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$ROOT/scripts/launch.sh"
launch_training configs/train_13b_fft.yaml "$@"
