"""The smallest studies that have every stage: seconds, for tests."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from alignment.study import checks, commands, documents, publish
from alignment.study.graph import Study


def document(name: str) -> ModuleType:
  """One of the documents in configs/."""
  return documents.load(f"../configs/{name}.py", beside=__file__)


quickstart, study = document("quickstart"), document("study")


def nano(**overrides) -> ConfigDict:
  """The quickstart with tiny T5s and a handful of steps; dotted keys override."""
  c = quickstart.get_config()
  c.workers = 1
  c.keep_compiled = False  # tests that start a command line look at what it leaves
  c.data.num_pairs = 400
  c.data.validation_fraction = 0.1
  c.sft.learning_rate = 2e-3
  for role in ("sft", "golden_pm", "proxy_pm", "policy", "golden_policy"):
    c[role].update({"steps": 8, "batch_size": 8})
  for role in ("golden_pm", "proxy_pm", "policy", "golden_policy"):
    c[role].size = "nano"
  for judge in (c.golden_pm, c.proxy_pm):
    judge.update({"evaluations": 2, "learning_rate": 1e-3, "warmup_steps": 200})
  c.golden_pm.init = "scratch"
  c.golden_policy.learning_rate = 3e-4
  c.policy.learning_rate = 3e-3  # or no KL would reach the figures' axes
  c.policy.evaluate_at = c.golden_policy.evaluate_at = (0.5, 1.0)
  c.runs = {
    "online": {"method": ("online",)},
    "offline": {"method": ("offline",), "learning_rate": (3e-3, 1e-2)},
  }
  c.evaluation.update(
    {"prompts": 48, "kl_prompts": 16, "pairs": 32, "batch_size": 16,
     "require_good_judge": False, "best_of": ()}
  )  # fmt: skip
  c.figures = ("figure_01",)
  c.log_every, c.save_every = 2, 4
  c.update_from_flattened_dict(overrides)
  return c


def every(**overrides) -> ConfigDict:
  """The same with every kind of run that there is, and all figures."""
  c = nano()
  offline = {"method": ("offline",)}
  shuffled = offline | {"dataset": ("stream",)}
  losses = {"loss": ("best_of_2", "dpo")}
  larger = {"size": ("micro",)}
  c.datasets = {
    "final_vs_final": ("online@1.0", "online@1.0"),
    "sft_vs_early": ("sft", "online@0.5"),
    "early_vs_final": ("online@0.5", "golden_policy"),
  }
  c.runs = {
    "online": ({}, losses, larger),
    "offline": (
      offline | {"learning_rate": (3e-3, 1e-2)},
      offline | losses,
      offline | larger,
    ),
    "shuffled": (
      shuffled | {"loss": ("ipo", "best_of_2")},
      shuffled | larger,
    ),
    "replay": shuffled | {"replay_window": (0, 2)},
    **{name: offline | {"dataset": (name,)} for name in c.datasets},
    "semi_online": {"refresh_every": (3, 0)},
    "hybrid": {"on_policy_fraction": (0.5,)},
    **best_of_four(),
    "groups": {"loss": ("rloo", "grpo"), "samples": (3,), "select": ("all",)},
  }
  c.evaluation.update({"best_of": (2, 3), "stream_steps": 3, "stream_pairs": 12})
  c.figures = tuple(study.FIGURES)
  c.save_every = 8
  c.update_from_flattened_dict(overrides)
  return c


def best_of_four() -> dict[str, dict]:
  """The best and the worst of four samples, online and replayed."""
  keys = {"samples": 4, "select": "best_worst"}
  replay = {"method": "offline", "dataset": "stream", "replay_window": 0}
  return {
    name: {key: (value,) for key, value in axes.items()}
    for name, axes in {"four": keys, "four_again": replay | {"stream": keys}}.items()
  }


def get_config(which: str = "") -> ConfigDict:
  """For the command line: the nano study, or one to be killed again and again.

  'soak' has one run of every kind of stage, 'short' only an online one, of the best and
  the worst of four samples, and its replay; 'families' has an online run and its replay
  of a T5 and of a decoder, which a decoder judges.
  """
  c = nano()
  replay = {"method": ("offline",), "dataset": ("stream",), "replay_window": (0,)}
  if which == "soak":
    c.datasets = {"sft_vs_early": ("sft", "online@0.5")}
    c.runs = {
      "online": ({},),
      "offline": {"method": ("offline",)},
      "replay": replay,
      "sft_vs_early": {"method": ("offline",), "dataset": ("sft_vs_early",)},
      "semi_online": {"refresh_every": (3,)},
      "hybrid": {"on_policy_fraction": (0.5,)},
      **best_of_four(),
      "groups": {"loss": ("rloo",), "samples": (3,), "select": ("all",)},
    }
    c.evaluation.update({"best_of": (2,), "stream_steps": 3, "stream_pairs": 12})
  elif which == "short":
    four = best_of_four()
    c.runs = {"online": four["four"], "replay": four["four_again"]}
  elif which == "families":
    c.proxy_pm.size = "llama_nano"
    both = {"size": ("nano", "llama_nano")}
    c.runs = {"online": both, "replay": replay | both}
  return c


def graph(config: ConfigDict, workdir: Path = Path("/nowhere")) -> Study:
  """The graph of the first world, if nothing in it is refused."""
  return checks.studies(config, workdir)[0]


def run(config: ConfigDict, workdir: Path, stages: Sequence[str] = ()) -> None:
  """As the command line: makes some stages, by default all."""
  commands.run(checks.studies(config, workdir), workdir, stages)


def finish(config: ConfigDict, workdir: Path) -> None:
  """As the command line, when all is made."""
  publish.finish(config, checks.studies(config, workdir), workdir)


def dry_run(config: ConfigDict, workdir: Path, stages: Sequence[str] = ()) -> None:
  commands.dry_run(checks.studies(config, workdir), workdir, stages)
