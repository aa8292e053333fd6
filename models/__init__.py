"""The shared core of G-Merging: networks and maths. No HTTP, no command line, no optimiser."""
