"""Models that people already have: reading their files, and merging them in weight space."""
