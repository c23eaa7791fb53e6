"""Detection, pruning, attack and removal on the embedded model."""
