"""Families: what differs by kind of model, for artifacts and the service; one table of all."""
