"""Evaluation: reads checkpoints, never the training loop's state."""
