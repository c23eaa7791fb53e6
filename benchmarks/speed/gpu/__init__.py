"""Measurements that mean something on a GPU only; all run on a CPU too, as a rehearsal.

Each is a stage of `benchmarks/device.sh`, and each records its rows one by one.

| file | question |
|---|---|
| `sweep` | which batch size scans fastest, and in how much memory |
| `split` | which kinds of ops take the GPU's time, and how long it waits |
| `sdpa` | which attention kernel is fastest at the networks' head widths |
| `backward` | what a gradient costs at 8 and 64 samples |
| `nemo` | how many rows and seconds NeMo needs on this device |
| `wanda` | what Wanda's statistics cost beside the network |
| `positions` | whether a result has the same bits at every position of a batch |
| `repeat` | whether attacks and scans repeat to the bit |
| `memory` | whether the peak is the one that small batches predict |
| `floor` | how far rounding moves the scores, by dtype |
| `compiling` | how long the first compiled score takes |
"""
