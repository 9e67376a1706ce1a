#!/usr/bin/env bash
# Installs crs_jax and runs it: the quickstart, or what the flags say. Safe to repeat; run it from any folder.
#
#   launch/local.sh                                  the quickstart, into runs/quickstart of this repository
#   launch/local.sh --config.reward.alpha=0 --workdir=runs/no_engagement
#   launch/local.sh --config=configs/redial_ppo.py:tiny --config.data.dir=FOLDER
#   launch/local.sh --helpfull                       every flag and setting
#
# Relative folders among the flags are taken from where you are. VENV=FOLDER puts the virtual environment elsewhere
# than .venv, PYTHON=PROGRAM chooses the interpreter, EXTRAS=cuda (or another extra of pyproject.toml, with commas
# between several) installs for an accelerator; --help installs and runs nothing.
set -euo pipefail

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install core

flags=(--config="$root/configs/quickstart.py" --workdir="$root/runs/quickstart")
for flag in "$@"; do
  case $flag in --config | --config=* | -config | -config=*) flags=() ;; esac
done
exec "$venv/bin/python" -m crs_jax.main ${flags[@]+"${flags[@]}"} "$@"
