"""A real language model in a world whose truth is known: SmolLM2 135M on real prompts.

  python -m alignment.main --config=configs/smollm2.py:MODEL --workdir=WORK \\
    --config.data.path=PAIRS

MODEL is the directory of SmolLM2-135M-Instruct (on the hub:
HuggingFaceTB/SmolLM2-135M-Instruct), or of any chat model that a machine can train;
PAIRS a preference file (docs/your_data.md) such as Anthropic HH's helpful-base test
split, of whose dialogues the first turns are asked.

  SFT        MODEL, taught to be short by the pairs of one turn whose replies have no
             more than 48 tokens; as it is, it ends half of its answers by 64
  D_initial  SFT's own answers at three temperatures, rated by a known utility with
             noise of Bradley and Terry (smollm2_truth.py)
  golden PM  learns from these ratings; D_golden, proxy PM and policies as ever
  truth      the utility without noise: evaluations have true win rates

Hardware: a CPU core with AMX, 16 GB of memory, 45 GB of disk. Duration, measured on one
core of two while the other ran another study: three hours, of which
  SFT          40 steps                                                          8 min
  samples      400 prompts x 12 x 48 tokens                                     14 min
  judges       300 and 100 steps, each with its report                          47 min
  D_golden     2,400 pairs judged, 1,900 scored under SFT                       11 min
  online       5 runs (golden policy too) x 40 steps                            51 min
  offline      3 runs x 40 steps                                                13 min
  evaluations  16 checkpoints, best-of-n                                        32 min
"""

from alignment.study import documents, schema
from alignment.types import UserError

documents.load("smollm2_truth.py", beside=__file__)  # the rule `prose`

FORMAT = "Answer in one or two short sentences.\n\nHuman: {prompt}\n\nAssistant:"


def world(model: str, name: str):
  """All but the data: judges start from a chat model, policies from its SFT."""
  if not model:
    raise UserError(f"configs/{name}.py: name a model: configs/{name}.py:MODEL")
  c = schema.get_config()
  c.task = name
  c.vocab.update({"kind": "huggingface", "path": model})
  # A step takes half as long on a CPU as with layers that are stacked.
  c.model.update({"scan_layers": False, "remat": "none"})

  adamw = schema.optimizer(name="adamw", b2=0.99, clip_norm=1.0)
  trained = {"optimizer": adamw, "batch_size": 8, "learning_rate": 2e-5}
  own = trained | {"size": "smollm2_135m"}
  judge = own | {
    "kind": "pointwise",
    "init": model,
    "microbatches": 2,  # half of the memory
    "warmup_steps": 15,
    "decay": True,
    "steps": 100,
    "evaluations": 2,
  }
  policy = own | {
    "learning_rate": 3e-5,
    "warmup_steps": 5,
    "beta": 0.03,  # IPO wants pairs 1 / (2 beta) = 17 nats apart
    "steps": 40,
    "evaluate_at": (0.5, 1.0),
  }
  c.data.on_bad_pair = "skip"
  c.sft.update(trained | {"init": model, "warmup_steps": 5, "steps": 40})
  c.sft.data = ({"long_response": "drop"},)
  c.golden_pm.update(judge | {"steps": 150})
  c.proxy_pm.update(judge)
  c.policy.update(policy)
  c.golden_policy.update(policy | {"evaluate_at": (1.0,)})

  losses = {"loss": ("ipo", "dpo")}
  offline = {"method": ("offline",)}
  c.runs = {
    "online": losses,
    "offline": offline | losses,
    "shuffled": offline | {"dataset": ("stream",)},
    # With online's 1 the three points of the dial; 0 is never.
    "semi_online": {"refresh_every": (8, 0)},
  }
  c.evaluation.update(
    {"prompts": 64, "kl_prompts": 64, "pairs": 64, "batch_size": 16,
     "best_of": (2, 4, 8), "length_control": True}
  )  # fmt: skip
  c.figures = ("figure_01", "figure_04", "staleness")
  c.log_every, c.save_every = 5, 20
  return c


def get_config(model: str = ""):
  c = world(model, "smollm2")
  c.data.prompt_format = FORMAT
  c.prompt_length, c.response_length = 48, 48
  c.sampled.update(
    {"data": "initial", "num_prompts": 400, "validation_fraction": 0.25, "pairs": 2,
     "temperatures": (0.7, 1.0, 1.3)}
  )  # fmt: skip
  c.rater.update({"kind": "prose", "temperature": 0.3})
  # With half of the pairs and steps, and raters of 0.5, its held-out accuracy was 0.66.
  c.golden_pm.update({"steps": 300, "learning_rate": 3e-5})
  c.notes = (
    "D_initial is sampled by SFT, and labelled by a utility that is a function of the "
    "text: configs/smollm2_truth.py says what it rewards, and how it can be cheated.",
  )
  return c
