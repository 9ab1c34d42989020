#!/usr/bin/env bash
# What every host of a TPU slice runs, as root, at every boot: brings its own Python and
# the pinned environment, mounts the bucket, trains, and starts training again after
# whatever it may survive. Idempotent: what is there is not made again, and a second
# instance leaves. `launch/tpu.py` passes it as the slice's startup-script.
#
#   startup.sh           prepare, then train in a systemd unit of its own
#   startup.sh train     train here and now
#   startup.sh doctor    say what keeps the hosts from training together
#
# It reads these attributes of the instance's metadata:
#   alignment-name, alignment-launch   name the directory of its status in the bucket
#   alignment-source                   gs:// address of the packed code
#   alignment-workdir                  gs:// address of the working directory
#   alignment-arguments                of alignment.main, quoted for a shell
#   alignment-python                   an interpreter that has all that is needed; with
#                                      it nothing is installed and no network used
# and from the environment ALIGNMENT_ROOT, where it keeps everything, and
# GCE_METADATA_IP, a metadata server other than Google's (as JAX does).
set -euo pipefail

ROOT=${ALIGNMENT_ROOT:-/opt/alignment}
METADATA=http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance

# uv brings CPython (checked against checksums built into uv) and the locked packages.
PYTHON_VERSION=3.12.13
UV_VERSION=0.13.9
UV_WHEEL=https://files.pythonhosted.org/packages/3d/aa/26d64642d808de4a652579ef950d7cd2d37f080a8babf9c67c6b75fc4c3f/uv-$UV_VERSION-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19

PREEMPTED=75    # alignment.types.PREEMPTED_STATUS: state is saved, run me again
MAX_CRASHES=5   # in a row, each within CRASH_SECONDS of its start
CRASH_SECONDS=600
PAUSE=${ALIGNMENT_PAUSE:-10}  # seconds before training is started again

say() { echo "$(date +%T) startup: $*"; }

attribute() {  # the value of alignment-$1, empty if there is none
  curl -sf --retry 5 --retry-connrefused -H 'Metadata-Flavor: Google' \
    "$METADATA/attributes/alignment-$1" || true
}

# gs://BUCKET/PATH is the file $ROOT/gs/BUCKET/PATH, for this script and in arguments.
local_path() { echo "${1//gs:\/\//$ROOT/gs/}"; }

mount_buckets() {
  local bucket
  for bucket in $(grep -oE 'gs://[a-z0-9._-]+' <<<"$WORKDIR $SOURCE $ARGUMENTS" | sort -u); do
    bucket=${bucket#gs://}
    mountpoint -q "$ROOT/gs/$bucket" && continue
    command -v gcsfuse >/dev/null || install_gcsfuse
    mkdir -p "$ROOT/gs/$bucket"
    # No caching of metadata: hosts see at once what another has written. The limit is
    # for buckets without a hierarchical namespace, where renaming copies.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=1000000 \
      "$bucket" "$ROOT/gs/$bucket" 9>&-
    say "mounted $bucket"
  done
}

install_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc release
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  curl -sSf --retry 5 https://packages.cloud.google.com/apt/doc/apt-key.gpg -o $keys
  echo "deb [signed-by=$keys] https://packages.cloud.google.com/apt gcsfuse-$release main" \
    >/etc/apt/sources.list.d/gcsfuse.list
  local patient=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)
  apt-get "${patient[@]}" update
  DEBIAN_FRONTEND=noninteractive apt-get "${patient[@]}" install -y gcsfuse
}

unpack_source() {
  [ -d "$CODE" ] && return
  local partial=$CODE.partial
  rm -rf "$partial"
  mkdir -p "$partial"
  tar -xzf "$(local_path "$SOURCE")" -C "$partial"
  mv "$partial" "$CODE"
}

install_python() {  # sets PYTHON
  PYTHON=$(attribute python)
  [ -n "$PYTHON" ] && return
  local locks=("$CODE/requirements.lock" "$CODE/requirements-tpu.lock")
  local key environment
  key=$(cat "${locks[@]}" <(echo "$PYTHON_VERSION $UV_VERSION") | sha256sum | cut -c1-16)
  environment=$ROOT/environments/$key
  PYTHON=$environment/bin/python
  [ -f "$environment/installed" ] && return
  export UV_PYTHON_INSTALL_DIR=$ROOT/python UV_CACHE_DIR=$ROOT/cache
  local uv=$ROOT/uv-$UV_VERSION/uv-$UV_VERSION.data/scripts/uv
  if [ ! -x "$uv" ]; then
    curl -sSfL --retry 5 "$UV_WHEEL" -o "$ROOT/uv.whl"
    echo "$UV_SHA256  $ROOT/uv.whl" | sha256sum --check --quiet
    python3 -m zipfile -e "$ROOT/uv.whl" "$ROOT/uv-$UV_VERSION"
    chmod +x "$uv"
  fi
  "$uv" venv --quiet --clear --managed-python --python "$PYTHON_VERSION" "$environment"
  "$uv" pip install --quiet --python "$PYTHON" --no-deps "${locks[@]/#/--requirement=}"
  touch "$environment/installed"
  say "installed Python $PYTHON_VERSION and the locked packages"
}

prepare() {  # sets what follows; everything it makes lasts until the next boot
  SOURCE=$(attribute source)
  WORKDIR=$(attribute workdir)
  ARGUMENTS=$(attribute arguments)
  CODE=$ROOT/source/$(basename "$SOURCE" .tar.gz)
  mount_buckets
  STATUS=$(local_path "$WORKDIR")/launch/$(attribute name)/$(attribute launch)
  mkdir -p "$STATUS"
  unpack_source
  install_python
  cd "$CODE"
}

report() {  # $1: `running`, or an exit status with which training has ended
  if [ "$1" != running ]; then
    tail -c 20000 "$ROOT/log" >"$STATUS/$HOSTNAME.log" || true
  fi
  echo "$HOSTNAME $1" >"$STATUS/$HOSTNAME.status"
}

train() {
  local arguments=() child stopping='' status last started crashes=0 i
  eval "arguments=($ARGUMENTS)"  # quoted by shlex.join
  for i in "${!arguments[@]}"; do
    arguments[i]=$(local_path "${arguments[i]}")
  done
  trap 'stopping=yes; kill -TERM "${child:-}" 2>/dev/null || true' TERM
  export PYTHONUNBUFFERED=1
  report running
  while [ -z "$stopping" ]; do
    started=$SECONDS
    rm -f /tmp/libtpu_lockfile  # a crash's: nothing else trains here, we hold the lock
    "$PYTHON" -m launch.doctor --workdir="$(local_path "$WORKDIR")" --timeout=120 || true
    say "training"
    "$PYTHON" -m alignment.main --workdir="$(local_path "$WORKDIR")" "${arguments[@]}" &
    child=$!
    while true; do  # `wait` returns early when TERM arrives
      wait "$child" && status=0 || status=$?
      kill -0 "$child" 2>/dev/null || break
    done
    last=$(tail -n 1 "$ROOT/log")
    say "training ended with status $status"
    [ -n "$stopping" ] && exit 0  # the host goes down; another will go on
    if [ "$status" -eq 0 ]; then
      break
    elif [ "$status" -eq 1 ] && [[ $last == error:* && $last != *"come together"* ]]; then
      break  # the user's to mend; crashes end in a traceback, and hosts that come up
      # minutes apart miss each other at first
    elif [ "$status" -ne $PREEMPTED ]; then
      [ $((SECONDS - started)) -gt $CRASH_SECONDS ] && crashes=0
      crashes=$((crashes + 1))
      [ $crashes -lt $MAX_CRASHES ] || break
    fi
    sleep "$PAUSE"
  done
  report "$status"
}

mkdir -p "$ROOT/source"
case ${1:-} in
  doctor)
    prepare
    exec "$PYTHON" -m launch.doctor --workdir="$(local_path "$WORKDIR")"
    ;;
  train)
    exec 9>"$ROOT/lock"
    flock -n 9 || { say "training runs already"; exit 0; }
    exec >>"$ROOT/log" 2>&1
    # Whoever watches would wait for ever for a host that does not get as far as training.
    trap 'status=$?; say "preparing failed"; [ ! -d "${STATUS:-}" ] || report $status' EXIT
    prepare
    trap - EXIT
    train
    ;;
  prepare)
    prepare >>"$ROOT/log" 2>&1
    ;;
  *)
    # Run by hand it may be that very file, which writing to would empty.
    [ "$0" -ef "$ROOT/startup.sh" ] || cat "$0" >"$ROOT/startup.sh"
    for try in 1 2 3 4 5; do  # outside the unit: mounts outlive it
      bash "$ROOT/startup.sh" prepare && break
      say "preparing failed, time $try; see $ROOT/log" >&2
      sleep "$PAUSE"
    done
    # A unit of its own is told of a shutdown in time, before the network goes.
    exec systemd-run --unit=alignment --collect --property=After=network-online.target \
      --property=KillMode=mixed --property=TimeoutStopSec=60 --setenv=HOME=/root \
      --setenv=ALIGNMENT_ROOT="$ROOT" bash "$ROOT/startup.sh" train
    ;;
esac
