"""Noise schedules: noise levels, prediction types and sampler steps."""
