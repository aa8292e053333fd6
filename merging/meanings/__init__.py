"""Texts about the labels of published data sets, one YAML file per collection."""
