"""The functional view: distances of students to their teacher's predictions, beside controls trained without it."""
