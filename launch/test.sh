#!/usr/bin/env bash
# Installs what the tests need into .venv, and runs the linters, the type checker and all tests of an ordinary run.
# Arguments go to pytest: bash launch/test.sh -m "not slow" tests/config. Its results, a line a file, without arguments:
# benchmarks/results/tests.json.
#
# bash launch/test.sh --all is the campaign, for hours that nobody waits for: whole products instead of pairs, processes
# that are started instead of forked, zero3_nvme, the mutants. Its results: benchmarks/results/campaign.json. One that was
# cut short goes on with the parts that it lacks, of tests, slurm, nvme and mutants: bash launch/test.sh --all nvme mutants.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=0
parts=" tests slurm nvme mutants "
if [[ "${1:-}" == --all ]]; then
    all=1
    shift
    for part in "$@"; do
        [[ "$parts" == *" $part "* ]] || { echo "no part of the campaign: $part; there are$parts" && exit 2; }
    done
    ((!$#)) || parts=" $* "
    set --
    export FTSCALE_ALL=1 FTSCALE_REAL_STARTS=1
fi

bash launch/install.sh demo,dev
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
export PYTHONDONTWRITEBYTECODE= # tests start some hundred processes, each of which would compile ftscale anew
# DeepSpeed's operators are compiled for one environment: two checkouts under test would each compile over the other's
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$PWD/.venv/torch_extensions}"
export PATH="$PWD/.venv/bin:$PATH" # tests start `accelerate launch` and ftscale

# tests/slurm starts a real Slurm cluster of network namespaces, which takes root; pages are opened in a Chromium;
# zero3_nvme needs libaio
missing=()
for program in slurmctld slurmd sbatch munged ip nsenter ps; do
    command -v "$program" >/dev/null || missing=(slurmctld slurmd slurm-client munge iproute2 util-linux procps)
done
command -v chromium >/dev/null || missing+=(chromium)
((!all)) || [[ -e /usr/include/libaio.h ]] || missing+=(libaio-dev)
if ((${#missing[@]})); then
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        echo "Installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        log=.venv/packages.log
        { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
            echo "that failed, see $log; tests that need them are skipped"
    else
        echo "Tests that need Debian's ${missing[*]} are skipped: installing them takes root"
    fi
fi

step() {
    echo "== $*"
    "$@"
}
part() { # whether this part of the campaign is to be run
    [[ "$parts" == *" $1 "* ]]
}
run_tests() {
    step pytest --dist loadfile --no-loadscope-reorder --instafail --durations 25 "$@"
}

operators=(ShareMemCommBuilder CPUAdamBuilder)
((!all)) || [[ ! -e /usr/include/libaio.h ]] || operators+=(AsyncIOBuilder)
python tests/operators.py "${operators[@]}" >.venv/operators.log 2>&1 & # a minute, beside the linters
compiling=$!

step ruff check .
step ruff format --check .
step codespell
step mypy
step bandit -q -r ftscale benchmarks --severity-level medium --baseline launch/bandit.json
# not --quiet, with which --strict counts no warnings
NO_MKDOCS_2_WARNING=1 step mkdocs build --strict --config-file launch/mkdocs.yml
wait $compiling || { tail -n 20 .venv/operators.log && exit 1; }

if (($#)); then
    run_tests -n 2 "$@"
    exit
fi
failed=0
export FTSCALE_TEST_COMMAND="bash launch/test.sh"
export FTSCALE_TEST_RESULTS="$PWD/benchmarks/results/tests.json"
if ((all)); then
    FTSCALE_TEST_COMMAND+=" --all"
    FTSCALE_TEST_RESULTS="$PWD/benchmarks/results/campaign.json"
    ! part tests || run_tests -n 2 -m "not slurm and not nvme" || failed=1
    # by themselves: each of their jobs has four processes; two clusters, since a job often waits for Slurm
    ! part slurm || run_tests -n 2 -m slurm || failed=1
    ! part nvme || run_tests -m nvme || failed=1
    ! part mutants || step python tests/mutants.py || failed=1
else
    # Slurm's one long test waits for Slurm most of the time
    run_tests -m slurm >.venv/slurm-tests.log 2>&1 &
    slurm=$!
    run_tests -n 2 -m "not slurm and not nvme" || failed=1
    wait $slurm || failed=1
    cat .venv/slurm-tests.log
fi
step python tests/costs.py "$FTSCALE_TEST_RESULTS"
exit $failed
