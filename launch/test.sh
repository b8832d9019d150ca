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
exec .venv/bin/python -m pytest "$@"
