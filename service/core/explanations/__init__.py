"""Explanations that predictions do not carry, one module each."""
