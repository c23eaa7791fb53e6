"""Methods over a file of prompts: each leaves a run directory that a second call continues."""
