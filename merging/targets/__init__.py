"""Losses and metrics, by what the answers of a task are."""
