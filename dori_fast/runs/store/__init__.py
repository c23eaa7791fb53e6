"""Run directories: the only writer of durable files."""
