#!/usr/bin/env bash
# Trains on the GPUs of this machine or, given to sbatch, on those of a Slurm job; goes on by itself
# after failures and preemptions.
#
#   bash launch/gpu.sh [FLAGS] -- --config=FILE --workdir=DIR [...]
#   sbatch [--nodes=4 --gpus-per-node=8 ...] launch/gpu.sh [FLAGS] -- --config=FILE --workdir=DIR
#
# What follows -- are arguments of python -m launch.train; where they begin with a word instead of a
# flag, they are a command of their own. Relative paths in them start at the repository.
#
# On one machine a single process drives all GPUs, under launch/supervise.sh. In a Slurm job srun
# starts one process a node. Two minutes before the time limit the processes are told to save; then,
# and whenever they end with 75 (preempted and saved), the job is put into the queue again, to go on
# from there. scancel ends it for good. The repository, its .venv (bash launch/setup_env.sh gpu) and
# --workdir must be in the same place on all nodes. What sbatch is given before the script overrides
# the defaults below: one node, all of it, with all of its memory. A cluster that knows GPUs as
# generic resources needs --gpus-per-node=8 or the like; on others nvidia-smi counts the GPUs.
#
#   --processes_per_node=N  N processes a machine, each with its share of the GPUs (default 1)
#   --port=PORT             where these find each other on one machine (default 8476)
#   --max_restarts=N        restarts after failures in a row without progress (default 3)
#   --unsupervised          starts it once, and ends with its exit code
#   --dry-run               prints the commands and runs nothing
#   --help                  this text

#SBATCH --job-name=vdm_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

processes=1 port=8476 max_restarts=3 supervised=1 dry=0

die() {
  echo "gpu.sh: $1" >&2
  exit 2
}

# Checks that VALUE of --NAME is a whole number of at least 1.
number() {
  case "$2" in "" | 0* | *[!0-9]*) die "$1=$2: not a whole number of at least 1" ;; esac
}

while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
      exit
      ;;
    --processes_per_node=*) processes="${1#*=}" && number --processes_per_node "$processes" ;;
    --port=*) port="${1#*=}" && number --port "$port" ;;
    --max_restarts=*)
      max_restarts="${1#*=}"
      [ "$max_restarts" = 0 ] || number --max_restarts "$max_restarts"
      ;;
    --unsupervised) supervised=0 ;;
    --dry-run) dry=1 ;;
    --)
      shift
      break
      ;;
    *) die "unknown flag $1 (values follow by =, training's arguments by --); see --help" ;;
  esac
  shift
done
[ $# -gt 0 ] || die "the arguments of training are missing: ... -- --config=FILE --workdir=DIR"

# The repository. Slurm runs a copy of this script from a directory of its own.
find_root() {
  local candidate
  for candidate in "$(dirname "${BASH_SOURCE[0]}")/.." \
    "$(scontrol show job "${SLURM_JOB_ID:-}" 2>/dev/null |
      sed -n 's|^ *Command=\(.*\)/launch/gpu\.sh.*|\1|p')" "${SLURM_SUBMIT_DIR:-}"; do
    if [ -n "$candidate" ] && [ -f "$candidate/launch/train.py" ]; then
      (cd "$candidate" && pwd)
      return
    fi
  done
  die "the repository is not found: call sbatch in its directory"
}

# One line that a shell reads as these words.
quoted() {
  local word line=""
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=,@%+-]*)
        word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
        ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Becomes the command, or prints it in a dry run.
become() {
  if [ "$dry" = 1 ]; then
    quoted "$@"
    exit
  fi
  exec "$@"
}

root="$(find_root)"
case "$1" in
  -*) command=(.venv/bin/python -m launch.train "$@") ;;
  *) command=("$@") ;;
esac
[ "$dry" = 0 ] || quoted cd "$root"
cd "$root"
export PATH="$root/.venv/bin:$PATH"

# How many GPUs this machine has.
count_gpus() {
  nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
}

if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "${SLURM_STEP_ID:-}" ]; then
  nodes="${SLURM_JOB_NUM_NODES:-1}" gpus="${SLURM_GPUS_ON_NODE:-$(count_gpus)}"
  [ "$gpus" != 0 ] ||
    die "nvidia-smi finds no GPU on $(uname -n): another --partition, or --gpus-per-node=N of sbatch"
  if [ "$processes" != 1 ] && [ "$processes" != "$gpus" ]; then
    die "--processes_per_node=$processes: on Slurm 1 or the number of GPUs of a node, $gpus"
  fi
  if [ "$dry" = 0 ] && [ ! -x .venv/bin/python ]; then
    die "there is no $root/.venv: bash launch/setup_env.sh gpu makes it"
  fi
  step=(srun "--nodes=$nodes" "--ntasks=$((nodes * processes))" "--ntasks-per-node=$processes"
    # Each process may use all cores. One that ends early leaves the others time to save and to end.
    --cpu-bind=none --kill-on-bad-exit=0 --wait=300)
  if [ "$processes" = 1 ] && [ "$gpus" -gt 1 ]; then
    # JAX takes a single GPU for each process of a Slurm job, unless it is told otherwise.
    step+=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))")
  fi
  [ "$supervised" = 1 ] || become "${step[@]}" "${command[@]}"
  job="$SLURM_JOB_ID"
  # Once cancelled the job is neither.
  state="scontrol show job $job | grep -Eq 'JobState=(RUNNING|PREEMPTED)|Reason=TimeLimit'"
  # srun would kill its processes on a TERM, so Slurm itself is asked to pass it on.
  become bash "$root/launch/supervise.sh" "--max_restarts=$max_restarts" \
    "--forward=scancel $job --signal" "--on_preempted=! $state || scontrol requeue $job" \
    -- "${step[@]}" "${command[@]}"
fi

if [ "$supervised" = 1 ]; then
  if [ "$dry" = 1 ]; then
    quoted bash launch/setup_env.sh gpu
  else
    bash launch/setup_env.sh gpu
  fi
  supervise=(bash launch/supervise.sh "--max_restarts=$max_restarts" --)
  if [ "$processes" = 1 ]; then
    become "${supervise[@]}" "${command[@]}"
  fi
  inner=(bash launch/gpu.sh --unsupervised "--processes_per_node=$processes" "--port=$port" -- "$@")
  if [ "$dry" = 0 ]; then
    exec "${supervise[@]}" "${inner[@]}"
  fi
  quoted "${supervise[@]}" "${inner[@]}"
  echo "# which starts together, each time:"
elif [ "$processes" = 1 ]; then
  become "${command[@]}"
fi

# Several processes on this machine, each with its share of the GPUs.
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
else
  count="$(count_gpus)"
  [ "$dry" = 0 ] || [ "$count" != 0 ] || count="$processes" # a plan for another machine
  [ "$count" != 0 ] || die "nvidia-smi finds no GPU here"
  gpus=()
  for ((i = 0; i < count; i++)); do gpus+=("$i"); done
fi
share=$((${#gpus[@]} / processes))
if [ $((share * processes)) != ${#gpus[@]} ] || [ "$share" = 0 ]; then
  die "--processes_per_node=$processes: ${#gpus[@]} GPUs cannot be shared evenly among them"
fi

pids=() codes=() came=""
pass_on() {
  local pid
  came="$1"
  for pid in ${pids[@]+"${pids[@]}"}; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

for ((i = 0; i < processes; i++)); do
  visible="$(IFS=, && echo "${gpus[*]:$((i * share)):share}")"
  process=(env "CUDA_VISIBLE_DEVICES=$visible" "VDM_JAX_COORDINATOR=localhost:$port"
    "VDM_JAX_NUM_PROCESSES=$processes" "VDM_JAX_PROCESS_ID=$i" "${command[@]}")
  if [ "$dry" = 1 ]; then
    quoted "${process[@]}"
    continue
  fi
  set -m # a process group of its own: a Ctrl-C in the terminal comes through pass_on only, once
  "${process[@]}" </dev/null &
  set +m
  pids+=($!) codes+=("")
  [ -z "$came" ] || kill -s "$came" "${pids[i]}" || true # it came before this process
done
[ "$dry" = 0 ] || exit 0

# Once one has ended the others have five minutes to end too, or none where it failed: they wait for
# it. Then they are told to, and a minute later killed.
result=0 left=$processes deadline="" told=""
while [ "$left" -gt 0 ]; do
  sleep 0.2 || true
  for ((i = 0; i < processes; i++)); do
    if [ -n "${codes[i]}" ] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    code=0
    wait "${pids[i]}" 2>/dev/null || code=$?
    codes[i]=$code left=$((left - 1))
    if [ "$came" = TERM ] && [ "$code" = 143 ]; then code=75; fi # it had nothing to save yet
    case "$code" in
      0) grace=300 ;;
      75)
        [ "$result" != 0 ] || result=75
        grace=300
        ;;
      *)
        echo "gpu.sh: process $i failed with $code" >&2
        if [ "$result" = 0 ] || [ "$result" = 75 ]; then result=$code; fi
        grace=0
        ;;
    esac
    if [ -z "$deadline" ] || [ $((SECONDS + grace)) -lt "$deadline" ]; then
      deadline=$((SECONDS + grace))
    fi
  done
  if [ "$left" = 0 ] || [ -z "$deadline" ] || [ "$SECONDS" -lt "$deadline" ]; then continue; fi
  if [ -z "$told" ]; then
    told=1 deadline=$((SECONDS + 60))
    pass_on TERM
  else
    pass_on KILL
  fi
done
exit "$result"
