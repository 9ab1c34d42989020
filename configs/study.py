"""Every experiment of the paper, and what goes beyond it, as data: figures 1 and 4-14.

  python -m alignment.main --config=configs/study.py --workdir=/tmp/study
  python -m alignment.main --config=configs/study.py --workdir=... --config.worlds=6
  python -m alignment.main --config=configs/study.py:figure_05 --workdir=...
  python -m alignment.main --config=configs/study.py:figure_05,tldr --workdir=...

After the colon: a figure, or `all`; then `toy` (miniature, the default) or one of the
paper's tasks at its own scale. Dials turn the miniature, with few runs:

  truth   no learned golden model: raters' utility labels and judges
  short   the same with responses of one or two words
  rate    policies of all sizes at a third of the learning rate, for twice the steps
  proxy   an online run that goes far, for another proxy (--config.proxy_pm.size=...,
          --config.proxy_pm.steps=..., which is the data it sees)

The miniature's language is the rich one, in which a word's worth depends on the post's
topic and on its neighbours (alignment/data/toy.py).

Hardware: two CPU cores for `toy`. Duration: 35 CPU minutes a world, 20 minutes on both
cores. docs/results.md says what six worlds show.
"""

from alignment.data import toy
from alignment.study import documents, schema
from alignment.types import UserError

quickstart = documents.load("quickstart.py", beside=__file__)

# What each figure is drawn from: groups of runs, defined below.
FIGURES = {
  "figure_01": ("online", "offline", "offline_longer", "best_of_n"),
  "figure_04": ("online", "offline", "shuffled"),
  "figure_05": ("online", "offline", "shuffled", "final_vs_final"),
  "figure_06": (),  # the default runs, as classifiers of the online stream
  "figure_07": ("online", "offline", "shuffled"),
  "figure_08": ("online", "offline", "shuffled"),
  "figure_09": ("online", "offline", "shuffled", "best_of_2"),
  "figure_10": ("online", "offline", "shuffled", "sizes"),
  "figure_11": ("online", "offline", "shuffled", "sizes"),
  "figure_12": ("offline", "final_vs_final", "resampled"),
  "figure_13": ("online", "shuffled", "replay"),
  "figure_14": ("online", "offline", "shuffled", "sizes"),
  "appendix_f": ("online", "replay"),
  "appendix_e1": ("online", "offline", "shuffled"),
  # Beyond the paper.
  "losses": ("online", "offline", "losses", "chi_po", "grpo"),
  "staleness": ("online", "offline", "semi_online"),
  "hybrid": ("online", "offline", "hybrid"),
  "laws": ("online", "offline", "best_of_n"),
}
OFFLINE = {"method": ("offline",)}
# What the miniature's dials draw, and from which groups.
DIALS = {
  "truth": (("figure_01",), {"online", "offline"}),
  "short": (("figure_01",), {"online", "offline"}),
  "rate": (("figure_10", "figure_11", "figure_14"), {"sizes"}),
  "proxy": (("laws",), {"online"}),
}
SHUFFLED = OFFLINE | {"dataset": ("stream",)}


def miniature():
  """(config, the axes of each group): sized for two cores."""
  c = quickstart.get_config()
  c.data.update({"num_pairs": 80_000, "language": toy.RICH})
  c.vocab.words = toy.words(toy.RICH["num_words"])
  c.prompt_length = 11  # 10 words and EOS
  c.response_length = 17  # longer than any writer's: hardly any is cut
  c.judge_context_length = 48
  c.sft.steps = 2000
  c.sft.by_size = {"llama_tiny": {"learning_rate": 1e-3}}  # the others': 3e-3
  # The golden model is larger than policies and proxy, and starts from SFT of its size.
  c.golden_pm.update({"size": "llama_milli", "steps": 3500, "evaluations": 5})
  c.proxy_pm.update({"size": "llama_micro", "steps": 1200})
  policy = {
    "size": "llama_micro",
    "beta": 0.03,
    "learning_rate": 3e-4,
    "steps": 600,
    "evaluate_at": (0.04, 0.08, 0.16, 0.32, 0.64, 1.0),
  }
  c.policy.update(policy)
  # An opponent halfway: against one of beta 0.03 SFT wins 0.01, and all is small.
  c.golden_policy.update(policy | {"beta": 0.1})
  grid = {"beta": (0.01, 0.03, 0.1)}  # the smallest is there to go far
  rates = {"learning_rate": (1e-4, 3e-4)}
  return c, {
    "online": grid,
    "offline": grid,
    "shuffled": grid,
    # The paper gives offline 20k steps besides 4k.
    "offline_longer": grid | {"steps": (3000,)},
    "final_vs_final": rates | {"steps": (1200,)},  # in the paper longer, too
    "resampled": {},
    "best_of_2": rates,
    # With this beta DPO goes as far as IPO with its own.
    "losses": {"loss": ("dpo", "slic"), "beta": (0.1,)},
    "chi_po": {"loss": ("chi_po",), "beta": (0.1,)},
    "grpo": {"loss": ("grpo",), "samples": (4,)},
    "sizes": {"size": ("llama_pico", "llama_nano", "llama_tiny")},
    # Of 4000 batches the paper shuffles 4 and 500; here they are 600.
    "replay": (0, 4, 75),
    "semi_online": (10, 100, 300, 0),
    "semi_online_losses": {
      "loss": ("dpo",),
      "beta": (0.1,),
      "refresh_every": (10, 100),
    },
    "hybrid": (0.5,),
    "best_of": (2, 4, 8, 16, 32, 64),
    "datasets": {"early": 0.16},
  }


def short_responses(c) -> None:
  """Where judging a response is as hard as writing it."""
  # Two words are worth less than ten, so raters' noise is less, too: they agree with
  # themselves on as many pairs.
  short = {"response_words": 2, "fewest_words": 1, "temperature": 0.3}
  c.data.language.update(short)
  c.response_length = 2  # no room for EOS: else policies go on, where judges are lost
  c.judge_context_length = 24
  c.sft.steps = 1000
  c.proxy_pm.steps = 600
  # On world 90 policies found words that a learned golden model was wrong about.
  c.golden_pm.kind = "truth"


def paper_scale(task: str):
  """(config, the axes of each group): the paper's."""
  c = schema.paper_task(task)
  sweep = {"learning_rate": (3e-6, 1e-5, 3e-5), "beta": (0.1, 0.5, 1.0)}
  rates = {"learning_rate": sweep["learning_rate"]}
  return c, {
    "online": {},
    "offline": sweep | {"steps": (4000, 20_000)},
    "shuffled": sweep,
    "final_vs_final": rates | {"steps": (20_000,)},
    "resampled": rates,
    "best_of_2": rates,
    "losses": {"loss": ("dpo", "slic"), "beta": (0.1, 0.5)},
    # Prompts per batch go down with size; steps of XL and XXL are not reported.
    "sizes": (
      {"size": ("t5_1_1_xl",), "batch_size": (16,)},
      {"size": ("t5_1_1_xxl",), "batch_size": (8,)},
    ),
    "replay": (0, 4, 500),
    "semi_online": (10, 100, 1000, 0),
    "hybrid": (0.5,),
    "best_of": (2, 4, 8, 16, 32, 64),
    "datasets": {"early": 0.2},  # of 4000 steps: 800
  }


def get_config(chosen: str = "all"):
  names, _, task = chosen.partition(",")
  known = ", ".join(["all", *FIGURES])
  if names != "all" and names not in FIGURES:
    raise UserError(f"configs/study.py: no figure '{names}'; there are {known}")
  if task not in ("", "toy", *DIALS, *schema.PAPER_DATA):
    tasks = ", ".join(["toy", *DIALS, *schema.PAPER_DATA])
    raise UserError(f"configs/study.py: no task '{task}'; there are {tasks}")
  c, axes = paper_scale(task) if task in schema.PAPER_DATA else miniature()
  c.figures = tuple(FIGURES) if names == "all" else (names,)
  groups = {group for figure in c.figures for group in FIGURES[figure]}
  if task in DIALS and names != "all":
    raise UserError(f"configs/study.py: '{task}' has figures of its own: all,{task}")
  if task in DIALS:
    c.figures, groups = DIALS[task]
    c.task = f"toy_{task}"
  match task:
    case "truth":
      c.golden_pm.kind = "truth"
    case "short":
      short_responses(c)
    case "rate":
      c.policy.update({"learning_rate": 1e-4, "steps": 1200})
      sizes = (*axes["sizes"]["size"], c.policy.size)
      axes["sizes"] = {"size": sizes}
    case "proxy":
      axes["online"] = {"beta": axes["online"]["beta"][:1]}

  runs: dict[str, list[dict]] = {}

  def add(group: str, label: str, *products: dict) -> None:
    if group in groups:
      runs.setdefault(label, []).extend(products)

  def of_sizes(kind: dict) -> list[dict]:
    sizes = axes["sizes"]
    return [kind | one for one in (sizes if isinstance(sizes, tuple) else (sizes,))]

  three = {"online": {}, "offline": OFFLINE, "shuffled": SHUFFLED}
  for method, kind in three.items():
    add(method, method, kind | axes[method])
    add("best_of_2", method, kind | {"loss": ("best_of_2",)} | axes["best_of_2"])
    add("sizes", method, *of_sizes(kind))
    if method != "shuffled":
      add("losses", method, kind | axes["losses"])
  early = f"online@{axes['datasets']['early']}"
  c.datasets = {
    "final_vs_final": ("online@1.0", "online@1.0"),  # the paper's 4k-vs-4k
    "sft_vs_early": ("sft", early),  # sft-vs-800
    "early_vs_final": (early, "online@1.0"),  # 800-vs-4k
  }
  for name in c.datasets:
    group = name if name == "final_vs_final" else "resampled"
    add(group, name, OFFLINE | {"dataset": (name,)} | axes[group])
  add("replay", "replay", SHUFFLED | {"replay_window": axes["replay"]})
  add("semi_online", "semi_online", {"refresh_every": axes["semi_online"]})
  if "grpo" in axes:
    add("semi_online", "semi_online", axes["semi_online_losses"])
    add("chi_po", "chi_po", OFFLINE | axes["chi_po"])
    add("grpo", "grpo", {"select": ("all",)} | axes["grpo"])
  add("hybrid", "hybrid", {"on_policy_fraction": axes["hybrid"]})
  if "offline_longer" in axes:  # at the paper's scale offline itself has more steps
    add("offline_longer", "offline_longer", OFFLINE | axes["offline_longer"])
  if "best_of_n" in groups:
    c.evaluation.best_of = axes["best_of"]
  c.runs = {label: tuple(products) for label, products in runs.items()}
  return c
