"""The runs of one configuration, split over slices or over processes of this machine.

  python -m launch.sweep --config=configs/study.py:figure_14 \\
    --sweep=configs/sweeps/scaling.py --workdir=/tmp/scaling --jobs=2
  python -m launch.sweep --config=configs/study.py:figure_14,tldr \\
    --sweep=configs/sweeps/scaling.py --workdir=gs://BUCKET/scaling \\
    --tpu=v5p --zone=us-east5-a --capacity=spot -- --config.sft.init=...

A sweep goes in three phases. First the stages that members share are made, then every
member trains and evaluates its runs, each on a slice that fits its size; at last one
ordinary `alignment.main` finds everything done and draws the configuration's figures.
All work in one working directory, so a sweep that was killed goes on: members that
finished are skipped, the others resume. What follows `--` goes to `alignment.main`.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys

from ml_collections import ConfigDict

from alignment import flags
from alignment.runtime.files import directory_option, path_option, write_atomically
from alignment.study import artefacts, documents, recipes
from alignment.types import PREEMPTED_STATUS, UserError
from launch import gcloud, tpu, watch
from launch.gcloud import Cloud, Job
from launch.watch import Verdict, Watcher, say

MAX_CRASHES = 3  # of one process
CHILD = Path(__file__).with_name("child.py")


@dataclasses.dataclass(frozen=True)
class Sweep:
  """How a configuration's runs are split: what a file in configs/sweeps returns."""

  by: str  # a key of `policy`: runs that agree in it are one member (per world)
  shared: Sequence[str]  # stages that several members read, made before them
  # generation -> size -> accelerator type, and arguments that this slice needs.
  slices: Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Member:
  """One command of `alignment.main`."""

  name: str
  size: str  # of its policies, or the golden judge's: what its slice must hold
  arguments: tuple[str, ...]  # without --workdir


def load_sweep(file: str) -> Sweep:
  """Raises UserError for a file that is no sweep."""
  path = path_option(file, "--sweep")
  module = documents.load(path)
  with documents.mistakes_in(path):
    return Sweep(**module.get_sweep())


def load_config(arguments: Sequence[str]) -> ConfigDict:
  """The configuration that `alignment.main` would have: --config=... is the first.

  Its paths stay as they are: they may be of another machine.
  """
  values, (document, *others) = flags.split(arguments)
  if others:
    raise UserError(f"'{others[0]}' is no key of the configuration")
  return flags.load(document.removeprefix("--config="), values)


def plan(
  config: ConfigDict, sweep: Sweep, arguments: Sequence[str]
) -> tuple[list[Member], list[Member], list[Member]]:
  """The three phases: what is shared (per world), the members, the figures."""
  shared, members = [], []
  golden = config.golden_pm.size
  several = config.worlds > 1
  for world in recipes.worlds(config):
    suffix = f"_world{world}" if several else ""
    world_arguments = (*arguments, f"--config.first_world={world}", "--config.worlds=1")
    stages = f"--stages={','.join(sweep.shared)}"
    shared.append(Member(f"shared{suffix}", golden, (*world_arguments, stages)))
    groups: dict[str, list[str]] = {}
    sizes: dict[str, dict[str, None]] = {}
    for name, (_, recipe) in recipes.runs(config).items():
      if not hasattr(recipe, sweep.by):
        raise UserError(f"sweep: '{sweep.by}' is no key of policy")
      group = str(getattr(recipe, sweep.by))
      groups.setdefault(group, []).append(f"evaluate_world{world}_{name}")
      sizes.setdefault(group, {})[recipe.size] = None
    for group, names in groups.items():
      stages = f"--stages={','.join(names)}"
      size = " and ".join(sizes[group])  # of several there is no slice
      members.append(Member(f"{group}{suffix}", size, (*world_arguments, stages)))
  return shared, members, [Member("figures", golden, tuple(arguments))]


def tag(config: ConfigDict, member: Member) -> str:
  """Changes with whatever a member was told, and with the code's numbers.

  One that finished before is then run again.
  """
  text = config.to_json_best_effort(sort_keys=True) + repr(member)
  text += f" {artefacts.VERSION}"
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def run(
  phases: Sequence[Sequence[watch.Steps]], poll: float, limit: int | None
) -> bool:
  """One phase after the other, as long as all members finish."""
  for phase in phases:
    verdicts = watch.watch(phase, poll, limit)
    failed = [name for name, verdict in verdicts.items() if not verdict.ok]
    if failed:
      say(f"failed: {', '.join(failed)}; the same command goes on")
      return False
  return True


# --- this machine ---------------------------------------------------------------------


class Process:
  """A member as a process, started at its first step, and again after a crash.

  A member that finished leaves an empty file, and is not started again.
  """

  def __init__(
    self,
    member: Member,
    workdir: Path,
    tag: str,
    shares: list[list[int]],
    program: Sequence[str] = (sys.executable, "-m", "alignment.main"),
  ):
    """`shares` are the sets of cores that no process has; one is ours while we run."""
    self.name = member.name
    self.command = [*program, *member.arguments, f"--workdir={workdir}"]
    self._log = workdir / "launch" / f"{member.name}.log"
    self._done = workdir / "launch" / f"{member.name}-{tag}.done"
    self._shares, self._cores = shares, list[int]()
    self._process: subprocess.Popen | None = None
    self._crashes = 0

  def step(self) -> Verdict | None:
    if self._process is None:
      if self._done.exists():
        return Verdict(True, "finished before")
      self._cores = self._shares.pop()
      self._start()
      return None
    status = self._process.poll()
    if status is None:
      return None
    verdict = self._judge(status)
    if verdict is None:
      say(f"{self.name}: ended with status {status}, is started again")
      self._start()
    else:
      self._shares.append(self._cores)
    return verdict

  def _judge(self, status: int) -> Verdict | None:
    """None if it is to be started again."""
    if status == 0:
      write_atomically(self._done, b"")
      return Verdict(True, "finished")
    last = self._log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    if status == 1 and last.startswith("error: "):
      return Verdict(False, last)
    self._crashes += status != PREEMPTED_STATUS
    if self._crashes == MAX_CRASHES:
      return Verdict(False, f"status {status}; see {self._log}")
    return None

  def stop(self) -> None:
    """Tells it to save and end, and waits for that."""
    if self._process is not None and self._process.poll() is None:
      self._process.terminate()
      self._process.wait()

  def _start(self) -> None:
    self._log.parent.mkdir(parents=True, exist_ok=True)
    cores = ",".join(map(str, self._cores))
    with open(self._log, "a", encoding="utf-8") as log:
      self._process = subprocess.Popen(
        [sys.executable, "-S", str(CHILD), str(os.getpid()), cores, *self.command],
        stdout=log,
        stderr=log,
      )


def shares(jobs: int) -> list[list[int]]:
  """This process's cores in `jobs` equal shares, or all of them for everyone."""
  if not hasattr(os, "sched_getaffinity"):
    return [[]] * jobs
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < jobs:
    return [cores] * jobs
  return [cores[i::jobs] for i in range(jobs)]


# --- Cloud TPU ------------------------------------------------------------------------


class Slice(Watcher):
  """A member on a slice of its own; one that has finished gets none."""

  def _step(self) -> Verdict | None:
    if not self._shown and self.cloud.has_finished(self.job):
      return Verdict(True, "finished before")
    return super()._step()


def jobs_of(
  phases: Sequence[Sequence[Member]],
  options: argparse.Namespace,
  sweep: Sweep,
  config: ConfigDict,
) -> list[list[Job]]:
  """Every member with the slice that fits its size."""
  try:
    slices = sweep.slices[options.tpu]
  except KeyError:
    generations = ", ".join(sweep.slices)
    raise UserError(
      f"--tpu '{options.tpu}' is not in the sweep: {generations}"
    ) from None

  def job(member: Member) -> Job:
    if member.size not in slices:
      raise UserError(f"the sweep has no {options.tpu} slice for size '{member.size}'")
    accelerator, *further = slices[member.size].split()
    return Job(
      name=f"{options.name}-{member.name}".replace("_", "-"),
      tpu=accelerator,
      zone=options.zone,
      workdir=options.workdir,
      arguments=(*member.arguments, *further),
      capacity=options.capacity,
      project=options.project,
      create_flags=tuple(options.create_flag),
      tag=tag(config, member),
    )

  return [[job(member) for member in phase] for phase in phases]


# --- the command line -----------------------------------------------------------------


def sweep_main(argv: list[str]) -> int:
  parser = tpu.Parser(
    prog="python -m launch.sweep",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--config", required=True, help="the study's configuration")
  parser.add_argument("--sweep", required=True, help="a file of configs/sweeps")
  parser.add_argument("--workdir", required=True, help="a directory, or gs://...")
  parser.add_argument(
    "--jobs", type=int, help="members at a time (default 1, TPU: all)"
  )
  parser.add_argument("--tpu", help="generation of slices; without it, this machine")
  parser.add_argument("--name", default="sweep", help="first part of the slices' names")
  tpu.add_slice_options(parser, required=False)
  before, after = tpu.expand(argv)
  options = parser.parse_args(before)
  if options.jobs is not None and options.jobs < 1:
    raise UserError(f"--jobs must be 1 or more, not {options.jobs}")
  arguments = [f"--config={options.config}", *after]
  config, sweep = load_config(arguments), load_sweep(options.sweep)
  phases = plan(config, sweep, arguments)
  if options.tpu and not options.zone:
    raise UserError("--zone is required: where shall the slices be?")
  if options.tpu:
    return _on_slices(jobs_of(phases, options, sweep, config), options)
  if options.workdir.startswith("gs://"):
    raise UserError("--workdir is in a bucket: name the slices' generation with --tpu")
  return _here(phases, options, config)


def _here(
  phases: Sequence[Sequence[Member]], options: argparse.Namespace, config: ConfigDict
) -> int:
  jobs = options.jobs or 1
  free, workdir = shares(jobs), directory_option(options.workdir, "--workdir")
  processes = [[Process(m, workdir, tag(config, m), free) for m in p] for p in phases]
  if options.dry_run:
    for process in (p for phase in processes for p in phase):
      print(shlex.join(process.command))
    return 0
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    return 0 if run(processes, min(options.poll, 0.5), jobs) else 1
  finally:
    for process in (p for phase in processes for p in phase):
      process.stop()


def _on_slices(phases: Sequence[Sequence[Job]], options: argparse.Namespace) -> int:
  if options.dry_run:
    for job in (job for phase in phases for job in phase):
      for command in tpu.dry_run("run", job):
        print(shlex.join(command))
    return 0
  cloud = Cloud(gcloud.run)
  slices = [[Slice(job, cloud, options.keep) for job in phase] for phase in phases]
  if not run(slices, options.poll, options.jobs):
    return 1
  figures = Path(options.name) / "figures"
  figures.mkdir(parents=True, exist_ok=True)
  cloud.run(gcloud.download(f"{options.workdir}/figures", figures))
  print(figures)
  return 0


if __name__ == "__main__":
  tpu.cli(sweep_main)
