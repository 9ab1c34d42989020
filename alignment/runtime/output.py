"""What a command prints: its own lines, whatever they quote, and nobody else's."""

import io
import os
import sys
import warnings

from absl import logging


def prepare() -> None:
  """Makes stdout and stderr take any text; silences the libraries. Once, at start."""
  any_text()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or TensorFlow talks of it
  # Orbax tells every step of every save, and raises its errors besides logging them.
  logging.set_verbosity(logging.FATAL)
  silence_failed_saves()


def any_text() -> None:
  """What the terminal's encoding lacks is shown as escapes, instead of an exception."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def silence_failed_saves() -> None:
  """Without this, pages from Orbax and TensorStore follow our line about a full disk.

  When one write of a save fails, the others are left behind: coroutines that nobody
  awaits, and callbacks into an event loop that is closed.
  """
  warnings.filterwarnings("ignore", "coroutine", RuntimeWarning)

  def hook(unraisable) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      sys.__unraisablehook__(unraisable)

  sys.unraisablehook = hook
