"""Experts: adapters and head of a task, the adapter bank, the router and the unified model."""
