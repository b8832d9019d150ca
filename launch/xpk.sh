#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, by XPK (https://github.com/AI-Hypercomputer/xpk).
#
#   bash launch/xpk.sh --cluster=NAME --workload=NAME --type=TYPE --storage=NAME --image=IMAGE \
#       [FLAGS] -- --config=FILE --workdir=DIR [...]
#
# e.g.
#   bash launch/xpk.sh --cluster=pods --workload=vdm-1 --type=v5p-128 --storage=shared \
#       --image=us-docker.pkg.dev/PROJECT/REPOSITORY/vdm_jax \
#       -- --config=configs/vdm/ucf101.py --workdir=/shared/ucf101
#
# It builds launch/Dockerfile from what is committed here, pushes it as IMAGE:COMMIT, and starts it
# on every worker: python -m launch.train  with what follows --, or, where that begins with a word
# instead of a flag, this command, under launch/supervise.sh. Pods install nothing. --workdir and
# the data must be in a --storage, which all workers see.
#
# When a pod ends with 75 (preempted, all is saved), with 42 or with 127 to 255 (killed, node lost),
# the cluster starts all pods again, up to --max_preemptions times. With any other code it ends the
# run: the supervisor in the pod has given up then. `xpk workload delete --cluster=NAME
# --workload=NAME` ends it by hand.
#
# Pods on spot machines have 15 seconds from the notice to the end, whatever --grace says, and XPK
# passes the notice on up to 5 seconds late: see "Kubernetes" in docs/launching.md for how often to
# save.
#
#   --cluster=NAME         the cluster
#   --workload=NAME        a name for this run: lower case, digits and hyphens, at most 40 characters
#   --type=TYPE            TPU type of a slice, such as v5p-128
#   --slices=N             slices that train as one (default 1)
#   --storage=NAME         a storage of the cluster (xpk storage attach ...); may be repeated
#   --image=IMAGE          where the image goes, without a tag; with one (IMAGE:TAG) it is there
#                          already, and nothing is built
#   --project=PROJECT      default: gcloud's
#   --zone=ZONE            default: gcloud's
#   --env=NAME=VALUE       a variable of the run's environment, such as LIBTPU_INIT_ARGS; may be
#                          repeated
#   --grace=SECONDS        to save in, from the notice to the end of a pod (default 300)
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

cluster="" workload="" type="" slices=1 image="" project="" zone="" grace=300
max_restarts=3 max_preemptions=100 dry=0 storages=() variables=()
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
    --env=*) variables+=("--env=${1#*=}") ;;
    --grace=*) grace="${1#*=}" && number --grace "$grace" ;;
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
[ -n "$image" ] || die "--image=IMAGE is missing: a registry that the cluster reads"
[ $# -gt 0 ] || die "the arguments of training are missing: ... -- --config=FILE --workdir=DIR"
# Kubernetes makes names of pods and hosts from it: letters, digits and hyphens, at most 63.
case "$workload" in
  [!a-z]* | *[!a-z0-9-]* | *-)
    die "--workload=$workload: lower case letters, digits and hyphens, a letter first, no hyphen last"
    ;;
esac
[ "${#workload}" -le 40 ] || die "--workload=$workload: at most 40 characters, it has ${#workload}"
for argument in "$@"; do
  case "$argument" in
    --workdir=gs://*) die "$argument: the trainer cannot write there: give a directory of --storage" ;;
  esac
done
build=1
case "${image##*/}" in *:*) build=0 ;; esac
if [ "$dry" = 0 ]; then
  command -v xpk >/dev/null || die "xpk is not installed: pip install xpk"
  if [ "$build" = 1 ]; then
    command -v docker >/dev/null || die "docker is not installed; --image=IMAGE:TAG builds nothing"
  fi
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

if [ "$build" = 1 ]; then
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  commit="$(git -C "$root" rev-parse --quiet --verify --short=12 HEAD 2>/dev/null)" ||
    die "$root is no Git repository with a commit"
  if [ -n "$(git -C "$root" status --porcelain)" ]; then
    echo "xpk.sh: warning: not everything here is committed; the workers get the last commit" >&2
  fi
  image="$image:$commit"
  packed="$HOME/.cache/vdm_jax/$workload"
  call rm -rf "$packed"
  call mkdir -p "$packed"
  call git -C "$root" archive --format=tar "--output=$packed.tar" HEAD
  call tar -xf "$packed.tar" -C "$packed"
  call docker build --platform=linux/amd64 -f "$packed/launch/Dockerfile" -t "$image" "$packed"
  call docker push "$image"
fi

case "$1" in
  -*) command="$(quoted python -m launch.train "$@")" ;;
  *) command="$(quoted "$@")" ;;
esac
# The supervisor takes the place of the shell that XPK starts it in, and so gets its signals.
command="exec bash launch/supervise.sh --max_restarts=$max_restarts -- $command"
call xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$type" \
  "--num-slices=$slices" "${storages[@]}" "--docker-image=$image" \
  "--max-restarts=$max_preemptions" --restart-on-exit-codes=75 \
  "--termination-grace-period-seconds=$grace" ${variables[@]+"${variables[@]}"} \
  ${project:+"--project=$project"} ${zone:+"--zone=$zone"} "--command=$command"
