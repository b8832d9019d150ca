#!/usr/bin/env bash
# Mounts a Cloud Storage bucket with gcsfuse, which it installs where it is missing (Debian, Ubuntu).
# launch/tpu_vm.sh --mount runs it on every worker. Where something is mounted it does nothing.
#
#   bash launch/mount_bucket.sh --bucket=BUCKET --directory=/DIR [--folder=FOLDER]
#
# A new machine updates itself for some minutes after its first boot and holds apt's locks
# meanwhile: this waits for them.
#
#   --bucket=BUCKET      without gs://
#   --directory=/DIR     where it is mounted; made if it is missing
#   --folder=FOLDER      mounts only this folder of the bucket
#   --apt_tries=N        how often apt is tried (default 60)
#   --apt_pause=SECONDS  between two tries (default 10)
#   --help               this text
set -euo pipefail

die() {
  echo "mount_bucket.sh: $1" >&2
  exit "${2:-2}"
}

# Checks that VALUE of --NAME is a whole number.
number() {
  case "$2" in "" | *[!0-9]*) die "$1=$2: not a whole number" ;; esac
}

bucket="" directory="" folder="" apt_tries=60 apt_pause=10
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" # the comment above
      exit
      ;;
    --bucket=*) bucket="${1#*=}" ;;
    --directory=*) directory="${1#*=}" ;;
    --folder=*) folder="${1#*=}" ;;
    --apt_tries=*) apt_tries="${1#*=}" && number --apt_tries "$apt_tries" ;;
    --apt_pause=*) apt_pause="${1#*=}" && number --apt_pause "$apt_pause" ;;
    *) die "unknown flag $1; see --help" ;;
  esac
  shift
done
[ -n "$bucket" ] || die "--bucket=BUCKET is missing"
case "$directory" in /?*) ;; *) die "--directory=$directory: not a path from the root" ;; esac

# Runs apt-get once it has its locks.
apt() {
  local try output
  for ((try = 1; ; try++)); do
    if output="$(sudo apt-get -qq -o DPkg::Lock::Timeout=60 "$@" 2>&1)"; then return 0; fi
    case "$output" in
      *lock*) ;;
      *)
        echo "$output" >&2
        die "apt-get $1 failed" 1
        ;;
    esac
    [ "$try" -lt "$apt_tries" ] || die "apt's lock is held by another program: ${output##*$'\n'}" 1
    [ "$try" != 1 ] || echo "mount_bucket.sh: waiting for apt's lock" >&2
    sleep "$apt_pause"
  done
}

if mountpoint -q "$directory"; then exit 0; fi
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  source="deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main"
  echo "$source" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt update
  apt install -y gcsfuse
fi
sudo mkdir -p "$directory"
sudo chown "$(id -u):$(id -g)" "$directory"
# Data sets are written under a temporary name and renamed (checkpoints are not). What one worker has
# written the others must see at once: the default on TPU machines keeps metadata for ever.
gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 \
  ${folder:+"--only-dir=$folder"} "$bucket" "$directory"
