"""Runs as HTML pages, one file each."""
