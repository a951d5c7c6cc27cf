"""Device, CPU threads, signals and logging of this process."""
