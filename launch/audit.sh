#!/usr/bin/env bash
# Known vulnerabilities of the pinned versions: bash launch/audit.sh. Exit code 1 where there are any that
# launch/audit.txt does not accept; 0, with a sentence, where the data base cannot be reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=2.10.1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
accepted=()
while read -r id _; do
    [[ -z "$id" || "$id" == "#"* ]] || accepted+=(--ignore-vuln "$id")
done <launch/audit.txt

[[ -x .venv/audit/bin/pip-audit ]] || {
    python3 -m venv .venv/audit
    .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit==$version"
}
.venv/audit/bin/pip-audit --requirement launch/constraints.txt --require-hashes --disable-pip --progress-spinner off \
    ${accepted[@]+"${accepted[@]}"} >"$log" 2>&1 && code=0 || code=$?
if ((code == 0)) || grep -q "^Found " "$log"; then
    cat "$log"
    exit "$code"
fi
echo "not audited: the data base of vulnerabilities cannot be reached ($(tail -n 1 "$log" | cut -c 1-200))"
