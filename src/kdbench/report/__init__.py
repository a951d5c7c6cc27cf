"""From run directories to one table of runs, statistics, figures and a page. Imports no torch."""
