"""From configs to finished run directories."""
