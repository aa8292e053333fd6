"""A run: its configuration, its stages and the store of their results."""
