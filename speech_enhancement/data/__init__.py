"""Waves and mixtures on disk: reading, listing, mixing, packing."""
