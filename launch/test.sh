#!/usr/bin/env bash
# Installs crs_jax with everything its tests need, and runs them. Safe to repeat; run it from any folder.
#
#   launch/test.sh                          all tests, but the slow ones that have shorter siblings and tests/soak
#   launch/test.sh -m slow                  these
#   launch/test.sh tests/rl -k clip         pytest's own arguments; files are named from the repository's root
#
# VENV=FOLDER puts the virtual environment elsewhere than .venv, PYTHON=PROGRAM chooses the interpreter.
# JAX_COMPILATION_CACHE_DIR=FOLDER keeps compiled programs for the next run of the tests on this machine.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install test
install_browser

cd "$root"
export PYTHONPATH="$root/tests${PYTHONPATH:+:$PYTHONPATH}"
exec "$venv/bin/python" -m pytest -p budget -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow' --durations=40 "$@"
