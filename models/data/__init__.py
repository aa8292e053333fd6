"""Inputs of the networks: molecules, graphs of features, structures, and batches of them."""
