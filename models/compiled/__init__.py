"""The compiled model: many experts' streams in one pass on a CPU."""
