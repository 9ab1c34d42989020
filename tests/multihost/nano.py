"""The nano study with a replay, as a configuration file for processes of their own."""

from tests import studies


def get_config():
  c = studies.nano()
  c.runs["replay"] = {
    "method": ("offline",),
    "dataset": ("stream",),
    "replay_window": (0,),
  }
  return c
