"""The controlled study as a graph of artefacts (section 4 and fig. 2 of the paper).

  D_initial -> SFT, golden PM -> D_golden -> proxy PM
                  |                  |           |
                  golden policy      offline     online   -> evaluations -> figures

`Study` says what there is and what feeds what, a method per node, in the order of this
diagram; `stages/` says what each one does. Nothing is run here, and no file is read:
`checks.py` says what cannot be, before anything runs.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, TypeVar

from alignment.core import rules
from alignment.data.translation import Translation
from alignment.study import recipes
from alignment.study.artefacts import Artefact, closure
from alignment.study.programs import Program, distinct
from alignment.study.recipes import PolicyRecipe, PreferenceRecipe, Start
from alignment.study.setting import Setting
from alignment.study.stages.classification import StreamClassification
from alignment.study.stages.data import (
  PairData,
  RelabelledPairs,
  SampledPairs,
  ScoredPairs,
)
from alignment.study.stages.evaluations import (
  BestOfN,
  Contested,
  Evaluation,
  Responses,
  labels_of,
)
from alignment.study.stages.host_judges import (
  FunctionJudge,
  TranslatedPairs,
  rule_of,
)
from alignment.study.stages.judging import Judge
from alignment.study.stages.models import (
  ImportedModel,
  Model,
  SupervisedModel,
)
from alignment.study.stages.policies import (
  OfflinePolicy,
  OnlinePolicy,
  ReplayPolicy,
  TrainedPolicy,
)
from alignment.study.stages.sampled_data import RatedData, SampledData
from alignment.study.stages.trained_judges import TrainedJudge

Node = TypeVar("Node")


def node(method: Callable[..., Node]) -> Callable[..., Node]:
  """A method that is called once for the same arguments, which can be hashed."""

  @functools.wraps(method)
  def call(self: "Study", *args: Any) -> Node:
    key = method.__name__, *args
    if key not in self.nodes:
      self.nodes[key] = method(self, *args)
    return self.nodes[key]

  return call


class Study:
  """All artefacts of one world."""

  def __init__(self, setting: Setting):
    self.setting = setting
    self.config = setting.config
    self.nodes: dict[Any, Any] = {}

  # --- D_initial and SFT ---

  @node
  def data(self) -> PairData | RatedData:
    """D_initial: what `data` reads, or what the start samples and a rule labels."""
    if self.setting.truth is None:
      return self._read_data()
    temperature = float(self.config.rater.temperature)
    seed = self.setting.seed("noise", "rater")
    rule = rules.Noisy(self.setting.truth, temperature, seed)
    return RatedData("data", self.setting, self.sampled_data(), rule)

  @node
  def _read_data(self) -> PairData:
    return PairData("data", self.setting, recipes.plain(self.config.data))

  @node
  def sampled_data(self) -> SampledData:
    """Pairs of policies' start: D_initial or D_golden, before anybody labels them."""
    chosen, data = recipes.plain(self.config.sampled), recipes.plain(self.config.data)
    own_file = bool(chosen["path"])
    chosen["path"] = chosen["path"] or data["path"]
    chosen["columns"] = {} if own_file else data["columns"]
    chosen |= {key: data[key] for key in ("prompt_format", "truncate_prompt")}
    del chosen["data"]
    model = self.start(self._policy_recipe())
    return SampledData("sampled_data", self.setting, model, chosen)

  @node
  def sft_data(self) -> tuple[PairData, ...]:
    """What SFT learns from: D_initial, or what `sft.data` pools."""
    data = recipes.plain(self.config.data)
    pooled = tuple(
      PairData(f"data_{i}", self.setting, data | recipes.plain(overrides))
      for i, overrides in enumerate(self.config.sft.data)
    )
    return pooled or (self._read_data(),)

  @node
  def sft(self, size: str) -> SupervisedModel:
    """The study's own supervised checkpoint of a size."""
    recipe = recipes.sft(self.config, size)
    base = self._start(size, recipe.init) if recipe.lora.rank else None
    return SupervisedModel(f"sft_{size}", self.setting, recipe, self.sft_data(), base)

  # --- judges ---

  @node
  def golden_pm(self) -> Judge:
    """The golden judge: stands for the human."""
    return self._judge("golden_pm", self.data())

  @node
  def golden_data(self) -> RelabelledPairs:
    """D_golden."""
    sampled = self.config.sampled.data == "golden"
    data = self.sampled_data() if sampled else self.data()
    return RelabelledPairs("golden_data", self.setting, data, self.golden_pm())

  @node
  def truth(self) -> FunctionJudge | None:
    """The utility without raters' noise, where it is known: the most to be learned."""
    rule = self.setting.truth
    return FunctionJudge("truth", self.setting, rule, self.data()) if rule else None

  @node
  def proxy_pm(self) -> Judge:
    """The proxy judge: labels what online policies sample."""
    return self._judge("proxy_pm", self.golden_data())

  def _judge(self, name: str, data: Artefact) -> Judge:
    setting, recipe = self.setting, PreferenceRecipe.of(self.config[name])
    if not recipe.trained:
      rule = rule_of(setting, name, recipe.kind, dict(recipe.options))
      return FunctionJudge(name, setting, rule, data)
    if recipe.vocab:
      return self._foreign_judge(name, recipe, data)
    is_read = recipe.init == "sft" or recipe.lora.rank
    sft = self.start(recipe) if is_read else None
    return TrainedJudge(name, setting, recipe, data, sft)

  def _foreign_judge(
    self, name: str, recipe: PreferenceRecipe, data: Artefact
  ) -> TrainedJudge:
    """A judge with a vocabulary of its own; what it reads is translated."""
    setting = self.setting.with_vocabulary(name, dict(recipe.vocab))
    translation = Translation(
      self.setting.vocabulary,
      setting.vocabulary,
      **setting.lengths,
      truncate_prompt=setting.config.data.truncate_prompt,
    )
    translated = TranslatedPairs(f"{data.name}_for_{name}", setting, data, translation)
    start = None
    if recipe.lora.rank:
      start = ImportedModel(f"start_{name}", setting, recipe.without_lora)
    return TrainedJudge(name, setting, recipe, translated, start, translation)

  # --- where policies start ---

  def start(self, recipe: Start) -> Model:
    """Where a policy starts, and its reference."""
    return self._start(recipe.size, recipe.init)

  @node
  def _start(self, size: str, init: str) -> Model:
    if init == "sft":
      return self.sft(size)
    return ImportedModel(f"start_{size}", self.setting, Start(size, init))

  def scored(
    self, dataset: RelabelledPairs | SampledPairs, recipe: Start
  ) -> ScoredPairs:
    """Pairs with the log-probabilities of their responses under the reference."""
    return self._scored(dataset, recipe.size, recipe.init)

  @node
  def _scored(
    self, dataset: RelabelledPairs | SampledPairs, size: str, init: str
  ) -> ScoredPairs:
    reference = self._start(size, init)
    return ScoredPairs(f"{dataset.name}_{size}", self.setting, dataset, reference)

  # --- policies ---

  @node
  def golden_policy(self) -> TrainedPolicy:
    """The fixed opponent: online, labelled by the golden preference model."""
    recipe = PolicyRecipe.of(self.config.golden_policy)
    return self._policy("golden_policy", recipe, self.golden_pm())

  @node
  def policies(self) -> dict[str, TrainedPolicy]:
    """The policy of every run, by the run's name."""
    return {
      name: self._policy(name, run.recipe, self.proxy_pm())
      for name, run in self.runs().items()
    }

  @node
  def runs(self) -> dict[str, recipes.Run]:
    """The runs of the configuration, by names that tell worlds apart."""
    return {f"{self._world}_{n}": r for n, r in recipes.runs(self.config).items()}

  def default_run(self, recipe: PolicyRecipe) -> TrainedPolicy:
    """A run that others learn from, whether or not it is among config.runs."""
    varied = "" if recipe.size == self.config.policy.size else f"_size{recipe.size}"
    name = f"{self._world}_{recipe.method}_{recipe.loss}{varied}"
    return self._policy(name, recipe, self.proxy_pm())

  def _policy(self, name: str, recipe: PolicyRecipe, judge: Judge) -> TrainedPolicy:
    """A policy, which records its stream if others learn from it."""
    if judge.name == "proxy_pm" and recipe.online:
      recording = dataclasses.replace(recipe, record=True)
      if recording.described() in self._recorded():
        recipe = recording
    return self._trained(name, recipe, judge)

  @node
  def _trained(self, name: str, recipe: PolicyRecipe, judge: Judge) -> TrainedPolicy:
    common = name, self.setting, recipe, self.start(recipe)
    if recipe.online:
      return OnlinePolicy(*common, self.scored(self.golden_data(), recipe), judge)
    if recipe.replays:
      online = self.default_run(recipes.stream_of(self.config, recipe))
      return ReplayPolicy(*common, online)
    golden = recipe.dataset == "golden"
    dataset = self.golden_data() if golden else self.resampled(recipe.dataset)
    return OfflinePolicy(*common, self.scored(dataset, recipe))

  @node
  def _recorded(self) -> list[dict[str, Any]]:
    return recipes.recorded(self.config)

  @node
  def resampled(self, name: str) -> SampledPairs:
    """D_a-vs-b, as config.datasets says."""
    first, second = (
      recipes.source(self.config, name, text) for text in self.config.datasets[name]
    )
    return SampledPairs(
      f"data_{name}",
      self.setting,
      (first.step, second.step),
      self._sampled(first),
      self._sampled(second),
      self.golden_data(),
      self.golden_pm(),
    )

  def _sampled(self, source: recipes.Source) -> Model:
    if source.kind == "sft":
      return self.start(source.recipe)
    if source.kind == "golden_policy":
      return self.golden_policy()
    return self.default_run(source.recipe)

  # --- evaluation ---

  @node
  def golden_samples(self) -> Responses:
    """The opponent's responses to the fixed prompts."""
    policy = self.golden_policy()
    pairs = self.scored(self.golden_data(), policy.start)
    return Responses("golden_samples", self.setting, policy, pairs)

  @node
  def sft_samples(self) -> Responses:
    """SFT's responses to them: the zero of the golden score."""
    policy = self._policy_recipe()
    pairs = self.scored(self.golden_data(), policy)
    return Responses("sft_samples", self.setting, self.start(policy), pairs)

  @node
  def evaluations(self) -> dict[str, Contested]:
    """The leaves, by run: every policy's, SFT's, the golden policy's, best-of-n's."""
    leaves: dict[str, Contested] = {
      name: self._evaluation(name, run.series, run.recipe, self.policies()[name])
      for name, run in self.runs().items()
    }
    recipe = self._policy_recipe()
    name = f"{self._world}_sft"
    leaves[name] = self._evaluation(name, "sft", recipe, self.start(recipe))
    golden = PolicyRecipe.of(self.config.golden_policy)
    name = f"{self._world}_golden_policy"
    leaves[name] = self._evaluation(name, "golden_policy", golden, self.golden_policy())
    if self.config.evaluation.best_of:
      name = f"{self._world}_best_of_n"
      leaves[name] = self._best_of_n(name, recipe)
    return leaves

  def _evaluation(
    self, run: str, series: str, recipe: PolicyRecipe, policy: Model
  ) -> Evaluation:
    if isinstance(policy, TrainedPolicy):
      steps = recipe.evaluated_steps()
    else:
      steps = [policy.recipe.steps if isinstance(policy, SupervisedModel) else 0]
    contest = self._contest(run, series, recipe)
    return Evaluation(**contest, policy=policy, steps=tuple(steps))

  def _best_of_n(self, run: str, recipe: PolicyRecipe) -> BestOfN:
    contest = self._contest(run, "best_of_n", recipe)
    numbers = tuple(self.config.evaluation.best_of)
    return BestOfN(**contest, numbers=numbers)

  def _contest(self, run: str, series: str, recipe: PolicyRecipe) -> dict[str, Any]:
    """What every evaluation of a policy of this start reads."""
    return {
      "name": f"evaluate_{run}",
      "setting": self.setting,
      "labels": labels_of(run, series, recipe),
      "reference": self.start(recipe),
      "pairs": self.scored(self.golden_data(), recipe),
      "golden_pm": self.golden_pm(),
      "proxy_pm": self.proxy_pm(),
      "golden_samples": self.golden_samples(),
      "sft_samples": self.sft_samples(),
    }

  @node
  def classification(self) -> StreamClassification | None:
    """Of the online stream, for figure 6."""
    if "figure_06" not in self.config.figures:
      return None
    recipe = self._policy_recipe()
    offline = dataclasses.replace(recipe, method="offline", dataset="golden")
    return StreamClassification(
      "classification",
      self.setting,
      online=self.default_run(recipes.stream_of(self.config, recipe)),
      offline=self.default_run(offline),
      golden_pm=self.golden_pm(),
      proxy_pm=self.proxy_pm(),
    )

  # --- all of it ---

  @node
  def models(self) -> dict[str, Artefact]:
    """What runs share, by name, for people."""
    leaves = [*self.evaluations().values(), self.classification()]
    every = closure([leaf for leaf in leaves if leaf], identity=id)
    sfts = {a.name: a for a in every if isinstance(a, SupervisedModel)}
    truth = self.truth()
    return {
      "data": self.data(),
      **sfts,
      **({"sampled_data": self.sampled_data()} if self.config.sampled.data else {}),
      **({"truth": truth} if truth else {}),
      "golden_pm": self.golden_pm(),
      "golden_data": self.golden_data(),
      "proxy_pm": self.proxy_pm(),
      "golden_policy": self.golden_policy(),
      "golden_samples": self.golden_samples(),
      "sft_samples": self.sft_samples(),
    }

  @node
  def artefacts(self) -> dict[str, Artefact]:
    """Everything by its name, as `--stages` takes it."""
    evaluated = {a.name: a for a in self.evaluations().values()}
    named = {**self.models(), **self.policies(), **evaluated}
    if (classification := self.classification()) is not None:
      named["classification"] = classification
    every = {a.name: a for a in closure(named.values(), identity=id)}
    return every | named

  def programs(self) -> list[Program]:
    """The distinct programs that making all of it runs."""
    every = closure(self.artefacts().values(), identity=id)
    return distinct(program for a in every for program in a.programs())

  @property
  def world(self) -> int:
    return self.setting.world

  @property
  def _world(self) -> str:
    return f"world{self.world}"

  def _policy_recipe(self) -> PolicyRecipe:
    return PolicyRecipe.of(self.config.policy)
