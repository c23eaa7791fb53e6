"""Checks of a run directory: its files, its model and its scores."""
