"""One plan of runs for sweeps and studies, their grouping for lockstep, their execution and its record."""

MAX_LEARNERS = 8
"""Largest number of runs that train in lockstep, unless the user gives another."""
