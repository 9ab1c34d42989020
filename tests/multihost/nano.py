"""The nano study with replays, as a configuration file for processes of their own."""

from tests import studies


def get_config():
  c = studies.nano()
  c.runs["replay"] = {
    "method": ("offline",),
    "dataset": ("stream",),
    "replay_window": (0,),
  }
  c.runs.update(studies.best_of_four())
  return c
