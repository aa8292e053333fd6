"""Release of artifacts: calibration, model card, added and removed tasks."""
