#!/usr/bin/env bash
# A TPU VM or a slice of a pod, from your machine through gcloud: make it, install crs_jax, run it on all workers.
#
#   launch/tpu.sh create --zone=us-west4-a --type=v5litepod-16 --spot   asks for a slice and waits for it
#   launch/tpu.sh install                copies this repository to all workers and installs it
#   launch/tpu.sh run -- FLAGS           the program on all workers, once; the same command again follows or goes on
#   launch/tpu.sh resume -- FLAGS        the same until it is done: again after a lost worker or a pre-emption, which
#                                        makes a new slice; ends with the program's status where again would not help
#   launch/tpu.sh status|logs|stop       of the processes; stop has them save and end
#   launch/tpu.sh delete                 gives the slice back
#
#   --name=crs-jax --zone=ZONE --type=TYPE    or TPU_NAME, TPU_ZONE, TPU_TYPE; --project=ID where gcloud has no default
#   --version=VERSION    the machines' software; found from the type
#   --share=WHERE        or TPU_SHARE: HOST:/PATH of a Filestore or gs://BUCKET (with hierarchical namespace), mounted
#                        at /mnt/crs_jax on all workers; workers that are several need it, and so does --spot
#   --extras=tpu         install, resume: extras of pyproject.toml; tpu,roberta for the plain configs
#   --spot               create: a machine that may be taken away; resume needs it again, to make the next
#   --retries=20         resume: how often to go on with one slice
#   --dry-run            or DRY_RUN=yes: prints the commands that would be run, and runs none
#
# jax.distributed finds the workers by the slice's own metadata. Example, with what all workers see under --workdir:
#   launch/tpu.sh resume --zone=us-west4-a --type=v5litepod-16 --extras=tpu,roberta --spot \
#     --share=10.0.0.2:/runs -- --config=configs/redial_ppo.py --workdir=/mnt/crs_jax/redial
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# shellcheck source=launch/restart.sh
source "$(dirname "${BASH_SOURCE[0]}")/restart.sh"

name=${TPU_NAME:-crs-jax} zone=${TPU_ZONE:-} type=${TPU_TYPE:-} share=${TPU_SHARE:-}
project="" version="" extras=tpu spot="" dry=${DRY_RUN:-} retries=20 pause=${PAUSE:-30}

fail() {
  say "error: $*"
  exit 2
}

command=${1:-}
case $command in
  create | install | run | resume | status | logs | stop | delete) shift ;;
  "" | -h | --help | help)
    sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *) fail "$command: expected create, install, run, resume, status, logs, stop or delete; --help says more" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --share=?*) share=${1#*=} ;;
    --extras=?*) extras=${1#*=} ;;
    --retries=?*) retries=${1#*=} ;;
    --spot) spot=yes ;;
    --dry-run) dry=yes ;;
    --)
      shift
      break
      ;;
    --config* | --workdir*) fail "$1: the program's own flags come after --: launch/tpu.sh $command -- $1" ;;
    *) fail "$1: no such flag of tpu.sh; --help lists them, and the program's own come after --" ;;
  esac
  shift
done
if [ $# -gt 0 ] && [ "$command" != run ] && [ "$command" != resume ]; then fail "$command takes no flags of the program"; fi
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: expected a whole number"
[ -n "$zone" ] || fail "--zone is missing; for example --zone=us-west4-a, or export TPU_ZONE=us-west4-a"
case $command in create | resume) [ -n "$type" ] || fail "--type is missing; for example --type=v5litepod-16, or export TPU_TYPE" ;; esac
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] || fail "--name=$name: expected small letters, digits and hyphens, such as crs-jax"
[[ $extras =~ ^[a-z]+(,[a-z]+)*$ ]] || fail "--extras=$extras: expected names, with commas between: --extras=tpu,roberta"
case $share in "" | gs://[a-z0-9]* | [!-]*:/ | [!-]*:/[!/]*) ;; *) fail "--share=$share: expected HOST:/PATH of a Filestore, or gs://BUCKET" ;; esac
if [ "$command" = resume ] && [ -n "$spot" ] && [ -z "$share" ]; then
  fail "--spot without --share: what a machine saved goes with it when it is taken away; --share=HOST:/PATH or gs://BUCKET"
fi
case $command in
  run | resume)
    [ $# -gt 0 ] || fail "the program's flags are missing; for example launch/tpu.sh $command -- --config=configs/quickstart.py"
    for flag; do
      case $flag in --workdir=gs://*) fail "$flag: name the folder: --share=gs://BUCKET and --workdir=/mnt/crs_jax/NAME" ;; esac
    done
    ;;
esac
if [ -z "$version" ]; then
  case $type in
    v5lite*) version=v2-alpha-tpuv5-lite ;;
    v5p*) version=v2-alpha-tpuv5 ;;
    v6e*) version=v2-alpha-tpuv6e ;;
    "" | v2* | v3* | v4*) version=tpu-ubuntu2204-base ;;
    *) fail "--type=$type: its software is not known here; add --version=VERSION (gcloud compute tpus tpu-vm versions list)" ;;
  esac
fi
if [ -z "$dry" ] && ! command -v gcloud >/dev/null; then
  fail "gcloud is not installed; see cloud.google.com/sdk/docs/install, or --dry-run to read what would be run"
fi

at=(--zone="$zone")
if [ -n "$project" ]; then at+=(--project="$project"); fi

# gcloud compute tpus ..., or its text.
tpus() {
  if [ -n "$dry" ]; then
    printf '%q ' gcloud compute tpus "$@"
    printf '\n'
  else
    gcloud compute tpus "$@"
  fi
}

# worker WHICH BEFORE COMMAND ARGUMENT...: tpu_worker.sh there. BEFORE is the shell's; the others arrive as they are.
worker() {
  local which=$1 before=$2 line
  shift 2
  printf -v line '%q ' crs_jax/launch/tpu_worker.sh "$@"
  tpus tpu-vm ssh "$name" "${at[@]}" --worker="$which" --command="$before${line% }"
}

# variables NAME VALUE...: assignments for the shell there, of what is not empty.
variables() {
  while [ $# -gt 0 ]; do
    if [ -n "$2" ]; then printf '%s=%q ' "$1" "$2"; fi
    shift 2
  done
}

# describe WHAT FIELD: a field of the slice or of the request for it; absent where there is none.
describe() {
  local found what=$1
  if found=$(tpus "$what" describe "$name" "${at[@]}" --format="value($2)" 2>&1); then
    printf '%s\n' "${found##*$'\n'}"
  elif [[ $found == *NOT_FOUND* ]]; then
    printf 'absent\n'
  else
    say "$found"
    return 1
  fi
}

# State of the slice: ready, queued, gone (taken away, or not to be had) or absent (never asked for).
state() {
  local found
  found=$(describe queued-resources state.state) || return 1
  if [ "$found" = ACTIVE ]; then
    found=$(describe tpu-vm state) || return 1
    if [ "$found" = absent ]; then found=TERMINATED; fi # the request is still there, and in the way of another
  fi
  case $found in
    READY) printf 'ready\n' ;;
    absent) printf 'absent\n' ;;
    FAILED | SUSPEND* | PREEMPTED | TERMINATED | STOPP* | DELETING) printf 'gone\n' ;;
    *) printf 'queued\n' ;;
  esac
}

ask() {
  local flags=(--node-id="$name" --accelerator-type="$type" --runtime-version="$version")
  if [ -n "$spot" ]; then flags+=(--spot); fi
  tpus queued-resources create "$name" "${at[@]}" "${flags[@]}"
}

# Until the slice is there.
wait_for_it() {
  local now
  if [ -n "$dry" ]; then return; fi
  say "Waiting for $name in $zone; Ctrl-C leaves the request in the queue, launch/tpu.sh delete takes it back"
  while :; do
    now=$(state) || return 1
    case $now in
      ready) return ;;
      queued) sleep "$pause" ;;
      *)
        say "error: the request for $name in $zone failed; launch/tpu.sh delete, then another zone or type"
        return 1
        ;;
    esac
  done
}

delete() { tpus queued-resources delete "$name" "${at[@]}" --force --quiet; }

install_workers() {
  local archive=/tmp/crs_jax.tar.gz
  if [ -z "$dry" ]; then
    archive=$(mktemp -d)/crs_jax.tar.gz
    # With .git, so that a run knows its commit; without what a run or a build leaves.
    tar -czf "$archive" -C "$root" --exclude=./runs --exclude=./.venv --exclude=./build --exclude=__pycache__ \
      --exclude='./.*_cache' --exclude='*.egg-info' --exclude=./.hypothesis --exclude=./.cache .
  fi
  tpus tpu-vm scp "$archive" "$name:crs_jax.tar.gz" "${at[@]}" --worker=all
  if [ -z "$dry" ]; then rm -r "$(dirname "$archive")"; fi
  local unpack="mkdir -p crs_jax && tar -xzf crs_jax.tar.gz -C crs_jax && "
  worker all "$unpack$(variables SHARE "$share" EXTRAS "$extras")" install
}

# What the workers say of their processes, a word each: running, none, lost, uninstalled or an exit status.
answers() { worker all "" status | sed -n 's/^.*crs_jax status: //p'; }

# One attempt: prints done, stop STATUS or again STATUS.
attempt() {
  local found
  worker all "$(variables SHARE "$share")" run "$@" >&2 || true # its status is that of one worker only
  if [ -n "$dry" ]; then
    worker all "" status >&2
    printf 'done\n'
    return
  fi
  found=$(answers) || found=""
  # Where the ssh broke off they all run on, and are followed again; where some have ended the others have to, too.
  if [[ $found == *running* && ${found//running/} == *[![:space:]]* ]]; then worker all "" stop >&2 || true; fi
  # shellcheck disable=SC2086 # one word a worker
  verdict ${found:-lost}
}

resume() {
  local now what code=0 again=0
  while :; do
    if [ -n "$dry" ]; then now=absent; else now=$(state) || return 1; fi
    if [ "$now" = gone ]; then
      say "The slice $name was taken away; making another"
      delete
      now=absent again=0
    fi
    if [ "$now" = absent ]; then ask; fi
    if [ "$now" != ready ]; then wait_for_it; fi
    if [ -n "$dry" ]; then
      install_workers
    elif ! now=$(answers) || [ -z "$now" ] || [[ $now == *uninstalled* ]]; then
      install_workers
    fi
    read -r what code <<<"$(attempt "$@")"
    case $what in
      "done") return 0 ;;
      stop)
        say "error: the program ended with status $code; launch/tpu.sh logs has what it said. Again would not help"
        return "$code"
        ;;
    esac
    if [ "$code" != running ] && [ "$again" -ge "$retries" ]; then
      say "error: ended $((again + 1)) times, last with $code, which is enough; the same command goes on"
      return 75
    fi
    if [ "$code" = running ]; then
      say "The connection broke off, the run goes on; followed again in $pause s"
    else
      again=$((again + 1))
      say "Ended with $code; again in $pause s ($again of $retries)"
    fi
    sleep "$pause"
  done
}

case $command in
  create)
    ask
    wait_for_it
    ;;
  install) install_workers ;;
  run)
    read -r what code <<<"$(attempt "$@")"
    if [ "$what" = "done" ]; then exit 0; fi
    [[ $code =~ ^[0-9]+$ ]] || code=75
    say "Ended with status $code; launch/tpu.sh logs has what it said"
    exit "$code"
    ;;
  resume) resume "$@" ;;
  status) worker all "" status ;;
  stop) worker all "" stop ;;
  logs) worker 0 "" logs ;;
  delete) delete ;;
esac
