"""SIGINT ends a process at once, and nothing that happens then changes how."""

import subprocess
import sys

from alignment.runtime import interrupts

RAISE = "signal.raise_signal(signal.SIGINT)\n"
BEGIN = (
  "import signal, sys\nfrom alignment.runtime import interrupts\n"
  "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # maybe ignored here
)


def run(program: str) -> tuple[int, str, str]:
  done = subprocess.run(
    [sys.executable, "-c", BEGIN + program], capture_output=True, text=True
  )
  return done.returncode, done.stdout, done.stderr


def test_nothing_is_cleaned_up_after_the_line_and_the_farewell():
  program = (
    "interrupts.end_at_once(lambda: print('farewell', flush=True))\n"
    f"try:\n  {RAISE}finally:\n  print('cleaned up', flush=True)\n"
  )
  assert run(program) == (interrupts.STATUS, "farewell\n", interrupts.LINE)


def test_a_second_signal_and_a_failing_farewell_change_nothing():
  program = f"def farewell():\n  {RAISE}  1 / 0\ninterrupts.end_at_once(farewell)\n"
  assert run(program + RAISE) == (interrupts.STATUS, "", interrupts.LINE)


def test_where_it_is_ignored_it_stays_so():
  program = "signal.signal(signal.SIGINT, signal.SIG_IGN)\ninterrupts.end_at_once()\n"
  assert run(program + RAISE) == (0, "", "")


def test_held_it_waits_until_the_end_of_the_block():
  program = (
    "interrupts.end_at_once()\nwith interrupts.held():\n"
    f"  {RAISE}  print('whole', flush=True)\nprint('after', flush=True)\n"
  )
  assert run(program) == (interrupts.STATUS, "whole\n", interrupts.LINE)
