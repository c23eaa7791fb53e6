"""Scans, attacks and searches against the peers' procedures."""
