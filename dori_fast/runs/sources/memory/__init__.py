"""Prompts in memory: values and tables of other libraries, made rows of a file."""
