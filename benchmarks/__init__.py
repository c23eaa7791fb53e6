"""Timings against eager PyTorch as the papers' code does it: `python -m benchmarks.ops.run`."""
