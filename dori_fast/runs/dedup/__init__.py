"""Rows with equal token ids, scored once and joined back to every row of their input."""
