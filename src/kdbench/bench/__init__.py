"""Training speed as ratios measured in one process: `kdbench-bench`."""
