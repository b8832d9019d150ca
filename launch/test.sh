#!/usr/bin/env bash
# Installs into .venv and runs the tests; arguments go to pytest.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]      e.g.  bash launch/test.sh tests/diffusion -x
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/setup_env.sh" test
cd "$root"
exec .venv/bin/python -m pytest "$@"
