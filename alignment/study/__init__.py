"""A configuration as a graph of artefacts: what feeds what, and what each stage does.

May import: every other room of the package. Start with `schema.py` (every key there
is) and `graph.py` (the paper's diagram).
"""
