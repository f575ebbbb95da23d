#!/usr/bin/env bash
# The same for any CI: needs Python 3.10 or later. Exit status 0: passed; 1: an engine failed or an
# error grew; 2: the artifact cannot be read.
#
#   examples/ci/parity.sh ARTIFACT [CHECKPOINT] [BASELINE parity.json]
#
# Where esm2-export is not installed, WHEEL names what to install: the wheel that
# `pip wheel --no-deps .` makes in esm2-engines, or its checkout.
set -euo pipefail
artifact=${1:?usage: parity.sh ARTIFACT [CHECKPOINT] [BASELINE]}
checkpoint=${2:-}
baseline=${3:-}

if ! command -v esm2-export > /dev/null; then
    python3 -m venv .parity-venv
    .parity-venv/bin/pip install --quiet "${WHEEL:?esm2-export is not installed: set WHEEL}[export]"
    PATH="$PWD/.parity-venv/bin:$PATH"
fi
options=(--report parity --junit parity/junit.xml)
if [ -n "$checkpoint" ]; then options+=(--checkpoint "$checkpoint"); fi
if [ -n "$baseline" ]; then options+=(--against "$baseline"); fi
esm2-export verify "$artifact" "${options[@]}"
