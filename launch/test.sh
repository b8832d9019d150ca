#!/usr/bin/env bash
# Installs into .venv and runs the tests; arguments go to pytest.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]      e.g.  bash launch/test.sh tests/diffusion -x
set -euo pipefail

case "${1:-}" in
  --help | -h)
    sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
    exit
    ;;
esac

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/setup_env.sh" test
cd "$root"
if [ $# -eq 0 ]; then
  # Most of a test is compiling, on one core. Tests of a file share what they compile.
  set -- -n logical --maxprocesses 4 --dist loadfile --durations=30
fi
exec .venv/bin/python -m pytest "$@"
