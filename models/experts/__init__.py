"""A task's adapters and head, the bank that holds all, the router and the unified model."""
