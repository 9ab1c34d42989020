"""Models: a model is `init`, `prepare`, `logits` and `decode_step` over one pytree."""
