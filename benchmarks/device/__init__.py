"""Stages of `benchmarks/device.sh`: what each measures, and how they are run in limited time.

It imports nothing of ours, so that a broken module costs one stage and not the run.
"""
