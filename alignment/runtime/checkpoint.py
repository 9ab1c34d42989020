"""Checkpoints (Orbax): the last two full states, and parameters at evaluated steps.

Random keys and the data order are functions of (seed, step), so a state of step,
parameters and optimizer moments is all that a bit-exact resume needs.

Every checkpoint holds fingerprints of its arrays (fingerprints.py), which are compared
when it is read, and a full state also the environment that it was written in.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import re
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp

from alignment.runtime import environment, hosts
from alignment.runtime.files import check_path_of_arrays
from alignment.runtime.fingerprints import check_fingerprints, fingerprints
from alignment.runtime.sharding import path_name
from alignment.types import Params, UserError

ITEMS = ("state", "behaviour")  # what a full state may consist of


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step: int) -> bool:
    """`hosts.preempted` asks for all: its counter is not this training run's step."""
    del step
    return False


class Checkpoints:
  """The checkpoints of one training stage, written asynchronously."""

  def __init__(self, directory: Path):
    self._directory = directory.absolute()
    check_path_of_arrays(directory, "checkpoints")
    self._states = _Manager(
      self._directory / "state",
      item_handlers={name: ocp.StandardCheckpointHandler() for name in ITEMS},
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=True
      ),
    )
    self._params = ocp.StandardCheckpointer()

  def restore(self, abstract: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest intact state's items by name, laid out as `abstract` says, or None.

    Its `pending` are the metrics of steps that had not been logged.

    Warns if it was written by other software or on another device layout: the run then
    continues correctly, but not to the same bits. Warns if a newer one is damaged, and
    puts that aside.

    Raises:
      UserError: if none of the saved states is intact, or one is another model's.
    """
    damaged: dict[int, str] = {}
    for step in sorted(self._states.all_steps(), reverse=True):
      try:
        state = self._restore(step, abstract)
      except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
      except Exception as error:  # damaged files raise nearly anything
        damaged[step] = _reason(error)
        continue
      for other, reason in damaged.items():
        self._put_aside(other)
        _warn(
          f"{self._directory / 'state' / str(other)} is damaged ({reason}); "
          f"{self._directory.name} continues from step {step}"
        )
      return state
    if damaged:
      raise UserError(
        f"{self._directory / 'state'}: no saved state is intact ({damaged}); delete "
        f"{self._directory} to start this stage anew"
      )
    return None

  def _restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
    metadata = self._states.metadata(step)
    path = self._directory / "state" / str(step)
    for name, tree in abstract.items():
      check_same_shapes(path, metadata.item_metadata[name], tree)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    restored = dict(self._states.restore(step, args=ocp.args.Composite(**items)))
    saved = metadata.custom_metadata
    check_fingerprints(restored, saved["fingerprints"])
    for change in environment.changes(saved["environment"], abstract):
      _warn(
        f"{self._directory.name} resumes under {change}: bits may differ from an "
        "undisturbed run's"
      )
    return restored | {"pending": saved["pending"]}

  def _put_aside(self, step: int) -> None:
    """Out of the way of the state that will be saved at this step again."""
    aside = self._directory / f".damaged-state-{step}"

    def move() -> None:
      shutil.rmtree(aside, ignore_errors=True)
      os.rename(self._directory / "state" / str(step), aside)

    hosts.on_first(move)
    self._states.reload()

  def save_state(
    self, step: int, state: Mapping[str, Any], pending: Sequence[Any] = ()
  ) -> None:
    """Saves the items of a full state, by name: `state`, and what else it needs.

    `pending` are the metrics of steps that have not been logged yet, on the host.
    """
    # A run that resumes from this state does not write earlier parameters again.
    self._check_space(state)
    with self._saving():
      self._params.wait_until_finished()
      self._states.save(
        step,
        args=ocp.args.Composite(
          **{name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        ),
        custom_metadata={
          "environment": environment.environment(state),
          "fingerprints": fingerprints(dict(state)),
          "pending": list(pending),
        },
      )

  def save_params(self, step: int, params: Params) -> None:
    self._check_space(params)
    with self._saving():
      self._params.save(
        params_path(self._directory, step),
        params,
        force=True,
        custom_metadata={"fingerprints": fingerprints(params)},
      )

  def close(self) -> None:
    """Waits until everything is on disk."""
    with self._saving():
      self._states.wait_until_finished()
      self._params.wait_until_finished()
    self._states.close()
    self._params.close()
    hosts.wait_for_first()  # which commits them

  def _check_space(self, tree: Any) -> None:
    """A disk that is too full is told before writing: Orbax tells it at length."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    def check() -> None:
      free = shutil.disk_usage(self._directory).free
      if free < needed:
        raise UserError(
          f"{self._directory}: a checkpoint takes {needed / 1e6:,.1f} MB, but only "
          f"{free / 1e6:,.1f} MB are free: make room, then the same command resumes"
        )

    hosts.on_first(check)

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """A write that the system refuses is one line; earlier checkpoints stay."""
    try:
      yield
    except Exception as error:  # TensorStore's are ValueErrors with the system's inside
      if not isinstance(error, OSError) and _OF_THE_SYSTEM.search(str(error)) is None:
        raise
      raise UserError(
        f"{self._directory}: a checkpoint could not be written ({_reason(error)}); "
        "those before it are intact: free some space, then the same command resumes"
      ) from error


_OF_THE_SYSTEM = re.compile(r"([^:]*) \[os_error_code")  # in TensorStore's messages


def _reason(error: BaseException) -> str:
  """What the system says in an error's text, else how it begins."""
  text = " ".join(str(error).split())
  if of_the_system := _OF_THE_SYSTEM.search(text):
    return of_the_system[1].strip()
  return text[:100] or type(error).__name__


def _warn(line: str) -> None:
  if hosts.is_first():
    print(f"warning: {line}", flush=True)


def params_path(directory: Path, step: int) -> Path:
  return directory.absolute() / "params" / str(step)


def restore_params(directory: Path, step: int, abstract: Params) -> Params:
  """Parameters saved at `step`, laid out as `abstract` says.

  Raises:
    UserError: if there are none, they are damaged, or another model's.
  """
  path = params_path(directory, step)
  if not path.exists():
    steps = sorted(int(p.name) for p in path.parent.glob("[0-9]*") if p.name.isdigit())
    raise UserError(
      f"{path}: no parameters saved at step {step}; there are those of {steps}"
    )
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      saved = checkpointer.metadata(path)
      check_same_shapes(path, saved.item_metadata, abstract)
      params = checkpointer.restore(path, abstract)
    check_fingerprints(params, saved.custom_metadata["fingerprints"])
    return params
  except (UserError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:  # damaged files raise nearly anything
    raise UserError(
      f"{path}: damaged ({_reason(error)}); delete {directory} to make it again"
    ) from error


def check_same_shapes(path: Path, saved: Any, wanted: Any) -> None:
  """Raises UserError naming the first parameter that differs in presence or shape.

  Raises ValueError if nothing is known of what was saved.
  """
  if saved is None:
    raise ValueError("its metadata is missing")

  def shapes(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(p): tuple(leaf.shape) for p, leaf in flat}

  written, expected = shapes(getattr(saved, "tree", saved)), shapes(wanted)
  for name in sorted(written.keys() | expected.keys()):
    if written.get(name) != expected.get(name):
      raise UserError(
        f"{path}: checkpoint of another model (size, or model.scan_layers): parameter "
        f"'{name}' has shape {written.get(name)} there, {expected.get(name)} in the "
        "configured model; set both as they were, or take another --workdir"
      )
