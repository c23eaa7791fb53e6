"""The CUDA kernels of csrc/cuda as threads on a CPU, under sanitizers and against the oracle.

`shim.h` stands in for CUDA, `translate.py` for the part of nvcc that reads launches, and
`<stem>.cpp` reads calls of the kernels in `csrc/cuda/<stem>.cu`.
"""
