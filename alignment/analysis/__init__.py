"""From evaluations to figures, claims and the report: reads files, and nothing else.

May import: `alignment.runtime`, `alignment.types`; never models or studies. Start with
`runs.py` (what is read), then `hypotheses.py` (what the paper said).
"""
