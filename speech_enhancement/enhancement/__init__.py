"""Enhancing recordings: frames, sample rates, files and pipes."""
