"""Trackers: sinks beside metrics.csv, such as TensorBoard and MLflow, fed by a process of their own."""

from kdbench.trackers.base import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker"]
