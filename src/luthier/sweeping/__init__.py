"""Sweeps: search over run configs, with the study's state in the store."""
