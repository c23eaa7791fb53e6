"""Markdown pages and figures of the quality results."""
