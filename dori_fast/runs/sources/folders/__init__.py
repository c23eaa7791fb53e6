"""Folders that another program keeps: which of their files count."""
