#!/usr/bin/env bash
# On each machine of a TPU slice; tpu.sh calls it over ssh. The program runs on its own, so that it outlives the ssh.
#
#   tpu_worker.sh install                Python 3.11 or newer, and crs_jax with the extras of EXTRAS (tpu)
#   tpu_worker.sh run FLAGS              starts this machine's process, or finds it running, and follows its log
#   tpu_worker.sh status                 one line: running, none, lost, uninstalled, or the last process' exit status
#   tpu_worker.sh stop                   asks the process to end (SIGTERM: it saves) and waits for that
#   tpu_worker.sh logs                   the log so far, and what comes
#
# SHARE=HOST:/PATH (NFS, as Filestore has it) or SHARE=gs://BUCKET is mounted at /mnt/crs_jax first, by install and run.
# STATE=FOLDER holds pid, status and log (~/.crs_jax), PROGRAM=COMMAND is run in place of crs_jax.main.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

state=${STATE:-$HOME/.crs_jax}
mount_point=${MOUNT_POINT:-/mnt/crs_jax}
mkdir -p "$state"

# apt PACKAGE...: a fresh machine is still installing updates, which holds apt's lock for minutes.
apt() { sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 "$@"; }

share() {
  if [ -z "${SHARE:-}" ] || mountpoint -q "$mount_point"; then return; fi
  say "Mounting $SHARE at $mount_point"
  sudo mkdir -p "$mount_point"
  case $SHARE in
    gs://[a-z0-9]*)
      if ! command -v gcsfuse >/dev/null && ! { apt update && apt install gcsfuse; }; then
        say "error: no gcsfuse here, and apt has none; install it on all workers (cloud.google.com/storage/docs/cloud-storage-fuse/install), or share a Filestore: --share=HOST:/PATH"
        return 1
      fi
      # Folders are renamed where checkpoints become whole, and what one machine wrote has to be seen by the others.
      sudo chown "$(id -u):$(id -g)" "$mount_point"
      gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 --kernel-list-cache-ttl-secs=0 "${SHARE#gs://}" "$mount_point"
      ;;
    [!-]*:/ | [!-]*:/[!/]*)
      if ! command -v mount.nfs >/dev/null; then apt update && apt install nfs-common; fi
      sudo mount -t nfs -o hard,lookupcache=positive "$SHARE" "$mount_point"
      if ! [ -w "$mount_point" ]; then sudo chmod 1777 "$mount_point"; fi
      ;;
    *)
      say "error: --share=$SHARE: expected HOST:/PATH of an NFS share (Filestore), or gs://BUCKET"
      return 2
      ;;
  esac
}

# The image's Python where it is new enough (Ubuntu 24.04), else one that uv brings.
choose_python() {
  if find_python 2>/dev/null; then return; fi
  apt update
  apt install python3-venv python3-pip
  if find_python 2>/dev/null; then return; fi
  python3 -m pip install --quiet --user uv
  "$HOME/.local/bin/uv" python install --quiet 3.12
  "$HOME/.local/bin/uv" python find 3.12
}

process() { cat "$state/pid" 2>/dev/null || true; }

# Whether that process is there and is one of the program's: after a reboot another may have its number.
is_running() {
  local pid
  pid=$(process)
  [ -n "$pid" ] && grep -qaF "${PROGRAM:-crs_jax.main}" "/proc/$pid/cmdline" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status"
}

status() {
  if is_running; then
    printf 'running\n'
  elif ! ls "$venv"/.installed-* >/dev/null 2>&1; then
    printf 'uninstalled\n'
  elif [ -s "$state/status" ]; then
    cat "$state/status"
  elif [ -n "$(process)" ]; then
    printf 'lost\n'
  else
    printf 'none\n'
  fi
}

start() {
  local program=("${PROGRAM:-}")
  if [ -z "${PROGRAM:-}" ]; then program=("$venv/bin/python" -m crs_jax.main); fi
  rm -f "$state/status" "$state/pid"
  printf '\n%s: %s\n' "$(date '+%F %T')" "$*" >>"$state/log"
  cd "$root"
  # shellcheck disable=SC2016 # expanded by the shell that waits for the program
  setsid nohup bash -c 'state=$1; shift; "$@" & printf "%s\n" $! >"$state/pid.new"; mv "$state/pid.new" "$state/pid"
    status=0; wait $! || status=$?; printf "%s\n" "$status" >"$state/status.new"; mv "$state/status.new" "$state/status"' \
    crs_jax "$state" "${program[@]}" --distributed "$@" </dev/null >>"$state/log" 2>&1 &
  until [ -s "$state/pid" ]; do sleep 0.1; done
}

# The shell that waits for the program writes its status a moment after the end; where it died too, nobody does.
wait_for_status() {
  local _
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if [ -s "$state/status" ]; then return; fi
    sleep 0.2
  done
}

run() {
  share
  local from=1
  if is_running; then
    say "A process of the program runs here since before; followed. To start anew: launch/tpu.sh stop"
  else
    touch "$state/log"
    from=$(($(wc -l <"$state/log") + 2))
    start "$@"
  fi
  tail -n "+$from" -s 0.2 -f --pid="$(process)" "$state/log"
  wait_for_status
  if [ -s "$state/status" ]; then return "$(cat "$state/status")"; fi
  return 75
}

stop() {
  local pid
  if ! is_running; then return; fi
  pid=$(process)
  kill -TERM "$pid"
  say "Asked process $pid to end; it saves first"
  tail -s 0.2 -f /dev/null --pid="$pid"
  wait_for_status
  if [ "$(cat "$state/status" 2>/dev/null)" = 143 ]; then printf '130\n' >"$state/status"; fi # as asked: it stays ended
}

command=${1:-}
shift || true
case $command in
  install)
    share
    if ! find_python >/dev/null 2>&1; then
      PYTHON=$(choose_python)
      export PYTHON
    fi
    EXTRAS=${EXTRAS:-tpu} install core
    ;;
  run) run "$@" ;;
  status) printf 'crs_jax status: %s\n' "$(status)" ;;
  stop) stop ;;
  logs) tail -n +1 -f "$state/log" ;;
  *)
    say "error: ${command:-nothing} asked for; expected install, run, status, stop or logs"
    exit 2
    ;;
esac
