#!/usr/bin/env bash
# Makes .venv with ftscale and the pinned versions, whose files must have the hashes of launch/constraints.txt:
# bash launch/install.sh EXTRAS, e.g. demo or demo,dev. Does nothing when that was done before with the same
# pyproject.toml, version, constraints and Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:?usage: bash launch/install.sh EXTRAS, e.g. demo}"
python="${PYTHON:-python3}"

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

command -v "$python" >/dev/null || fail "$python is not there; install it: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "ftscale needs Python 3.10 or newer, and $python is $("$python" -V); set PYTHON=/path/of/a/newer/python3"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments; install the module as root, then run this again:" \
            "apt-get install python3-venv"
    echo "Making the virtual environment .venv"
    "$python" -m venv .venv
fi

wanted="$(.venv/bin/python -V) $(cat pyproject.toml ftscale/version.py launch/constraints.txt launch/pip.txt | sha256sum | cut -d ' ' -f 1) $PWD"
stamp=".venv/installed-${extras//,/-}"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    log=.venv/install.log
    echo "Installing ftscale[$extras] with the versions of launch/constraints.txt into .venv"
    echo "(some GB to download, 2 to 10 minutes; tail -f $log shows how far it is)"
    pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
    if ! {
        pip install -r launch/pip.txt &&
            .venv/bin/python launch/requirements.py "$extras" >.venv/requirements.txt &&
            pip install --no-compile -c launch/constraints.txt -r .venv/requirements.txt &&
            pip install --no-deps --no-build-isolation -e .
    } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "the installation failed; its last lines are above, all of them in $log"
    fi
    echo "$wanted" >"$stamp"
fi
