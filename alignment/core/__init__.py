"""The subject itself: losses, sampling, judging, rollouts, the train step, evaluation.

Pure functions over pytrees and the loop that calls them; nothing here knows a study.
May import: `alignment.models`, `alignment.data`, `alignment.runtime`. Start with
`losses`, `rollout.py` and `train_step.py`.
"""
