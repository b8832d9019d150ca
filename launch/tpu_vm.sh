#!/usr/bin/env bash
# Trains on every worker of a Google Cloud TPU VM: one machine, a pod slice or several slices.
#
#   bash launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- ARGUMENTS]
#
#   create   makes the machine of --type and waits until it is ready
#   install  puts this repository into ~/vdm_jax on every worker: what is committed here, or --repo;
#            installs it there with launch/setup_env.sh tpu, and mounts --mount
#   run      install, then starts  python -m launch.train ARGUMENTS  on every worker, in the
#            background, under launch/supervise.sh, which restarts it
#   status   the state of the machine and of the run on each worker
#   logs     the last lines of the run's log on --worker
#   ssh      runs the command ARGUMENTS in ~/vdm_jax on every worker; without any, opens a shell on
#            --worker
#   stop     tells the run to save and to stop, and waits for that
#   delete   deletes the machine, and what is on its disks
#
# A spot machine of 16 workers, from nothing to training that outlives preemptions:
#
#   bash launch/tpu_vm.sh run --name=vdm --zone=us-east5-a --type=v5p-128 --spot --retry \
#       --mount=gs://BUCKET:/mnt/vdm -- --config=configs/vdm/ucf101.py --workdir=/mnt/vdm/ucf101
#
# --workdir, and the data, must be in a directory that all workers share: a Filestore (NFS) or a
# bucket that --mount mounts. The trainer itself knows no gs:// paths. ARGUMENTS that begin with a
# word instead of a flag are a command of their own; relative paths start at ~/vdm_jax.
#
# For several workers gcloud wants its SSH key in the agent: ssh-add ~/.ssh/google_compute_engine
#
#   --name=NAME           of the machine, or of the request for several slices
#   --zone=ZONE           such as us-east5-a
#   --project=PROJECT     default: gcloud's
#   --type=TYPE           accelerator type, such as v5p-128 or v6e-16 (create; run with --retry)
#   --version=VERSION     software of the machine (default: the usual one for --type)
#   --spot                cheaper, and preempted at any time
#   --slices=N            N slices of --type that train as one (default 1). More than one are a
#                         queued resource: give this flag to every command
#   --queued              a queued resource for a single slice too: give it to every command
#   --create_flag=FLAG    a further flag for gcloud's create, such as --create_flag=--network=NET;
#                         may be repeated
#   --ssh_flag=FLAG       likewise for gcloud's ssh and scp, such as --ssh_flag=--internal-ip
#   --repo=URL            install from this Git repository instead of this directory
#   --ref=REF             branch, tag or commit of --repo (default: its HEAD)
#   --mount=gs://BUCKET[/FOLDER]:/DIR
#                         mounts the bucket on every worker with gcsfuse
#   --max_restarts=N      restarts after failures in a row without progress (default 3)
#   --retry               run stays and watches: it makes the machine where there is none, deletes
#                         and makes it again when it was preempted, and starts the same command
#                         there; create tries again until there is capacity
#   --poll=SECONDS        how often it looks (default 60)
#   --worker=N            for logs and ssh (default 0; ssh with a command: all)
#   --lines=N             of logs (default 50)
#   --follow              logs goes on printing
#   --dry-run             prints the commands and runs nothing
#   --help                this text
set -euo pipefail

die() {
  echo "tpu_vm.sh: $1" >&2
  exit "${2:-2}"
}

say() {
  echo "tpu_vm.sh $(date '+%F %T'): $1" >&2
}

# Checks that VALUE of --NAME is a whole number.
number() {
  case "$2" in "" | *[!0-9]*) die "$1=$2: not a whole number" ;; esac
}

verbs="create, install, run, status, logs, ssh, stop, delete"
case " $* " in
  *" -- "*) ;;
  *" --help "* | *" -h "*) set -- --help ;;
esac
case "${1:-}" in
  --help | -h)
    sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
    exit
    ;;
  create | install | run | status | logs | ssh | stop | delete) verb="$1" && shift ;;
  "" | -*) die "a command comes first, one of $verbs; see --help" ;;
  *) die "unknown command $1: not one of $verbs" ;;
esac

name="" zone="" project="" type="" version="" spot=0 slices=1 queued=0 repo="" ref=HEAD mount=""
max_restarts=3 retry=0 poll=60 worker="" lines=50 follow=0 dry=0
create_flags=() ssh_flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --spot) spot=1 ;;
    --slices=*) slices="${1#*=}" && number --slices "$slices" ;;
    --queued) queued=1 ;;
    --create_flag=*) create_flags+=("${1#*=}") ;;
    --ssh_flag=*) ssh_flags+=("${1#*=}") ;;
    --repo=*) repo="${1#*=}" ;;
    --ref=*) ref="${1#*=}" ;;
    --mount=*) mount="${1#*=}" ;;
    --max_restarts=*) max_restarts="${1#*=}" && number --max_restarts "$max_restarts" ;;
    --retry) retry=1 ;;
    --poll=*) poll="${1#*=}" && number --poll "$poll" ;;
    --worker=*) worker="${1#*=}" ;;
    --lines=*) lines="${1#*=}" && number --lines "$lines" ;;
    --follow) follow=1 ;;
    --dry-run) dry=1 ;;
    --)
      shift
      break
      ;;
    *) die "unknown flag $1 (values follow by =, training's arguments by --); see --help" ;;
  esac
  shift
done

[ -n "$name" ] || die "--name=NAME is missing"
[ -n "$zone" ] || die "--zone=ZONE is missing"
[ "$slices" -ge 1 ] || die "--slices=$slices: not at least 1"
[ "$slices" = 1 ] || queued=1
case "$verb $retry" in
  create* | "run 1") [ -n "$type" ] || die "--type=TYPE is missing, such as --type=v5p-128" ;;
esac
if [ "$verb" = run ] && [ $# = 0 ]; then
  die "the arguments of training are missing: ... -- --config=FILE --workdir=DIR"
fi
case "$verb" in
  run)
    for argument in "$@"; do
      case "$argument" in
        --workdir=gs://*)
          die "$argument: the trainer cannot write there: --mount the bucket and give the directory"
          ;;
      esac
    done
    ;;
  ssh) ;;
  *) [ $# = 0 ] || die "$verb takes no arguments after --" ;;
esac
bucket="" folder="" directory=""
if [ -n "$mount" ]; then
  case "$mount" in
    gs://?*:/?*) ;;
    *) die "--mount=$mount: not of the form gs://BUCKET:/DIR or gs://BUCKET/FOLDER:/DIR" ;;
  esac
  directory="/${mount#*:/*:/}" bucket="${mount#gs://}"
  bucket="${bucket%%:/*}"
  case "$bucket" in */*) folder="${bucket#*/}" bucket="${bucket%%/*}" ;; esac
fi
if [ -z "$version" ]; then
  case "$type" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-* | v5e-*) version=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    "") ;;
    *) die "--version=VERSION is missing: none is known for --type=$type" ;;
  esac
fi
if [ "$dry" = 0 ] && ! command -v gcloud >/dev/null; then
  die "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
upload="$HOME/.cache/vdm_jax/$name.tar.gz"

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

# gcloud's commands about this machine: VERB, its positional arguments and flags.
tpu() {
  local group="tpu-vm"
  [ "$queued" = 0 ] || group="queued-resources"
  call gcloud compute tpus "$group" "$@" "--zone=$zone" ${project:+"--project=$project"}
}

# Runs a shell command on every worker; its output is theirs.
everywhere() {
  on all "$1"
}

# Runs a shell command on this worker of every slice, or of the first one.
on() {
  local where=("--worker=$1") node=0
  [ "$1" != all ] || node=all
  [ "$queued" = 0 ] || where+=("--node=$node")
  tpu ssh "$name" "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "--command=$2"
}

# --- the machine ---

create() {
  local flags=("--accelerator-type=$type")
  if [ "$queued" = 0 ]; then
    flags+=("--version=$version")
  else
    flags+=("--runtime-version=$version")
    if [ "$slices" = 1 ]; then
      flags+=("--node-id=$name")
    else
      flags+=("--node-count=$slices" "--node-prefix=$name")
    fi
  fi
  [ "$spot" = 0 ] || flags+=(--spot)
  tpu create "$name" "${flags[@]}" ${create_flags[@]+"${create_flags[@]}"}
}

delete() {
  local flags=(--quiet)
  [ "$queued" = 0 ] || flags+=(--force) # and its nodes
  tpu delete "$name" "${flags[@]}"
}

describe() {
  local field=state
  [ "$queued" = 0 ] || field=state.state
  tpu describe "$name" "--format=value($field)"
}

# Prints the state of the machine; MISSING where there is none, UNKNOWN where gcloud does not tell.
machine_state() {
  local output
  if output="$(describe 2>&1)"; then
    echo "${output##*$'\n'}"
  else
    case "$output" in
      *NOT_FOUND* | *"not found"*) echo MISSING ;;
      *)
        say "gcloud: ${output##*$'\n'}"
        echo UNKNOWN
        ;;
    esac
  fi
}

# Returns when the machine is ready. make: whether it is made where there is none.
until_ready() {
  local make="$1" state before="" tries=0
  if [ "$dry" = 1 ]; then
    describe
    [ "$make" = 0 ] || create
    return
  fi
  while :; do
    state="$(machine_state)"
    [ "$state" = "$before" ] || say "$name is $state"
    before="$state"
    case "$state" in
      READY | ACTIVE) return ;;
      MISSING)
        [ "$make" = 1 ] || die "there is no $name in $zone: make it with create, or add --retry" 1
        say "making $name"
        if create; then continue; fi
        [ "$retry" = 1 ] || die "$name could not be made; --retry tries until it can" 1
        say "$name could not be made: trying again in $poll s"
        ;;
      PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        [ "$retry" = 1 ] || die "$name is $state: delete it and make it again, or add --retry" 1
        say "deleting $name"
        if delete; then continue; fi
        ;;
      STOPPED | STOPPING | HIDDEN | HIDING)
        die "$name is $state, and not by preemption: start it, or delete it" 1
        ;;
      UNKNOWN)
        tries=$((tries + 1))
        [ "$retry" = 1 ] && [ "$tries" -lt 10 ] || die "the state of $name is not to be had" 1
        ;;
    esac
    sleep "$poll"
  done
}

# --- the workers: ~/vdm_jax is the repository, ~/vdm_jax_run what supervise.sh keeps ---

# Packs what is to run, once: a machine that is made again gets the same.
pack() {
  [ -z "$repo" ] || return 0
  git -C "$root" rev-parse --quiet --verify HEAD >/dev/null 2>&1 ||
    die "$root is no Git repository with a commit: give --repo=URL"
  if [ -n "$(git -C "$root" status --porcelain)" ]; then
    say "warning: not everything here is committed; the workers get the last commit"
  fi
  call mkdir -p "$(dirname "$upload")"
  call git -C "$root" archive --format=tar.gz "--output=$upload" HEAD
}

# Shell text of several lines as a single line.
joined() {
  printf '%s' "$1" | sed 's/^ *//' | tr '\n' ' '
}

install() {
  local flags=(--worker=all)
  if [ -n "$repo" ]; then
    everywhere "$(joined "git init --quiet vdm_jax && cd vdm_jax &&
      git fetch --quiet --depth=1 $(quoted "$repo" "$ref") &&
      git checkout --quiet --force --detach FETCH_HEAD")" || return
  else
    [ "$queued" = 0 ] || flags+=(--node=all)
    tpu scp "$upload" "$name:vdm_jax.tar.gz" "${flags[@]}" \
      ${ssh_flags[@]+"${ssh_flags[@]}"} || return
    # Files of an earlier upload go; what else is there stays.
    everywhere "$(joined 'mkdir -p vdm_jax && cd vdm_jax &&
      if [ -f .uploaded ]; then grep -v "/$" .uploaded | tr "\n" "\0" | xargs -0 rm -f; fi &&
      tar -xzf ../vdm_jax.tar.gz && tar -tzf ../vdm_jax.tar.gz >.uploaded')" || return
  fi
  # The software of many TPU VMs has no Python that is new enough.
  # shellcheck disable=SC2016 # expands on the worker
  everywhere "$(joined 'if ! PYTHON=$(bash vdm_jax/launch/setup_env.sh --find-python 2>/dev/null);
    then python3 -m pip install --quiet --user uv &&
      python3 -m uv python install --quiet 3.12 &&
      PYTHON=$(python3 -m uv python find 3.12); fi &&
    export PYTHON && bash vdm_jax/launch/setup_env.sh tpu')" || return
  mount_bucket
}

mount_bucket() {
  [ -n "$mount" ] || return 0
  local where flags fetch
  where="$(quoted "$directory")"
  # Checkpoints are directories that get their names by renaming; what one worker has written the
  # others must see at once.
  flags="--implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0"
  [ -z "$folder" ] || flags="$flags $(quoted "--only-dir=$folder")"
  # shellcheck disable=SC2016 # expands on the worker
  fetch='curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg |
      sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null &&
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]
      https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
    sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse'
  everywhere "$(joined "if ! mountpoint -q $where; then
    if ! command -v gcsfuse >/dev/null; then $fetch; fi &&
    sudo mkdir -p $where && sudo chown \"\$(id -u):\$(id -g)\" $where &&
    gcsfuse $flags $(quoted "$bucket") $where; fi")"
}

start() {
  local command
  case "$1" in
    -*) command="$(quoted python -m launch.train "$@")" ;;
    *) command="$(quoted "$@")" ;;
  esac
  # shellcheck disable=SC2016 # expands on the worker
  everywhere "$(joined 'cd vdm_jax && PATH="$PWD/.venv/bin:$PATH"
    bash launch/supervise.sh --state=../vdm_jax_run --background') \
--max_restarts=$max_restarts -- $command"
}

# One line a worker: "HOST: STATE". further: a command that is added.
states() {
  # shellcheck disable=SC2016 # expands on the worker
  everywhere "$(joined 'bash vdm_jax/launch/supervise.sh --state=vdm_jax_run --status 2>/dev/null ||
    echo "$(uname -n): not started"')$1"
}

stop() {
  everywhere 'bash vdm_jax/launch/supervise.sh --state=vdm_jax_run --stop'
}

# Whether a run goes on on a worker.
going_on() {
  case "$(states "" 2>/dev/null || true)" in *": running"*) return 0 ;; esac
  return 1
}

# --- run ---

# Returns when the machine or the run is to be made again; ends this script when the run has ended.
watch() {
  local state all code
  say "watching; Ctrl-C ends only the watching, the same command takes it up again"
  while :; do
    sleep "$poll"
    state="$(machine_state)"
    case "$state" in
      READY | ACTIVE) ;;
      UNKNOWN) continue ;;
      *) say "$name is $state" && return ;;
    esac
    if ! all="$(states "" 2>/dev/null)" || [ -z "$all" ]; then
      say "not all workers answer: asking again in $poll s"
      continue
    fi
    case "$all" in
      *": stopped with"*)
        case "$all" in *": running"*) continue ;; esac
        say "stopped; the same command goes on from there"
        exit 75
        ;;
      *": gone"* | *": not started"*)
        say "a worker was restarted: starting the run again on all of them"
        stop || true
        return
        ;;
      *": running"*) continue ;;
    esac
    # All have ended: with 75 if one did, or else with the highest code.
    code="$(printf '%s\n' "$all" | sed -n 's/.*: ended with //p' | sort -n | tail -n 1)"
    case "$all" in *": ended with 75"*) code=75 ;; esac
    case "$code" in
      0) say "done" && exit 0 ;;
      75) say "preempted and saved: starting again" && return ;;
    esac
    echo "$all" >&2
    die "the run failed: bash launch/tpu_vm.sh logs --name=$name --zone=$zone shows how" "$code"
  done
}

run() {
  local failures=0
  pack
  if [ "$dry" = 1 ]; then
    until_ready "$retry"
    states ""
    install
    start "$@"
    [ "$retry" = 1 ] || return 0
    echo "# every $poll s, until the run has ended:"
    describe
    states ""
    echo "# when a worker was restarted (and then the above again, from the installation on):"
    stop
    echo "# when $name was preempted (and then the above again, from create on):"
    delete
    return
  fi
  while :; do
    until_ready "$retry"
    if going_on; then
      [ "$retry" = 1 ] ||
        die "a run is going on there: stop it first, or add --retry to watch it" 1
      say "a run is going on there already"
      watch
      continue
    fi
    say "installing on $name"
    if install && start "$@"; then
      failures=0
      say "started on $name"
    else
      failures=$((failures + 1))
      if [ "$retry" = 0 ] || [ "$failures" -ge 3 ]; then
        die "could not be installed and started on $name" 1
      fi
      say "could not be installed and started: trying again in $poll s"
      sleep "$poll"
      continue
    fi
    [ "$retry" = 1 ] || return 0
    watch
  done
}

case "$verb" in
  create) until_ready 1 ;;
  install)
    pack
    if [ "$dry" = 1 ]; then states ""; elif going_on; then die "a run is going on there: stop it first" 1; fi
    install
    ;;
  run) run "$@" ;;
  status)
    describe
    states '; tail -n 1 vdm_jax_run/log 2>/dev/null | tr "\r" "\n" | tail -n 1'
    ;;
  logs)
    how="-n $lines"
    [ "$follow" = 0 ] || how="$how -F"
    on "${worker:-0}" "tail $how vdm_jax_run/log"
    ;;
  ssh)
    if [ $# -gt 0 ]; then
      # shellcheck disable=SC2016 # expands on the worker
      on "${worker:-all}" 'cd vdm_jax && export PATH="$PWD/.venv/bin:$PATH" && '"$(quoted "$@")"
    else
      where=("--worker=${worker:-0}")
      [ "$queued" = 0 ] || where+=(--node=0)
      tpu ssh "$name" "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"}
    fi
    ;;
  stop) stop ;;
  delete) delete ;;
esac
