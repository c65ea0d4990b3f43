#!/usr/bin/env bash
# The GPU benchmark: bash benchmarks/gpu.sh [--dry]
#
# Takes less than ten minutes and leaves its figures in benchmarks/results/. --dry runs the same
# code in tiny sizes on the CPU and keeps nothing. PYTHON=... names the interpreter; else it is that
# of .venv, or python3.
set -euo pipefail
cd "$(dirname "$0")/.."

OPTIONS=(--save)
if [[ ${1:-} == --dry && $# == 1 ]]; then
    OPTIONS=(--small)
    export CUDA_VISIBLE_DEVICES=
elif [[ $# != 0 ]]; then
    echo "error: $* is not understood" >&2
    echo "  -> bash benchmarks/gpu.sh, or with --dry to try it without a GPU" >&2
    exit 2
fi
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
MISSING=$("$PYTHON" - << 'END'
from importlib.util import find_spec

needed = "torch torchvision numpy scipy sklearn easydict simplejpeg tqdm PIL"
print(*(name for name in needed.split() if find_spec(name) is None))
END
)
if [[ -n $MISSING ]]; then
    echo "error: $PYTHON has not got $MISSING" >&2
    echo "  -> make install, or: $PYTHON -m pip install -r requirements.txt" >&2
    exit 1
fi
exec "$PYTHON" -m benchmarks.gpu "${OPTIONS[@]}"
