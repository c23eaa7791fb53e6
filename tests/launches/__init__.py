"""Launches of the Triton kernels, compiled for GPUs that need not be present and recorded.

The ops run on a driver without a device. So every kernel is compiled exactly as a launch on a GPU
would compile it: with its true alignments, strides and constants.
"""
