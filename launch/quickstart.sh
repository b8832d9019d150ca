#!/usr/bin/env bash
# From a fresh clone to generated videos: installs into .venv, then prepares data, trains, samples
# and judges.
#
#   bash launch/quickstart.sh [--minutes N] [--videos DIR] [--fresh] [--help]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Modules are found from the repository; paths on the command line mean the caller's directory.
export VDM_JAX_CALLER_DIR="$PWD"
cd "$root"
# Neither help nor a wrong flag needs an installation.
python="$(bash launch/setup_env.sh --find-python)"
case " $* " in
  *" --help "* | *" -h "*) exec "$python" -m launch.quickstart --help ;;
esac
"$python" -m launch.quickstart "$@" --check
bash launch/setup_env.sh
exec .venv/bin/python -m launch.quickstart "$@"
