"""The part of a report about a search of settings: how much of a gain it explains."""
