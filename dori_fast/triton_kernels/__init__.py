"""Every op as Triton kernels and launchers; callers check the arguments.

Each module ends in COMPILE_CASES, which the tests compile for GPUs that need not be there. Kernels
name sizes by letters (L elements of a row, N neurons, ...) and strides by tensor and axis
(`x_stride_b`), in elements.
"""
