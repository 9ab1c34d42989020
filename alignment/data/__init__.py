"""Data: reading pairs, storing their tokens, and sources of batches."""
