"""The functional view: what students take over from their teacher's predictions, beside controls that never saw it."""
