"""Benchmarks, in six rooms over `harness`, `ceilings` and `peak`.

| room | holds |
|---|---|
| `ops` | each op against eager PyTorch: `python -m benchmarks.ops.run` |
| `speed` | scans, attacks and searches against the peers' procedures; `speed/gpu`: on a GPU |
| `peers` | the peers' procedures, and their released code on small models |
| `quality` | results of detection, pruning, attack and removal on the embedded model |
| `pages` | Markdown pages and figures of these results |
| `device` | the stages of `benchmarks/device.sh`, which runs all of this on an NVIDIA machine |
"""
