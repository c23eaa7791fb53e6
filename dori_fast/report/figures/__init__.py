"""Figures of runs, as PNG files."""
