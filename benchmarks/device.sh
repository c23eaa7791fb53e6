#!/usr/bin/env bash
# Build, test, check and time everything on an NVIDIA machine in one call of under nine minutes:
#
#     benchmarks/device.sh                 results, one log and the stages' times in device_out/
#     benchmarks/device.sh --dry-run       the same stages on a CPU, as little of each as there is
#
# It needs torch, triton, cmake, ninja, pybind11, numpy, transformers, pytest and hypothesis, and no
# network. What else is missing there is carried as wheels in .whl/, made where there is a network:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#         --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
#         diffusers importlib_metadata lazy-importer \
#         pydantic pydantic-core annotated-types typing-inspection
#
# OUT names another folder for what it leaves. Exit code 1: some stage failed.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-device_out}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.device "$@"
