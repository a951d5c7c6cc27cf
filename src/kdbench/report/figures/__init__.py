"""Figures of the report, drawn by matplotlib without a display: a module for each group of figures."""
