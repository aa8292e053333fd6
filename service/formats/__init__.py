"""Formats of requests, files and answers."""
