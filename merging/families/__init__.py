"""Training, merging and evaluation by family of models."""
