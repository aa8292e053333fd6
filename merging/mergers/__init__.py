"""Mergers, one file per family; the table of all of them is `merging.mergers.registry`."""
