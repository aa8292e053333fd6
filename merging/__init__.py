"""Offline: data sets, fine-tuning, mergers, adapter training, evaluation and release."""
