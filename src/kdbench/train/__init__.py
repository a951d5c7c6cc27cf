"""Training: the loop, the learners it trains, and what they need."""
