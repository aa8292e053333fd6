"""The unified model compiled for the CPU."""
