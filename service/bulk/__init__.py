"""Predictions for many molecules: streams, files and jobs."""
