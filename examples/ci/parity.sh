#!/usr/bin/env bash
# The same for any CI: needs Python 3.10 or later. Exit status 0: passed; 1: an engine failed or an
# error grew; 2: the artifact cannot be read.
#
#   examples/ci/parity.sh ARTIFACT [CHECKPOINT] [BASELINE parity.json]
set -euo pipefail
artifact=${1:?usage: parity.sh ARTIFACT [CHECKPOINT] [BASELINE]}
checkpoint=${2:-}
baseline=${3:-}

if ! command -v esm2-export > /dev/null; then
    python3 -m venv .parity-venv
    # Or a wheel of yours: ESM2_ENGINES="./esm2_engines-0.1.0-py3-none-any.whl[export]"
    .parity-venv/bin/pip install --quiet "${ESM2_ENGINES:-esm2-engines[export]}"
    PATH="$PWD/.parity-venv/bin:$PATH"
fi
options=(--report parity --junit parity/junit.xml)
if [ -n "$checkpoint" ]; then options+=(--checkpoint "$checkpoint"); fi
if [ -n "$baseline" ]; then options+=(--against "$baseline"); fi
esm2-export verify "$artifact" "${options[@]}"
