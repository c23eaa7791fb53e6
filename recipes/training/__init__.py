"""Training and export of the embedded models."""
