"""Preference pairs: from files to tokens, and from tokens to the batch of a step.

A file is bytes, then records (`records.py`, `parquet.py`), then examples (`layouts.py`,
`messages.py`, `transcripts.py`), then tokens (`tokenizer.py`, `split.py`, `pairs.py`).
May import: `alignment.runtime`, `alignment.types`. Start with `sources.py` (where a
batch comes from), then `readers.py` (text) and `pairs.py` (tokens).
"""
