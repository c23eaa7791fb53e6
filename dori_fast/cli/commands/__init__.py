"""One file per command of dori-fast."""
