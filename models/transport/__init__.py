"""Optimal transport on graphs, entropic and exact, and the TWD."""
