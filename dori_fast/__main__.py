"""``python -m dori_fast``: the command line."""

from dori_fast.cli import main

main()
