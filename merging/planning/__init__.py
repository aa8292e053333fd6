"""Planning of merges: distances between fine-tuned models, groups of near ones, and the plan file
that the other commands accept (GW-SMM)."""
