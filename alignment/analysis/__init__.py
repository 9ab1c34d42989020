"""From evaluations to figures, claims and the report: reads files, and nothing else.

May import: `alignment.runtime`, `alignment.types`; never models, data, core or studies.
`python -m alignment.analysis WORKDIR` redraws a study's results. Start with
`results.py`, which is that command, then

- what is read: `runs.py` (evaluations), `published.py` (the study), `records.py`;
- what is measured, a number in one world each: `gaps.py` (over `envelopes.py`),
  `size_trends.py`, `classifiers.py`, `replays.py`, `laws.py`; with the intervals of
  `intervals.py`, of the runs that `selection.py` finds comparable;
- what the paper said: `statements.py` (in the terms of `hypotheses.py`), and the
  verdicts of `claims.py`;
- what is shown: `figures/`, `report.py` (its first sentence is `answer.py`, its looks
  `page.py`).
"""
