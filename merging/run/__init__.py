"""One run: its configuration, the stages and the store of their results."""
