#!/usr/bin/env bash
# Installs what the tests need into .venv, and runs the linters, the type checker and all tests.
# Arguments go to pytest: bash launch/test.sh -m "not slow" tests/config. Left out without any: -m nvme, for which
# DeepSpeed compiles its disk access for some minutes (needs Debian's libaio-dev).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh demo,dev
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
export PYTHONDONTWRITEBYTECODE= # tests start some hundred processes, each of which would compile ftscale anew
# DeepSpeed's operators are compiled for one environment: two checkouts under test would each compile over the other's
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$PWD/.venv/torch_extensions}"
export PATH="$PWD/.venv/bin:$PATH" # tests start `accelerate launch` and ftscale

# tests/slurm starts a real Slurm cluster of network namespaces, which takes root
missing=0
for program in slurmctld slurmd sbatch munged ip nsenter ps; do command -v "$program" >/dev/null || missing=1; done
if ((missing)); then
    slurm=(slurmctld slurmd slurm-client munge iproute2 util-linux procps)
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        echo "Installing ${slurm[*]}"
        export DEBIAN_FRONTEND=noninteractive
        log=.venv/slurm.log
        { apt-get update && apt-get install -y --no-install-recommends "${slurm[@]}"; } >"$log" 2>&1 ||
            echo "that failed, see $log; the tests of tests/slurm are skipped"
    else
        echo "The tests of tests/slurm are skipped: they need root, and Debian's ${slurm[*]}"
    fi
fi

step() {
    echo "== $*"
    "$@"
}

step ruff check .
step ruff format --check .
step codespell
step mypy
run_tests() {
    step pytest -n 2 --dist loadfile --no-loadscope-reorder --instafail --durations 25 "$@"
}

if (($#)); then
    run_tests "$@"
else
    failed=0
    run_tests -m "not slurm and not nvme" || failed=1
    # by themselves: each of their jobs has four processes; two clusters, since a job often waits for Slurm
    run_tests -m slurm || failed=1
    exit $failed
fi
