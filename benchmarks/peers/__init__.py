"""The peers' procedures, and their released code on small models."""
