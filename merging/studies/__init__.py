"""The studies of papers, their results and tables."""
