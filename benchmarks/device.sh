#!/usr/bin/env bash
# Build, test and time everything on an NVIDIA machine in one call of less than nine minutes:
#
#     benchmarks/device.sh                 results, a log and the times of the stages in device_out/
#     benchmarks/device.sh --dry-run       a small part of each stage, on a CPU
#
# It needs torch, triton, cmake, ninja, pybind11, numpy, transformers, pytest and hypothesis, and no
# network. Carry other missing packages as wheels in .whl/, downloaded on a machine with a network:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#         --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
#         diffusers importlib_metadata lazy-importer \
#         pydantic pydantic-core annotated-types typing-inspection
#
# OUT is the output folder, device_out by default. Exit code 1: a stage failed.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-device_out}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.device "$@"
