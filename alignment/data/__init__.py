"""Preference pairs: from files to tokens, and from tokens to the batch of a step.

May import: `alignment.runtime`, `alignment.types`. Start with `sources.py` (where a
batch comes from), then `readers.py` (text) and `pairs.py` (tokens).
"""
