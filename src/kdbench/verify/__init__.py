"""Verification of run directories: what can be recomputed is, and compared with what was recorded."""
