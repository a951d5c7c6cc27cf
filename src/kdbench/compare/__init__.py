"""Comparison of two finished runs: every metric between their predictions, and the similarity of their features."""
