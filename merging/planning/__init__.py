"""Which models to merge: distances between fine-tuned models, groups, and the plan file that the
other commands take (GW-SMM)."""
