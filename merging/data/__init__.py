"""Data sets: tables of molecules, graphs, frames; labels, splits and checkpoints."""
