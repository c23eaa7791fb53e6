"""Text encoders, and the conditions that they make of prompts."""
