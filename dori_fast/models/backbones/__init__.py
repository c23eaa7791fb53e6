"""Networks as the engine sees them: one folder per family, chosen by `registry`."""
