#!/usr/bin/env bash
# An example: trains on TPUs of a GKE cluster, by XPK (https://github.com/AI-Hypercomputer/xpk).
#
#   bash launch/xpk.sh --cluster=NAME --workload=NAME --type=TYPE --storage=NAME [FLAGS] \
#       -- --config=FILE --workdir=DIR [...]
#
# e.g.
#   bash launch/xpk.sh --cluster=pods --workload=vdm-1 --type=v5p-128 --storage=shared \
#       -- --config=configs/vdm/ucf101.py --workdir=/shared/ucf101
#
# XPK builds a container image of what is committed here. Every worker installs it with
# launch/setup_env.sh tpu, and runs  python -m launch.train  with what follows --, or, where that
# begins with a word instead of a flag, this command, under launch/supervise.sh. When workers are
# preempted the cluster starts all of them again. --workdir and the data must be in a --storage,
# which all workers see. `xpk workload delete --cluster=NAME --workload=NAME` ends it.
#
#   --cluster=NAME         the cluster
#   --workload=NAME        a name for this run: lower case, digits and hyphens
#   --type=TYPE            TPU type of a slice, such as v5p-128
#   --slices=N             slices that train as one (default 1)
#   --storage=NAME         a storage of the cluster (xpk storage attach ...); may be repeated
#   --image=IMAGE          image to build on: bash, Python 3.11 or newer (default python:3.12)
#   --project=PROJECT      default: gcloud's
#   --zone=ZONE            default: gcloud's
#   --max_restarts=N       restarts of a worker after failures in a row without progress (default 3)
#   --max_preemptions=N    restarts of all workers after preemptions (default 100)
#   --dry-run              prints the commands and runs nothing
#   --help                 this text
set -euo pipefail

die() {
  echo "xpk.sh: $1" >&2
  exit 2
}

# Checks that VALUE of --NAME is a whole number.
number() {
  case "$2" in "" | *[!0-9]*) die "$1=$2: not a whole number" ;; esac
}

cluster="" workload="" type="" slices=1 image=python:3.12 project="" zone=""
max_restarts=3 max_preemptions=100 dry=0 storages=()
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
      exit
      ;;
    --cluster=*) cluster="${1#*=}" ;;
    --workload=*) workload="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --slices=*) slices="${1#*=}" && number --slices "$slices" ;;
    --storage=*) storages+=("--storage=${1#*=}") ;;
    --image=*) image="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --max_restarts=*) max_restarts="${1#*=}" && number --max_restarts "$max_restarts" ;;
    --max_preemptions=*) max_preemptions="${1#*=}" && number --max_preemptions "$max_preemptions" ;;
    --dry-run) dry=1 ;;
    --)
      shift
      break
      ;;
    *) die "unknown flag $1 (values follow by =, training's arguments by --); see --help" ;;
  esac
  shift
done
[ -n "$cluster" ] || die "--cluster=NAME is missing"
[ -n "$workload" ] || die "--workload=NAME is missing"
[ -n "$type" ] || die "--type=TYPE is missing, such as --type=v5p-128"
[ ${#storages[@]} -gt 0 ] || die "--storage=NAME is missing: where all workers find --workdir"
[ $# -gt 0 ] || die "the arguments of training are missing: ... -- --config=FILE --workdir=DIR"
if [ "$dry" = 0 ] && ! command -v xpk >/dev/null; then
  die "xpk is not installed: pip install xpk"
fi

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

# Runs its arguments, or prints them in a dry run.
call() {
  if [ "$dry" = 1 ]; then quoted "$@"; else "$@"; fi
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
git -C "$root" rev-parse --quiet --verify HEAD >/dev/null 2>&1 ||
  die "$root is no Git repository with a commit"
if [ -n "$(git -C "$root" status --porcelain)" ]; then
  echo "xpk.sh: warning: not everything here is committed; the workers get the last commit" >&2
fi
packed="$HOME/.cache/vdm_jax/$workload"
call rm -rf "$packed"
call mkdir -p "$packed"
call git -C "$root" archive --format=tar "--output=$packed.tar" HEAD
call tar -xf "$packed.tar" -C "$packed"

case "$1" in
  -*) command="$(quoted .venv/bin/python -m launch.train "$@")" ;;
  *) command="$(quoted "$@")" ;;
esac
command="bash launch/supervise.sh --max_restarts=$max_restarts -- $command"
# 75 (preempted, all is saved) is no failure; XPK's 30 seconds may be too few to save.
call xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$type" \
  "--num-slices=$slices" "${storages[@]}" "--base-docker-image=$image" "--script-dir=$packed" \
  "--max-restarts=$max_preemptions" --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=300 ${project:+"--project=$project"} ${zone:+"--zone=$zone"} \
  "--command=bash launch/setup_env.sh tpu && exec $command"
