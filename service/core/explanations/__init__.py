"""Explanations that predictions do not carry, a module each: what is computed, and how the service
computes it."""
