#!/usr/bin/env bash
# Writes launch/constraints.txt: one version of every package that setup.py and its extras, but beam
# and studio, lead to, for every operating system and every Python from 3.11 on.
# launch/setup_env.sh installs these.
#
#   bash launch/update_constraints.sh [--upgrade | --check]
#
# Without a flag, versions that the file holds stay, and packages that setup.py newly leads to are
# added. It needs the network and installs uv into a temporary directory.
#
#   --upgrade   takes the newest version of every package that setup.py allows
#   --check     changes nothing, and fails if the file is not what setup.py leads to
#   --help      this text
set -euo pipefail

die() {
  echo "update_constraints.sh: $1" >&2
  exit "${2:-2}"
}

flags=() check=0
case "${1:-}" in
  --help | -h)
    sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
    exit
    ;;
  --upgrade) flags=(--upgrade) ;;
  --check) check=1 ;;
  "") ;;
  *) die "unknown flag $1; see --help" ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
file=launch/constraints.txt
python="$(bash launch/setup_env.sh --find-python)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv --clear "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv keeps the versions that its output file holds. It reads the old file without its comments.
touch "$file"
sed '/^#/d' "$file" >"$scratch/pins.txt"
# Without beam and studio: Apache Beam and Gradio ask for older versions of what everything else uses.
extras=()
while read -r extra; do
  [ "$extra" = beam ] || [ "$extra" = studio ] || extras+=(--extra "$extra")
done < <(sed -n '/extras_require/,/^    },/s/^        "\([a-z0-9]*\)": *\(\[\|[A-Z]\).*/\1/p' setup.py)
"$scratch/venv/bin/python" -m uv pip compile --quiet setup.py "${extras[@]}" --universal \
  --python-version 3.11 --fork-strategy fewest --no-header --no-annotate \
  --output-file "$scratch/pins.txt" ${flags[@]+"${flags[@]}"}
{
  echo "# One version of every package, installed by launch/setup_env.sh."
  echo "# Written by: bash launch/update_constraints.sh"
  cat "$scratch/pins.txt"
} >"$scratch/constraints.txt"
if [ "$check" = 0 ]; then
  cp "$scratch/constraints.txt" "$file"
elif ! cmp -s "$scratch/constraints.txt" "$file"; then
  die "$file is not what setup.py leads to: bash launch/update_constraints.sh" 1
fi
