"""Results in formats of other tools: CSV, lm-eval JSON, model cards."""
