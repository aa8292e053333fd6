"""Applicability domain of a task: training molecules near a molecule, and how wrong answers were on
molecules as near as that."""
