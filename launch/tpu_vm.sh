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
#   collect  copies the last --lines of every worker's log to --logs, a file a worker
#   ssh      runs the command ARGUMENTS in ~/vdm_jax on every worker; without any, opens a shell on
#            --worker
#   stop     tells the run to save and to stop, and waits for that
#   delete   deletes the machine, and what is on its disks
#   cost     prints what --type costs in --hours at --price; needs no name, zone or network
#
# A spot machine of 16 workers, from nothing to training that outlives preemptions:
#
#   bash launch/tpu_vm.sh run --name=vdm --zone=us-east5-a --type=v5p-128 --spot --retry \
#       --delete_when_done --mount=gs://BUCKET:/mnt/vdm \
#       -- --config=configs/vdm/ucf101.py --workdir=/mnt/vdm/ucf101
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
#   --type=TYPE           accelerator type, such as v5p-128, v6e-16 or v5e-16 (create; run with
#                         --retry)
#   --topology=AxBxC      chips of a slice, such as 4x4x8; --type is then a family, such as v5p
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
#   --env=NAME=VALUE      a variable of the run's environment, such as LIBTPU_INIT_ARGS; may be
#                         repeated
#   --max_restarts=N      restarts after failures in a row without progress (default 3)
#   --retry               run stays and watches: it makes the machine where there is none, deletes
#                         and makes it again when it was preempted or workers no longer answer, and
#                         starts the same command there; create tries again until there is capacity
#   --delete_when_done    run --retry deletes the machine when the run has finished or failed
#   --poll=SECONDS        how often it looks (default 60)
#   --patience=N          looks in a row that may miss a worker before the machine is made again
#                         (default 5)
#   --ssh_timeout=SECONDS for which a look waits for the workers (default 300)
#   --rebuilds=N          machines made again in a row because workers do not answer (default 3), or
#                         creations in a row that fail for another reason than capacity
#   --price=DOLLARS       of a chip and hour: run and create print what the machine costs
#   --hours=HOURS         for cost
#   --worker=N            for logs and ssh (default 0; ssh with a command: all)
#   --lines=N             of logs (default 50) and collect (default 10000)
#   --logs=DIR            for collect, which run --retry does too (default
#                         ~/.cache/vdm_jax/NAME/logs)
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

verbs="create, install, run, status, logs, collect, ssh, stop, delete, cost"
case " $* " in
  *" -- "*) ;;
  *" --help "* | *" -h "*) set -- --help ;;
esac
case "${1:-}" in
  --help | -h)
    sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
    exit
    ;;
  create | install | run | status | logs | collect | ssh | stop | delete | cost)
    verb="$1" && shift
    ;;
  "" | -*) die "a command comes first, one of $verbs; see --help" ;;
  *) die "unknown command $1: not one of $verbs" ;;
esac

name="" zone="" project="" type="" topology="" version="" spot=0 slices=1 queued=0 repo="" ref=HEAD
mount="" max_restarts=3 retry=0 delete_when_done=0 poll=60 patience=5 ssh_timeout=300 rebuilds=3 price="" hours=""
worker="" lines="" logs="" follow=0 dry=0 create_flags=() ssh_flags=() variables=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --topology=*) topology="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --spot) spot=1 ;;
    --slices=*) slices="${1#*=}" && number --slices "$slices" ;;
    --queued) queued=1 ;;
    --create_flag=*) create_flags+=("${1#*=}") ;;
    --ssh_flag=*) ssh_flags+=("${1#*=}") ;;
    --repo=*) repo="${1#*=}" ;;
    --ref=*) ref="${1#*=}" ;;
    --mount=*) mount="${1#*=}" ;;
    --env=*) variables+=("${1#*=}") ;;
    --max_restarts=*) max_restarts="${1#*=}" && number --max_restarts "$max_restarts" ;;
    --retry) retry=1 ;;
    --delete_when_done) delete_when_done=1 ;;
    --poll=*) poll="${1#*=}" && number --poll "$poll" ;;
    --patience=*) patience="${1#*=}" && number --patience "$patience" ;;
    --ssh_timeout=*) ssh_timeout="${1#*=}" && number --ssh_timeout "$ssh_timeout" ;;
    --rebuilds=*) rebuilds="${1#*=}" && number --rebuilds "$rebuilds" ;;
    --price=*) price="${1#*=}" ;;
    --hours=*) hours="${1#*=}" ;;
    --worker=*) worker="${1#*=}" ;;
    --lines=*) lines="${1#*=}" && number --lines "$lines" ;;
    --logs=*) logs="${1#*=}" ;;
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

if [ "$verb" != cost ]; then
  [ -n "$name" ] || die "--name=NAME is missing"
  [ -n "$zone" ] || die "--zone=ZONE is missing"
fi
[ "$slices" -ge 1 ] || die "--slices=$slices: not at least 1"
[ "$slices" = 1 ] || queued=1
case "$verb $retry" in
  create* | cost* | "run 1") [ -n "$type" ] || die "--type=TYPE is missing, such as --type=v5p-128" ;;
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
[ "$delete_when_done$retry" != 10 ] || die "--delete_when_done: only run --retry knows when it is"
for variable in ${variables[@]+"${variables[@]}"}; do
  case "$variable" in
    [A-Za-z_]*=*) ;;
    *) die "--env=$variable: not of the form NAME=VALUE" ;;
  esac
done
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

# What people call v5e, the API calls v5litepod.
case "$type" in v5e | v5e-*) type="v5litepod${type#v5e}" ;; esac
family="${type%%-*}" chips=""
case "$type" in
  "") ;;
  *-*)
    [ -z "$topology" ] || die "--topology=$topology: goes with a family, such as --type=$family"
    chips="${type#*-}"
    case "$chips" in
      "" | *[!0-9]*) die "--type=$type: not a family and a number, such as v5p-128" ;;
    esac
    # These count cores, of which a chip has two; the others count chips.
    case "$family" in v2 | v3 | v4 | v5p) chips=$((chips / 2)) ;; esac
    ;;
  *)
    case "$topology" in
      "" | *[!0-9x]* | x* | *x | *xx*)
        die "--topology=$topology: not sizes such as 4x4x8, which --type=$type needs"
        ;;
    esac
    chips=$((${topology//x/*}))
    ;;
esac
if [ -z "$version" ]; then
  case "$family" in
    v6e) version=v2-alpha-tpuv6e ;;
    v5p) version=v2-alpha-tpuv5 ;;
    v5litepod) version=v2-alpha-tpuv5-lite ;;
    v2 | v3 | v4) version=tpu-ubuntu2204-base ;;
    "") ;;
    *)
      [ "$verb" = cost ] || die "--version=VERSION is missing: none is known for --type=$type"
      ;;
  esac
fi

# Prints a decimal number of at most three places in thousandths.
thousandths() {
  local whole="${2%%.*}" places=""
  case "$2" in *.*) places="${2#*.}" ;; esac
  case "$whole$places" in "" | *[!0-9]*) die "$1=$2: not a number" ;; esac
  [ "${#places}" -le 3 ] || die "$1=$2: at most three places"
  places="${places}000"
  echo $((10#${whole:-0} * 1000 + 10#${places:0:3}))
}

# Prints what the machine costs in so many thousandths of an hour.
cost() {
  local cents
  cents=$((chips * slices * $1 * $(thousandths --price "$price") / 10000))
  printf '$%d.%02d\n' $((cents / 100)) $((cents % 100))
}

if [ "$verb" = cost ]; then
  [ -n "$price" ] || die "--price=DOLLARS of a chip and hour is missing"
  [ -n "$hours" ] || die "--hours=HOURS is missing"
  thousandths --price "$price" >/dev/null
  time="$(thousandths --hours "$hours")"
  echo "$slices x $type${topology:+ $topology}, $chips chips each, $hours h at \$$price: $(cost "$time")"
  exit
fi
[ -z "$price" ] || thousandths --price "$price" >/dev/null
if [ "$dry" = 0 ] && ! command -v gcloud >/dev/null; then
  die "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
kept="$HOME/.cache/vdm_jax/$name"
upload="$kept.tar.gz"
logs="${logs:-$kept/logs}"

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

# gcloud's commands about this machine: GROUP, VERB, positional arguments and flags.
gcloud_tpus() {
  call gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}
}

tpu() {
  if [ "$queued" = 0 ]; then gcloud_tpus tpu-vm "$@"; else gcloud_tpus queued-resources "$@"; fi
}

# --- the machine ---

create() {
  local flags=("--accelerator-type=$type") track=()
  if [ -n "$topology" ]; then
    flags=("--type=$type" "--topology=$topology")
    case "$type" in v2 | v3 | v4) ;; *) track=(alpha) ;; esac # the others are not in gcloud's GA
  fi
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
  local group=tpu-vm
  [ "$queued" = 0 ] || group="queued-resources"
  call gcloud ${track[@]+"${track[@]}"} compute tpus "$group" create "$name" "${flags[@]}" \
    ${create_flags[@]+"${create_flags[@]}"} "--zone=$zone" ${project:+"--project=$project"}
}

delete() {
  local flags=(--quiet)
  [ "$queued" = 0 ] || flags+=(--force) # and its nodes
  tpu delete "$name" "${flags[@]}"
}

# Prints state and number of workers of a slice.
describe_node() {
  gcloud_tpus tpu-vm describe "$1" "--format=value(state,networkEndpoints.len())"
}

# Runs its arguments, whose last line it prints; MISSING where gcloud finds nothing, SILENT where it
# gives no answer.
asked() {
  local output
  if output="$("$@" 2>&1)"; then
    echo "${output##*$'\n'}"
    return
  fi
  case "$output" in
    *NOT_FOUND* | *"not found"*) echo MISSING ;;
    *)
      say "gcloud: ${output##*$'\n'}"
      echo SILENT
      ;;
  esac
}

# The names of the slices.
nodes() {
  local i
  if [ "$slices" = 1 ]; then echo "$name"; fi
  if [ "$slices" = 1 ]; then return; fi
  for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
}

# Sets state, of the machine: MISSING where there is none, SILENT where gcloud gives no answer; and
# workers, how many it has. A queued resource may be active while slices of it are not: their state
# counts.
look() {
  local answer node
  workers=0
  if [ "$queued" = 1 ]; then
    state="$(asked tpu describe "$name" "--format=value(state.state)")"
    [ "$state" = ACTIVE ] || return 0
    for node in $(nodes); do
      answer="$(asked describe_node "$node")"
      case "$answer" in
        READY*[0-9]) workers=$((workers + ${answer##*[!0-9]})) ;;
        MISSING) state=INCOMPLETE && return ;;
        *) state="${answer%%[!A-Z_]*}" && return ;;
      esac
    done
  else
    answer="$(asked describe_node "$name")"
    state="${answer%%[!A-Z_]*}"
    case "$answer" in *[0-9]) workers="${answer##*[!0-9]}" ;; esac
  fi
}

# Prints the commands of `look` in a dry run.
plan_look() {
  local node
  if [ "$queued" = 1 ]; then
    tpu describe "$name" "--format=value(state.state)"
    for node in $(nodes); do describe_node "$node"; done
  else
    describe_node "$name"
  fi
}

# Says what an hour costs, where --price is given.
say_price() {
  [ -z "$price" ] || say "$name costs $(cost 1000) an hour: $chips chips x $slices at \$$price"
}

# Returns when the machine is ready. make: whether it is made where there is none.
until_ready() {
  local make="$1" before="" tries=0 failures=0 incomplete=0 output
  if [ "$dry" = 1 ]; then
    plan_look
    [ "$make" = 0 ] || create
    return
  fi
  while :; do
    look
    [ "$state" = "$before" ] || say "$name is $state"
    before="$state"
    case "$state" in
      READY | ACTIVE) return ;;
      MISSING)
        [ "$make" = 1 ] || die "there is no $name in $zone: make it with create, or add --retry" 1
        say "making $name"
        if output="$(create 2>&1 </dev/null)"; then
          say_price
          continue
        fi
        say "gcloud: ${output##*$'\n'}"
        [ "$retry" = 1 ] || die "$name could not be made; --retry tries until it can" 1
        case "$output" in
          *uota*) failures=$((failures + 1)) ;;
          *apacity* | *RESOURCE_EXHAUSTED* | *UNAVAILABLE* | *"code\": 14"*) ;; # later, perhaps
          *) failures=$((failures + 1)) ;;
        esac
        [ "$failures" -lt "$rebuilds" ] ||
          die "$name could not be made $failures times, and not for want of capacity" 1
        say "$name could not be made: trying again in $poll s"
        ;;
      FAILED)
        # A request that is refused again and again, not one that waits.
        failures=$((failures + 1))
        [ "$retry" = 1 ] || die "$name is $state: delete it and make it again, or add --retry" 1
        [ "$failures" -lt "$rebuilds" ] || leave 1 "$name has failed $failures times"
        make_again
        continue
        ;;
      INCOMPLETE) # perhaps only until the slices are listed
        incomplete=$((incomplete + 1))
        if [ "$incomplete" -ge "$patience" ]; then
          [ "$retry" = 1 ] || die "$name lacks slices: delete it and make it again, or add --retry" 1
          make_again
          continue
        fi
        ;;
      PREEMPTED | TERMINATED | SUSPENDED | UNKNOWN)
        [ "$retry" = 1 ] || die "$name is $state: delete it and make it again, or add --retry" 1
        make_again
        continue
        ;;
      STOPPED)
        [ "$spot" = 1 ] || die "$name is $state, and not by preemption: start it, or delete it" 1
        [ "$retry" = 1 ] || die "$name is $state: delete it and make it again, or add --retry" 1
        make_again
        continue
        ;;
      STOPPING)
        [ "$spot" = 1 ] || die "$name is $state, and not by preemption: start it, or delete it" 1
        ;;
      HIDDEN | HIDING)
        die "$name is $state, and not by preemption: start it, or delete it" 1
        ;;
      SILENT)
        tries=$((tries + 1))
        [ "$retry" = 1 ] && [ "$tries" -lt 10 ] || die "gcloud does not give the state of $name" 1
        ;;
    esac
    sleep "$poll"
  done
}

# Deletes the machine, so that it is made again.
make_again() {
  say "deleting $name"
  delete || sleep "$poll"
}

# --- the workers: ~/vdm_jax is the repository, ~/vdm_jax_run what supervise.sh keeps ---

# Runs a shell command on this worker of every slice, or of the first one; its output is theirs.
on() {
  local where=("--worker=$1") node=0
  [ "$1" != all ] || node=all
  [ "$queued" = 0 ] || where+=("--node=$node")
  tpu ssh "$name" "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "--command=$2"
}

# Runs a command for at most so many seconds.
bounded() {
  local seconds="$1" child code=0 i
  shift
  if [ "$dry" = 1 ]; then
    "$@"
    return
  fi
  set -m # a process group of its own, with gcloud's ssh
  "$@" </dev/null &
  child=$!
  set +m
  for ((i = 0; i < seconds; i++)); do
    kill -0 "$child" 2>/dev/null || break
    sleep 1
  done
  if kill -0 "$child" 2>/dev/null; then kill -s TERM -- "-$child" 2>/dev/null || true; fi
  wait "$child" 2>/dev/null || code=$?
  return "$code"
}

# Runs a shell command on every worker, prints their output, and fails unless all say that it
# succeeded: gcloud leaves out slices that are not ready, and reports success.
everywhere() {
  local output succeeded
  # shellcheck disable=SC2016 # expands on the worker
  local command="{ $1; } && echo \"\$(uname -n): succeeded\""
  if [ "$dry" = 1 ]; then
    on all "$command"
    return
  fi
  [ -n "$workers" ] || look
  output="$(bounded "$installing" on all "$command")" || true
  printf '%s\n' "$output" | grep -v -e ': succeeded$' -e '^$' || true
  succeeded="$(printf '%s\n' "$output" | grep -c ': succeeded$' || true)"
  [ "$succeeded" = "$workers" ] && [ "$workers" != 0 ] && return
  say "$succeeded of $workers workers answered that it succeeded"
  return 1
}

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
    bounded "$installing" tpu scp "$upload" "$name:vdm_jax.tar.gz" "${flags[@]}" \
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
  [ -n "$mount" ] || return 0
  everywhere "$(quoted bash vdm_jax/launch/mount_bucket.sh "--bucket=$bucket" \
    "--directory=$directory" ${folder:+"--folder=$folder"})"
}

start() {
  local command environment=()
  case "$1" in
    -*) command="$(quoted python -m launch.train "$@")" ;;
    *) command="$(quoted "$@")" ;;
  esac
  [ ${#variables[@]} = 0 ] || environment=(env "${variables[@]}")
  # shellcheck disable=SC2016 # expands on the worker
  everywhere "$(joined 'cd vdm_jax && PATH="$PWD/.venv/bin:$PATH"
    bash launch/supervise.sh --state=../vdm_jax_run --background') \
--max_restarts=$max_restarts -- $(quoted ${environment[@]+"${environment[@]}"})${environment:+ }$command"
}

# Prints one line a worker that answers: "HOST: STATE". further: a command that is added.
states() {
  # shellcheck disable=SC2016 # expands on the worker
  bounded "$ssh_timeout" on all "$(joined 'bash vdm_jax/launch/supervise.sh --state=vdm_jax_run --status 2>/dev/null ||
    echo "$(uname -n): not started"')$1"
}

# How many lines of this output of `states` are answers.
answers() {
  printf '%s\n' "$1" | grep -c -E ': (running|ended with|stopped with|gone|not started)' || true
}

stop() {
  everywhere 'bash vdm_jax/launch/supervise.sh --state=vdm_jax_run --stop'
}

# Copies the end of every worker's log to a file of its name in --logs.
collect() {
  local output host
  # Lines of several workers arrive mixed.
  # shellcheck disable=SC2016 # expands on the worker
  local command="tail -n ${lines:-10000} vdm_jax_run/log"' | sed "s/^/$(uname -n): /"'
  if [ "$dry" = 1 ]; then
    on all "$command"
    return
  fi
  output="$(bounded "$ssh_timeout" on all "$command" 2>/dev/null)" || true
  mkdir -p "$logs"
  for host in $(printf '%s\n' "$output" | sed -n 's/^\([A-Za-z0-9_.-]*\): .*/\1/p' | sort -u); do
    printf '%s\n' "$output" | sed -n "s/^$host: //p" >"$logs/$host.log"
  done
}

# Whether a run goes on on a worker.
going_on() {
  case "$(states "" 2>/dev/null || true)" in *": running"*) return 0 ;; esac
  return 1
}

# --- run ---

# Ends this script with this code, once the logs are here.
leave() {
  collect
  say "$2; the workers' logs: $logs"
  if [ "$delete_when_done" = 1 ]; then
    say "deleting $name"
    delete || say "$name could not be deleted, and costs money"
  else
    say "$name is still there and costs money: bash launch/tpu_vm.sh delete --name=$name --zone=$zone"
  fi
  exit "$1"
}

# Returns when the machine or the run is to be made again; ends this script when the run has ended.
watch() {
  local all code missed=0 looks=0 count
  say "watching; Ctrl-C ends only the watching, the same command takes it up again"
  while :; do
    sleep "$poll"
    look
    case "$state" in
      READY | ACTIVE) ;;
      SILENT) continue ;;
      *) say "$name is $state" && return ;;
    esac
    all="$(states "" 2>/dev/null)" || true
    count="$(answers "$all")"
    if [ "$count" -lt "$workers" ] || [ "$workers" = 0 ]; then
      missed=$((missed + 1))
      say "$count of $workers workers answer ($missed of $patience times)"
      [ "$missed" -ge "$patience" ] || continue
      rebuilt=$((rebuilt + 1))
      [ "$rebuilt" -le "$rebuilds" ] ||
        leave 1 "workers of $name did not answer, $rebuilt times in a row"
      collect
      make_again
      return
    fi
    missed=0 looks=$((looks + 1))
    [ $((looks % 10)) != 0 ] || collect # what a preemption would take
    case "$all" in
      *": stopped with"*)
        case "$all" in *": running"*) continue ;; esac
        delete_when_done=0 # by somebody who may go on
        leave 75 "stopped; the same command goes on from there"
        ;;
      *": gone"* | *": not started"*)
        say "a worker was restarted: starting the run again on all of them"
        stop || true
        return
        ;;
      *": running"*)
        [ "$looks" -lt "$patience" ] || rebuilt=0 # this machine works
        continue
        ;;
    esac
    # All have ended: with 75 if one did, or else with the highest code.
    code="$(printf '%s\n' "$all" | sed -n 's/.*: ended with //p' | sort -n | tail -n 1)"
    case "$all" in *": ended with 75"*) code=75 ;; esac
    case "$code" in
      0) leave 0 "done" ;;
      75) say "preempted and saved: starting again" && return ;;
    esac
    echo "$all" >&2
    leave "$code" "the run failed"
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
    plan_look
    states ""
    echo "# at every tenth look and at the end:"
    collect
    echo "# when a worker was restarted (and then the above again, from the installation on):"
    stop
    echo "# when $name was preempted (and then the above again, from create on), or is done with:"
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
      [ "$retry" = 1 ] || die "could not be installed and started on $name" 1
      [ "$failures" -lt 3 ] || leave 1 "could not be installed and started on $name"
      say "could not be installed and started: trying again in $poll s"
      sleep "$poll"
      continue
    fi
    [ "$retry" = 1 ] || return 0
    watch
  done
}

state="" workers="" rebuilt=0
installing=1800 # seconds; stopping waits up to ten minutes for the run to save
case "$verb" in
  create) until_ready 1 ;;
  install)
    pack
    if [ "$dry" = 1 ]; then states ""; elif going_on; then die "a run is going on there: stop it first" 1; fi
    install
    ;;
  run) run "$@" ;;
  status)
    if [ "$dry" = 1 ]; then
      plan_look
    else
      look
      echo "$state"
    fi
    all="$(states '; tail -n 1 vdm_jax_run/log 2>/dev/null | tr "\r" "\n" | tail -n 1')" || true
    printf '%s\n' "$all"
    [ "$dry" = 1 ] || echo "$(answers "$all") of $workers workers answer"
    ;;
  logs)
    how="-n ${lines:-50}"
    [ "$follow" = 0 ] || how="$how -F"
    on "${worker:-0}" "tail $how vdm_jax_run/log"
    ;;
  collect)
    collect
    [ "$dry" = 1 ] || echo "$logs"
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
