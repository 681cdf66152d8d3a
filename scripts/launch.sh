# How the training scripts start, on one node or several; sourced by them after common.sh.
#
# One node: the deepspeed launcher, on the GPUs that CUDA_VISIBLE_DEVICES lists, or all. Several nodes, whichever of these
# is there:
#   HOSTFILE=FILE        DeepSpeed's hostfile, all of its nodes; start once, on one node that reaches the others by ssh
#   a SLURM allocation   start once in the batch script, or with srun, one task a node
#   NNODES, MASTER_ADDR, NODE_RANK [MASTER_PORT]   torchrun; start on every node
# Everything else in the environment (NCCL_*, CUDA_VISIBLE_DEVICES, ...) passes through. Before processes start, the
# configuration, its files and its models are checked. --dry-run prints the command of every node and starts nothing;
# with GPUS=N it needs no GPU.

count_gpus() {
  local listed
  listed=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  if ((listed > 0)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    listed=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^ ]' || true)
  fi
  echo "$listed"
}

count_hosts() { grep -cE '^[[:space:]]*[^#[:space:]]' "$1" || true; }

positive_number() { [[ -z $2 || $2 =~ ^[1-9][0-9]*$ ]] || die "$SCRIPT: $1 is $2; expected a whole number above 0"; }

# launch_training CONFIG --plan [ARGUMENTS ...]
# launch_training CONFIG DATA.json IMAGE_FOLDER OUTPUT_DIR [key=value ...]
# launch_training CONFIG [DATA_FILE OUT_DIR MODEL_SIZE BATCH_PER_GPU GRAD_ACC_STEPS LR NUM_EPOCHS NUM_GPUS NUM_NODES
#   SAVE_FREQ] [--set] [key=value ...]
# An empty or absent position leaves the configuration's own value. Three positions are the second form, unless the
# third is a size (7b, 13b).
launch_training() {
  local config=$1 given=() set=() data out images="" size batch accumulate rate epochs gpus nodes save here word words=()
  shift
  for word in "$@"; do
    if [[ $word == --dry-run ]]; then DRY_RUN=1; else words+=("$word"); fi
  done
  set -- ${words[@]+"${words[@]}"}
  if [[ ${1:-} == --plan ]]; then
    shift
    need_environment
    exec "$PY" -m trace_vlm.train.plan --config "$config" "$@"
  fi
  while (($#)) && [[ $1 != --* && ! $1 =~ ^[a-z_]+(\.[a-z_]+)*= ]]; do given+=("$1"); shift; done
  ((${#given[@]} <= 10)) || die "$SCRIPT takes ten values by position and got ${#given[@]}; --help names them"
  if ((${#given[@]} == 3)) && [[ -n ${given[2]} && ! ${given[2]} =~ ^[0-9]+b$ ]]; then
    images=${given[1]}
    given=("${given[0]}" "${given[2]}")
  fi
  data=${given[0]:-} out=${given[1]:-} size=${given[2]:-} batch=${given[3]:-} accumulate=${given[4]:-}
  rate=${given[5]:-} epochs=${given[6]:-} gpus=${given[7]:-${GPUS:-}} nodes=${given[8]:-} save=${given[9]:-}
  here=$(count_gpus)
  ((here > 0)) || [[ -n ${DRY_RUN:-} && -n $gpus ]] || die "$SCRIPT needs NVIDIA GPUs, and ${CUDA_VISIBLE_DEVICES+CUDA_VISIBLE_DEVICES or }nvidia-smi lists none. Without a GPU, bash scripts/quickstart.sh trains the nano model; bash scripts/$SCRIPT --plan estimates this run, and GPUS=8 bash scripts/$SCRIPT --dry-run ... prints its commands."
  [[ -n ${DRY_RUN:-} ]] || need_environment --gpu
  positive_number BATCH_PER_GPU "$batch"
  positive_number GRAD_ACC_STEPS "$accumulate"
  positive_number NUM_GPUS "$gpus"
  positive_number NUM_NODES "$nodes"
  positive_number SAVE_FREQ "$save"
  if [[ -n ${HOSTFILE:-} ]]; then
    [[ -f $(absolute "$HOSTFILE") ]] || die "$SCRIPT: the hostfile $HOSTFILE does not exist"
    nodes=${nodes:-$(count_hosts "$(absolute "$HOSTFILE")")}
  fi
  gpus=${gpus:-$here}
  nodes=${nodes:-${SLURM_JOB_NUM_NODES:-${NNODES:-1}}}
  ((nodes > 1)) || [[ -z ${MASTER_ADDR:-}${NODE_RANK:-} ]] ||
    die "$SCRIPT: MASTER_ADDR or NODE_RANK is set, but there is one node. Set NNODES to the number of nodes, or unset both"
  ((nodes > 1 || gpus <= here)) || [[ -n ${DRY_RUN:-} ]] || die "$SCRIPT: NUM_GPUS is $gpus, but there are $here here"

  [[ -z $data ]] || set+=("data=$(absolute "$data")")
  [[ -z $images ]] || set+=("image_folder=$(absolute "$images")")
  [[ -z $out ]] || set+=("output_dir=$(absolute "$out")")
  case $size in
    "") ;;
    7b | 13b)
      set+=("model.llm=lmsys/vicuna-$size-v1.5")
      # Only where the configuration starts from a trained projector, which belongs to one size.
      ! grep -q 'projector: *liuhaotian/' "$config" ||
        set+=("model.projector=liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-$size-v1.5")
      ;;
    *) die "$SCRIPT: MODEL_SIZE is $size; expected 7b or 13b (another model: model=FOLDER)" ;;
  esac
  [[ -z $batch ]] || set+=("micro_batch_size=$batch")
  if [[ -n $accumulate ]]; then
    [[ -n $batch ]] || die "$SCRIPT: GRAD_ACC_STEPS needs BATCH_PER_GPU: the configuration holds their product, global_batch_size"
    set+=("global_batch_size=$((batch * accumulate * gpus * nodes))")
  fi
  [[ -z $rate ]] || set+=("learning_rate=$rate")
  [[ -z $epochs ]] || set+=("epochs=$epochs")
  [[ -z $save ]] || set+=("save_steps=$save")
  if [[ ${1:-} == --set ]]; then shift; fi
  set+=("$@")

  local command=(trace_vlm.train.train --config "$config")
  ((${#set[@]} == 0)) || command+=(--set "${set[@]}")
  if [[ -z ${DRY_RUN:-} ]]; then # a mistake shows now, and not after every process has loaded its packages
    word=$("$PY" -m "${command[@]}" --check "$((gpus * nodes))" 2>&1) || die "${word#error: }"
  fi
  start "$gpus" "$nodes" "${command[@]}"
}

# start NUM_GPUS NUM_NODES MODULE ARGUMENTS...
start() {
  local gpus=$1 nodes=$2 rank port=${MASTER_PORT:-29500} torchrun=("$PY" -m torch.distributed.run) head
  shift 2
  torchrun+=(--nnodes "$nodes" --nproc-per-node "$gpus")
  if [[ -n ${HOSTFILE:-} ]]; then
    deepspeed_launch --hostfile "$(absolute "$HOSTFILE")" --num_nodes "$nodes" --num_gpus "$gpus" --module "$@"
  elif ((nodes == 1)); then
    local which=(--num_gpus "$gpus")
    if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then # which DeepSpeed heeds only where nothing else says how many
      CUDA_VISIBLE_DEVICES=$(cut -d, -f "1-$gpus" <<<"$CUDA_VISIBLE_DEVICES")
      which=()
    fi
    deepspeed_launch ${which[@]+"${which[@]}"} ${MASTER_PORT:+--master_port "$MASTER_PORT"} --module "$@"
  elif [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    head=${head%%$'\n'*}
    torchrun+=(--rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port" -m "$@")
    if [[ -n ${SLURM_STEP_ID:-} ]]; then
      supervise "${torchrun[@]}" # already one task a node
    else
      supervise srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 "${torchrun[@]}"
    fi
  elif [[ -n ${DRY_RUN:-} ]]; then
    for ((rank = 0; rank < nodes; rank++)); do
      printf 'on node %d: ' "$rank"
      (supervise "${torchrun[@]}" --node-rank "$rank" --master-addr "${MASTER_ADDR:-ADDRESS_OF_NODE_0}" --master-port "$port" -m "$@")
    done
  elif [[ -n ${MASTER_ADDR:-} && -n ${NODE_RANK:-} ]]; then
    supervise "${torchrun[@]}" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$port" -m "$@"
  else
    die "$SCRIPT: for NUM_NODES=$nodes give HOSTFILE=FILE, start inside a SLURM allocation, or set NNODES, MASTER_ADDR and NODE_RANK on every node"
  fi
}

deepspeed_launch() {
  [[ -n ${DRY_RUN:-} ]] || command -v deepspeed >/dev/null || die "$SCRIPT starts through DeepSpeed, which is not installed: bash environment_setup.sh --gpu"
  supervise deepspeed --no_local_rank "$@"
}

# Run a launcher to its end. SIGTERM (a preemption) and Ctrl-C go to the training processes, which save and end; launchers
# themselves would kill them within 30 seconds, less than a big model takes to be written. Ends with 143 then.
supervise() {
  local code=0 preempted=0 launcher
  printf '+ %s\n' "$*"
  [[ -z ${DRY_RUN:-} ]] || exit 0
  (
    trap '' TERM INT # inherited: SLURM and terminals signal every process
    export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGHUP,SIGQUIT
    exec "$@"
  ) &
  launcher=$!
  trap 'preempted=1; signal_trainers "$launcher"' TERM INT
  while true; do
    wait "$launcher" && code=0 || code=$?
    kill -0 "$launcher" 2>/dev/null || break
  done
  ((preempted == 0)) || exit 143
  exit "$code"
}

signal_trainers() {
  local child
  for child in $(pgrep -P "$1"); do
    if tr '\0' ' ' <"/proc/$child/cmdline" 2>/dev/null | grep -q '^[^ ]*python[^ ]* \(-u \)\?-m trace_vlm.train.train '; then
      kill -TERM "$child" 2>/dev/null || true
    else
      signal_trainers "$child"
    fi
  done
}
