#!/usr/bin/env bash
# Installs a wheel into an empty environment, leaves the checkout, and embeds with it.
#
#     deploy/check_release.sh WHEEL ARTIFACT PYTHON [CONSTRAINTS]
set -euo pipefail
wheel=$(realpath "$1") artifact=$(realpath "$2") python=$3 constraints=${4:+$(realpath "$4")}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check ${constraints:+-c "$constraints"} \
    "$wheel[onnx,parquet,hdf5]"
cd "$place"
printf '>a\nMKTAYIAKQR\n>b\nGGAVL\n' > x.fasta
for ending in npz parquet h5; do
    venv/bin/esm2-run embed "$artifact" x.fasta -o "x.$ending"
done
venv/bin/esm2-run selftest "$artifact" --engine onnx
venv/bin/python - "$artifact" << 'END'
import platform
import sys

import esm2_engines as esm2

with esm2.load(sys.argv[1], engine="onnx") as model:
    assert len(model.embed(["MKTAYIAKQR", "GGAVL"])) == 2
    print(f"{model}\nesm2-engines {esm2.__version__} works with Python {platform.python_version()}")
END
