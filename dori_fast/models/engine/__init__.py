"""Evaluation of a network in batches of one fixed shape, whatever its architecture."""
