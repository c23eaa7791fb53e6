"""NeMo: value neurons that memorized prompts need, searched prompt by prompt."""
