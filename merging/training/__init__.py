"""Training: fine-tuning, alignment of adapters, pre-training; losses and metrics."""
