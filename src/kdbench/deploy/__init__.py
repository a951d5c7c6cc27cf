"""Trained networks outside of kdbench: export to files, size, latency, memory and energy."""
