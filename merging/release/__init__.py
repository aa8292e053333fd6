"""From trained experts to an artifact: calibration, model card, added tasks."""
