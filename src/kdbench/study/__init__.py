"""Studies: a question, stages of sweeps that answer it, and winners chosen on validation."""
