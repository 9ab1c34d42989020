"""What a program needs as the compiler says, on devices that need not be there."""

import dataclasses
import time

import jax

from alignment.study.estimate import Memory
from alignment.study.programs import Program
from alignment.types import UserError
from launch.fit import hlo


class TooLargeError(UserError):
  """The compiler refuses a program: it needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program that the compiler took."""

  memory: Memory
  seconds: float
  traffic: dict[str, hlo.Traffic]


def compile_program(program: Program) -> Compiled:
  """Takes minutes.

  Raises:
    TooLargeError: in the compiler's words.
  """
  start = time.monotonic()
  try:
    compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise TooLargeError(str(error).splitlines()[0]) from None
  analysis = compiled.memory_analysis()
  needed = Memory(
    analysis.argument_size_in_bytes,
    analysis.temp_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes,
    program.held_bytes,
  )
  seconds = time.monotonic() - start
  return Compiled(needed, seconds, hlo.collectives(compiled.as_text()))
