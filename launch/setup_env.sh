#!/usr/bin/env bash
# Makes .venv in the repository and installs vdm_jax there, editable.
#
#   bash launch/setup_env.sh [EXTRA...]      extras of setup.py: tpu, gpu, eval, test
#   bash launch/setup_env.sh --find-python   only prints the Python that it would use
#
# A second call returns at once unless setup.py changed, the repository moved or an extra is new.
#   PYTHON=/path/to/python3.12   the Python to use (default: the first of python3, python3.11 to
#                                python3.14 that is 3.11 or newer)
#   VDM_JAX_EXTRAS="gpu"         further extras; unset: gpu where nvidia-smi finds one; "": none
set -euo pipefail

case "${1:-}" in
  --help | -h)
    sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
    exit
    ;;
esac

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
stamp="$venv/vdm_jax.stamp"

# Prints the version (3.12) of the Python given, or fails where it is older than 3.11 or none.
python_version() {
  "$1" -c 'import sys; v = sys.version_info[:2]; print("%d.%d" % v); sys.exit(v < (3, 11))' \
    2>/dev/null
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    python_version "$PYTHON" >/dev/null && echo "$PYTHON" && return
    echo "vdm_jax needs Python 3.11 or newer: PYTHON=$PYTHON is not that." >&2
    return 1
  fi
  for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
    python_version "$candidate" >/dev/null && echo "$candidate" && return
  done
  echo "vdm_jax needs Python 3.11 or newer: none found among python3, python3.11 to" \
    "python3.14; install it or set PYTHON=/path/to/python." >&2
  return 1
}

if [ "${1:-}" = --find-python ]; then
  find_python
  exit
fi

if [ -z "${VDM_JAX_EXTRAS+set}" ]; then
  VDM_JAX_EXTRAS=""
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    VDM_JAX_EXTRAS="gpu"
  fi
fi
read -r -a wanted <<<"$* $VDM_JAX_EXTRAS"

identity="$root $(cksum <"$root/setup.py")"
installed=" "
version=""
if [ -x "$venv/bin/python" ] && version="$(python_version "$venv/bin/python")"; then
  if [ -n "${PYTHON:-}" ] && [ "$(python_version "$PYTHON")" != "$version" ]; then
    version=""
  fi
fi
if [ -n "$version" ] && [ -f "$stamp" ]; then
  installed=" $(tail -n +2 "$stamp" | tr '\n' ' ') "
  current=0
  [ "$(head -n 1 "$stamp")" = "$identity" ] && current=1
  for extra in ${wanted[@]+"${wanted[@]}"}; do
    case "$installed" in *" $extra "*) ;; *) current=0 ;; esac
  done
  [ "$current" = 1 ] && exit 0
fi

if [ -z "$version" ]; then
  python="$(find_python)"
  echo "Making $venv with $("$python" --version)"
  if ! "$python" -m venv --clear "$venv"; then
    echo "Could not make $venv: on Debian and Ubuntu, apt install python3-venv first." >&2
    exit 1
  fi
fi

# What an earlier call installed stays: its extras are asked for again.
extras="$(echo "$installed ${wanted[*]-}" | tr ' ' '\n' | sort -u | sed '/^$/d')"
listed="$(printf '%s' "$extras" | tr '\n' ',')"
target="${root}${listed:+[$listed]}"
echo "Installing vdm_jax${listed:+ with $listed} into .venv (a minute or two, once)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$target"
printf '%s\n%s\n' "$identity" "$extras" >"$stamp"
