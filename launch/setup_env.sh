#!/usr/bin/env bash
# Makes .venv in the repository and installs vdm_jax there, editable, with the versions of
# launch/constraints.txt.
#
#   bash launch/setup_env.sh [EXTRA...]      extras of setup.py: tpu, gpu, gpu12, eval, test
#   bash launch/setup_env.sh --find-python   only prints the Python that it would use
#   bash launch/setup_env.sh --find-gpu      only prints the extra for the GPUs of this machine, or ""
#
# A second call returns at once unless setup.py or the versions changed, the repository moved or an
# extra is new. An extra gpu becomes gpu12 (CUDA 12) where the driver is too old for CUDA 13. It ends
# with 75 where packages could not be fetched: a later call may succeed.
#   PYTHON=/path/to/python3.12   the Python to use (default: the first of python3, python3.11 to
#                                python3.14 that is 3.11 or newer)
#   VDM_JAX_EXTRAS="gpu"         further extras; unset: gpu where nvidia-smi lists one; "": none
#   VDM_JAX_CONSTRAINTS=FILE     other versions; "": the newest that setup.py allows
#   VDM_JAX_TRIES=3              how often fetching packages is tried, after pauses that double
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
constraints="${VDM_JAX_CONSTRAINTS-$root/launch/constraints.txt}"

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

# Prints the extra for the GPUs that nvidia-smi lists: gpu, or gpu12 where the driver is too old for
# CUDA 13; nothing where there is no GPU. Fails where the driver is too old for either.
find_gpu() {
  local driver
  command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 || return 0
  driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null |
    sed -n '1s/\..*//p')"
  case "$driver" in
    "" | *[!0-9]*) echo gpu ;; # no known version: the wheels say themselves what they need
    *)
      if [ "$driver" -ge 580 ]; then
        echo gpu
      elif [ "$driver" -ge 525 ]; then
        echo gpu12
      else
        echo "JAX needs NVIDIA driver 525 or newer; this machine has $driver." >&2
        return 1
      fi
      ;;
  esac
}

case "${1:-}" in
  --find-python)
    find_python
    exit
    ;;
  --find-gpu)
    find_gpu
    exit
    ;;
esac

wanted=("$@")
if [ -z "${VDM_JAX_EXTRAS+set}" ]; then
  # Without extras asked for, a machine with too old a driver gets JAX for the CPU, and a message.
  VDM_JAX_EXTRAS="$(find_gpu)" || VDM_JAX_EXTRAS=""
fi
read -r -a more <<<"$VDM_JAX_EXTRAS"
wanted+=(${more[@]+"${more[@]}"})
for i in ${wanted[@]+"${!wanted[@]}"}; do
  if [ "${wanted[i]}" = gpu ]; then
    fitting="$(find_gpu)"
    wanted[i]="${fitting:-gpu}" # a login node has no GPU: CUDA 13 unless gpu12 is asked for
  fi
done

identity="$root $(cat "$root/setup.py" ${constraints:+"$constraints"} | cksum)"
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

pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

# JAX loads one CUDA: the extra $1, where it is wanted, takes the place of $2, which is CUDA $3.
replace_cuda() {
  case " ${wanted[*]-} " in *" $1 "*) ;; *) return 0 ;; esac
  case "$installed" in *" $2 "*) ;; *) return 0 ;; esac
  installed="${installed/ $2 / }"
  pip uninstall --quiet --yes "jax-cuda$3-plugin" "jax-cuda$3-pjrt"
}
replace_cuda gpu gpu12 12
replace_cuda gpu12 gpu 13

# What an earlier call installed stays: its extras are asked for again.
extras="$(echo "$installed ${wanted[*]-}" | tr ' ' '\n' | sort -u | sed '/^$/d')"
listed="$(printf '%s' "$extras" | tr '\n' ',')"
target="${root}${listed:+[$listed]}"
echo "Installing vdm_jax${listed:+ with $listed} into .venv (a minute or two, once)"
pause=10
for ((try = 1; ; try++)); do
  if pip install --quiet ${constraints:+--constraint "$constraints"} -e "$target"; then break; fi
  if [ "$try" -ge "${VDM_JAX_TRIES:-3}" ]; then
    echo "Could not install vdm_jax: $try tries failed." >&2
    exit 75
  fi
  echo "Could not install vdm_jax: trying again in $pause s" >&2
  sleep "$pause"
  pause=$((pause * 2))
done
printf '%s\n%s\n' "$identity" "$extras" >"$stamp"

# The first `vdm sample` then finds its program compiled. On an accelerator it would be another one,
# and a pod's workers would wait for each other.
case "$extras" in
  *gpu* | *tpu* | *pathways*) exit ;;
esac
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
echo "Compiling the sampler of moving_shapes (seconds, once)"
"$venv/bin/python" -m vdm_jax sample --prompt="a red circle moving left" --device=cpu \
  --out="$scratch" >/dev/null 2>&1 || echo "Not compiled: the first vdm sample does it" >&2
