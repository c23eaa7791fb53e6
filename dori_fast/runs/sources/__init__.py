"""Prompt inputs of every format, opened as one stream of rows."""
