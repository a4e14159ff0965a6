#!/usr/bin/env bash
# Installs what the tests need into .venv, and runs the linters, the type checker and all tests.
# Arguments go to pytest: bash launch/test.sh -m "not slow" tests/config
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh demo,dev
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
export PATH="$PWD/.venv/bin:$PATH" # tests start `accelerate launch` and ftscale

step() {
    echo "== $*"
    "$@"
}

step ruff check .
step ruff format --check .
step codespell
step mypy
step pytest -n 2 --dist loadfile "$@"
