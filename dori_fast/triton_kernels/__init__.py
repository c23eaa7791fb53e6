"""Every operator as Triton kernels: kernels and launchers only, checks are the callers'.

Each module ends in COMPILE_CASES, which the tests compile for GPUs that are not there.
"""
