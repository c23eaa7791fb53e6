"""Diffusers' UNets as stages: which ones, in which order, and under which masks."""
