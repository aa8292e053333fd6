"""Entropic and exact optimal transport on graphs, and the distance TWD made of it."""
