"""Commands that read a finished run: decide, report, export, check."""
