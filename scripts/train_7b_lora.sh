#!/usr/bin/env bash
# LoRA fine-tuning of the 7B model with DeepSpeed ZeRO-2; the hyper-parameters are in configs/train_7b_lora.yaml.
#
#   bash scripts/train_7b_lora.sh DATA.json IMAGE_FOLDER OUTPUT_DIR [key=value ...]
#   bash scripts/train_7b_lora.sh --plan [arguments of trace.train.plan ...]
#   bash scripts/train_7b_lora.sh --dry-run DATA.json IMAGE_FOLDER OUTPUT_DIR        prints the command of every node
#
# One node, or several: HOSTFILE=FILE, a SLURM allocation, or MASTER_ADDR and NODE_RANK on every node; GPUS=N takes N
# of each node (default: all). key=value overrides the configuration. The original's order of values also works:
# DATA_FILE OUT_DIR MODEL_SIZE BATCH_PER_GPU GRAD_ACC_STEPS LR NUM_EPOCHS NUM_GPUS NUM_NODES SAVE_FREQ ("" keeps one).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$ROOT/scripts/launch.sh"
launch_training configs/train_7b_lora.yaml "$@"
