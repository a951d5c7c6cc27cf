"""The run directory: identity, files, typed summary, lock, and loading."""
