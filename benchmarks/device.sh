#!/usr/bin/env bash
# Build, measure and test on an NVIDIA machine, in stages with time limits:
#
#     benchmarks/device.sh                 the stages that fit into nine minutes, in order of value
#     benchmarks/device.sh --list          the stages, and what each answers
#     benchmarks/device.sh --call 1        one call of several (1 to 5), each within nine minutes
#     benchmarks/device.sh --stage scan_sd14 ops --skip build
#     benchmarks/device.sh --minutes 25    another limit of the whole run
#     benchmarks/device.sh --dry-run       every stage to its end on a CPU, on tiny models
#
# OUT (default: device_out) receives a CSV of rows in the format of benchmarks/results, device.log
# and stages.csv, to which later calls add. Rows are written one by one, so a stage that is ended
# keeps what it has measured.
# `python -m benchmarks.ops.merge OUT...` adds the rows to benchmarks/results. DORI_COMMIT names the
# commit where .git does not travel. Exit code 1: a stage failed or was not reached.
#
# No network is needed. Besides Python's own library and torch's requirements it imports
#
#     torch triton numpy transformers tokenizers safetensors huggingface-hub regex pyyaml requests
#     tqdm packaging filelock pillow typer pydantic
#     to build: setuptools cmake ninja pybind11        to test: pytest hypothesis
#
# and nothing else of the project's requirements: no pyarrow, scipy, matplotlib, accelerate or peft.
# Carry what the machine lacks as wheels in .whl/, downloaded on a machine with a network. With
# transformers 5.17 and torch 2.11, for example:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#         --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
#         diffusers==0.42.1 importlib_metadata==10.2.0 lazy-importer==0.1.0 zipp==4.1.2 \
#         pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 \
#         torchmetrics==1.3.2 lightning-utilities==0.15.3
#
# torchmetrics 1.3.2 is the baseline of ms_ssim; with another version, or none, that case and its
# tests skip themselves and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-device_out}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" PYTHONUNBUFFERED=1
commit="$(git describe --always --dirty=+ --abbrev=10 2>/dev/null || true)"
export DORI_COMMIT="${DORI_COMMIT:-$commit}"
exec "${PYTHON:-python3}" -m benchmarks.device "$@"
