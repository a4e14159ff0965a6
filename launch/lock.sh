#!/usr/bin/env bash
# Writes launch/constraints.txt: the exact versions that the tests run with, and the hashes of their files, for every
# Python that pyproject.toml allows. Keeps the versions that are there: bash launch/lock.sh; takes newer ones:
# bash launch/lock.sh --upgrade. Needs uv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

file=launch/constraints.txt
uv pip compile --universal --generate-hashes --no-annotate --python-version 3.10 --all-extras --quiet \
    --custom-compile-command "bash launch/lock.sh" --output-file "$file" "$@" pyproject.toml >/dev/null
# builds of torch for processors alone, which the index does not have: 2.13.0 for Python 3.11
sed -i 's/^torch==2\.13\.0 \\$/&\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b \\/' "$file"
echo "$(grep -c '==' "$file") versions in $file"
