"""Does a run directory say the truth? What can be recomputed is, and compared with what was recorded."""
