#!/usr/bin/env bash
# Runs a command, and starts it again when it stops before it is done.
#
#   bash launch/supervise.sh [FLAGS] -- COMMAND [ARGUMENT...]
#   bash launch/supervise.sh --state=DIR --status | --stop
#
# The exit code of the command decides:
#   0       it is done: this ends with 0
#   75      a notice of preemption stopped it, everything is saved: starts it again at once
#   others  it failed: starts it again after a pause; ends with its code once it failed
#           --max_restarts times more without progress
# TERM and INT are passed on, so that the command can save, and end the loop: nothing is started
# again, and this ends with the command's code, or after TERM with 75, which asks whatever sent the
# TERM to start the whole again. A HUP counts as a TERM. TERM is passed on once, INT each time.
#
#   --max_restarts=N        failures in a row that are followed by a start (default 3)
#   --pause=SECONDS         before the first of these starts (default 10); doubles each time, to at
#                           most 300
#   --progress=SECONDS      a command that ran so long made progress: failures are counted anew
#                           (default 600)
#   --on_preempted=COMMAND  runs this shell command after a 75, and ends with 75 instead of starting
#                           again: for a scheduler that starts the whole again
#   --forward=COMMAND       passes signals on by COMMAND followed by TERM or INT, instead of by kill
#   --state=DIR             keeps in DIR what --status and --stop need: pid, exit, stopped
#   --background            returns at once; the output goes to the end of DIR/log
#   --status                prints "HOST: " and one of running, ended with CODE, stopped with CODE,
#                           gone (killed, or the machine was restarted), not started
#   --stop                  sends TERM, waits up to ten minutes for the end, and prints the same
#   --help                  this text
set -euo pipefail

max_restarts=3 pause=10 progress=600 on_preempted="" forward="" state="" background=0 ask=""

die() {
  echo "supervise.sh: $1" >&2
  exit 2
}

# Checks that VALUE of --NAME is a whole number.
number() {
  case "$2" in "" | *[!0-9]*) die "$1=$2: not a whole number" ;; esac
}

given=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
      exit
      ;;
    --max_restarts=*) max_restarts="${1#*=}" && number --max_restarts "$max_restarts" ;;
    --pause=*) pause="${1#*=}" && number --pause "$pause" ;;
    --progress=*) progress="${1#*=}" && number --progress "$progress" ;;
    --on_preempted=*) on_preempted="${1#*=}" ;;
    --forward=*) forward="${1#*=}" ;;
    --state=*) state="${1#*=}" ;;
    --background) background=1 ;;
    --status | --stop) ask="$1" ;;
    --)
      shift
      break
      ;;
    -*) die "unknown flag $1 (a value follows its flag by =); see --help" ;;
    *) break ;;
  esac
  shift
done
if [ "$background$ask" != 0 ] && [ -z "$state" ]; then
  die "--state=DIR is missing"
fi
[ -n "$ask" ] || [ $# -gt 0 ] ||
  die "a command is missing: bash launch/supervise.sh [FLAGS] -- COMMAND"

# --- what another one does, whose state is in DIR ---

# Whether it runs, and is not this one.
running() {
  local pid
  pid="$(cat "$state/pid" 2>/dev/null)" || return 1
  [ "$pid" != $$ ] && kill -0 "$pid" 2>/dev/null || return 1
  # After a restart of the machine another process may have its number.
  [ ! -d /proc/self ] || grep -qs supervise "/proc/$pid/cmdline"
}

if [ -n "$ask" ]; then
  if [ "$ask" = --stop ] && running; then
    : >"$state/stopped"
    kill -s TERM "$(cat "$state/pid")" || true
    for ((i = 0; i < 1200; i++)); do
      running || break
      sleep 0.5
    done
  fi
  if running; then
    answer=running
  elif [ -f "$state/exit" ]; then
    answer="ended with $(cat "$state/exit")"
    [ ! -f "$state/stopped" ] || answer="stopped with $(cat "$state/exit")"
  elif [ -f "$state/pid" ]; then
    answer=gone
  else
    answer="not started"
  fi
  echo "$(uname -n): $answer"
  exit
fi

if [ -n "$state" ]; then
  ! running || die "one runs there already: bash launch/supervise.sh --state=$state --stop"
  mkdir -p "$state"
  rm -f "$state/exit" "$state/stopped"
fi
if [ "$background" = 1 ]; then
  again=()
  for word in "${given[@]}"; do
    [ "$word" = --background ] && [ "$background" = 1 ] && background=0 && continue
    again+=("$word")
  done
  # A session of its own: the end of this one does not reach it.
  setsid bash "${BASH_SOURCE[0]}" "${again[@]}" >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  exit
fi
[ -z "$state" ] || echo $$ >"$state/pid"

# --- the loop ---

say() {
  echo "supervise $(date '+%F %T'): $1" >&2
}

# Ends with this code.
finish() {
  [ -z "$state" ] || echo "$1" >"$state/exit"
  exit "$1"
}

# What runs now, the command or a pause; how many signals came; the one that ends the loop; one that
# came before there was a process to have it.
child="" running=0 signals=0 told="" pending=""

pass_on() {
  signals=$((signals + 1))
  if [ "$1" = TERM ] && [ "$told" = TERM ]; then
    return 0 # a second one would abort the saving
  fi
  [ "$told" = TERM ] || told="$1"
  if [ -n "$child" ]; then send "$1"; else pending="$1"; fi
}

send() {
  if [ "$running" = 0 ]; then
    kill -s TERM "$child" 2>/dev/null || true
    return 0
  fi
  say "$1: passing it on"
  if [ -n "$forward" ]; then
    bash -c "$forward $1" || say "could not be passed on: $forward $1"
  else
    kill -s "$1" "$child" 2>/dev/null || true
  fi
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

# Runs its arguments to their end, whatever signals come meanwhile; the code is in $code.
run() {
  local seen again
  # A process group of its own: a Ctrl-C in the terminal reaches it through pass_on only, once.
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  [ -z "$pending" ] || send "$pending"
  pending=""
  while :; do
    seen=$signals
    code=0
    wait "$child" || code=$?
    if [ "$signals" != "$seen" ]; then
      # A trap has interrupted the wait, at the latest right after it.
      kill -0 "$child" 2>/dev/null && continue
      again=0
      wait "$child" 2>/dev/null || again=$?
      [ "$again" = 127 ] || code=$again
      break
    fi
    kill -0 "$child" 2>/dev/null || break
    sleep 1 # it was suspended, not ended
  done
  child=""
}

# After a preemption that saved everything, where this loop is not to start again by itself.
hand_over() {
  if [ -n "$on_preempted" ]; then
    say "$on_preempted"
    [ -z "$state" ] || echo 75 >"$state/exit" # what follows may end this process
    bash -c "$on_preempted" || say "failed: $on_preempted"
  fi
  finish 75
}

failures=0
while :; do
  if [ -n "$told" ]; then # it came in a pause
    say "$told: not starting again"
    [ "$told" = INT ] && finish 130
    hand_over
  fi
  SECONDS=0
  running=1
  run "$@"
  running=0
  took="after $SECONDS s"

  if [ "$code" = 0 ]; then
    say "done $took"
    finish 0
  elif [ "$told" = INT ]; then
    say "stopped by INT with $code $took"
    finish "$code"
  elif [ "$told" = TERM ]; then
    say "stopped by TERM with $code $took"
    # 143, 137: it had nothing to save yet, or did not get to it. The last checkpoint is there.
    case "$code" in 75 | 143 | 137) hand_over ;; esac
    finish "$code"
  elif [ "$code" = 75 ]; then
    failures=0
    if [ -n "$on_preempted" ]; then
      say "preempted and saved $took"
      hand_over
    fi
    say "preempted and saved $took: starting again"
    continue
  fi

  [ "$SECONDS" -lt "$progress" ] || failures=0
  failures=$((failures + 1))
  if [ "$failures" -gt "$max_restarts" ]; then
    say "failed with $code $took: giving up after $max_restarts restarts without progress"
    finish "$code"
  fi
  wait_for=$pause
  for ((i = 1; i < failures && wait_for < 300; i++)); do wait_for=$((wait_for * 2)); done
  [ "$wait_for" -le 300 ] || wait_for=300
  say "failed with $code $took: restart $failures of $max_restarts in $wait_for s"
  run sleep "$wait_for"
done
