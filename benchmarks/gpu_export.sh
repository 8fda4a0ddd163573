#!/bin/sh
# Everything of the export that needs an NVIDIA GPU, in one call: the tests marked gpu, then plans that run, are
# refitted, agree with torch, and how fast they are. Writes gpu_export.json and gpu_export.md.
#
#     benchmarks/gpu_export.sh [--output DIR]
#
# Needs a set-up .venv with a CUDA build of torch and TensorRT or TensorRT-RTX; says what is missing, and exits with 2.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
if ! command -v "$PYTHON" >/dev/null 2>&1; then
    echo "missing: $PYTHON; run make test once to set up .venv, or name an interpreter in PYTHON" >&2
    exit 2
fi
exec "$PYTHON" benchmarks/gpu_export.py "$@"
