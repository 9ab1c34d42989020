"""The nano study, run once for all tests that look at what it made."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from alignment.data import pairs
from alignment.runtime.files import read_npz
from alignment.study import recipes
from alignment.study.graph import Study
from alignment.study.stages.policies import TrainedPolicy
from alignment.types import Params
from tests import quickly, studies


@dataclasses.dataclass(frozen=True)
class Nano:
  """A study that has run: `studies.every()`, world 0."""

  workdir: Path
  study: Study
  compilations: int  # of the step that trains its nano policies with IPO

  def records(self, run: str = "") -> list[dict[str, Any]]:
    """The published evaluations of a run, by default of all."""
    paths = sorted(self.workdir.glob(f"runs/{run or '*'}/evaluations.jsonl"))
    return [json.loads(line) for path in paths for line in path.open()]

  def record(self, run: str, step: int) -> dict[str, Any]:
    """The evaluation of one checkpoint."""
    (record,) = (r for r in self.records(run) if r["step"] == step)
    return record

  def policy(self, run: str) -> TrainedPolicy:
    """The policy of a run, named without its world."""
    return self.study.policies()[f"world0_{run}"]

  def params(self, run: str, step: int) -> Params:
    """A policy's parameters at a kept step, on the host."""
    policy = self.policy(run)
    directory = policy.directory(self.workdir)
    load = self.study.setting.parameters.load
    return jax.device_get(load(directory, policy.model(), step))

  def directory(self, name: str) -> Path:
    """Where a stage's artefact lies."""
    return self.study.artefacts()[name].directory(self.workdir)

  def data(self, name: str, split: str = "train") -> pairs.PairDataset:
    return pairs.PairDataset.load(self.directory(name) / split)

  def evaluated_pairs(self) -> pairs.PairDataset:
    """D_golden with the log-probabilities of the reference, as evaluations read it."""
    evaluation = self.study.evaluations()["world0_online_ipo"]
    return pairs.PairDataset.load(evaluation.pairs.directory(self.workdir))

  def responses(self, name: str) -> dict[str, Any]:
    return read_npz(self.directory(name) / "responses.npz")

  def read(self, artefact: Any) -> Path:
    """For `Artefact.make`: where an input lies."""
    return artefact.directory(self.workdir)

  def with_config(self, **overrides: Any) -> Study:
    """Its graph under an edited configuration."""
    return studies.graph(studies.every(**overrides))

  @functools.cached_property
  def runs(self) -> set[str]:
    """Names of the policies' runs."""
    return {f"world0_{name}" for name in recipes.runs(self.study.config)}


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Nano:
  workdir, config = tmp_path_factory.mktemp("study"), studies.every()
  with quickly.compiled():
    study = studies.graph(config)
    studies.run(config, workdir)
    studies.finish(config, workdir)
    step = study.policies()["world0_online_ipo"].step_function()
    compilations = step._cache_size()
  return Nano(workdir, study, compilations)
