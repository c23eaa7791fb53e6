"""Every op as Triton kernels and launchers; callers check the arguments.

Kernels name sizes by letters (L elements of a row, N neurons, ...) and strides by tensor and axis
(`x_stride_b`), in elements. `tests/launches` compiles every launch for GPUs that need not be there.
"""
