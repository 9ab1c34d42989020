"""A real language model in a world whose truth is known: SmolLM2 135M on real prompts.

  python -m alignment.main --config=configs/smollm2.py:MODEL --workdir=WORK \\
    --config.data.path=PROMPTS

MODEL is the directory of SmolLM2-135M-Instruct (on the hub:
HuggingFaceTB/SmolLM2-135M-Instruct), or of any chat model that a machine can train. It
is the start of policies and judges as it is: there is no SFT. PROMPTS is any file of
prompts or pairs (docs/your_data.md); of dialogues, such as Anthropic HH's
`helpful-base/test.jsonl.gz`, the first turns are asked.

  D_initial  the start's own answers at three temperatures, rated by a known utility
             with noise of Bradley and Terry (smollm2_truth.py)
  golden PM  learns from these ratings; D_golden, proxy PM and policies as ever
  truth      the utility without noise: evaluations have true win rates

Hardware: two CPU cores with AMX and 12 GB of memory, 40 GB of disk. Duration, by
arithmetic (135M parameters, 600 GFLOP/s in bfloat16; a step reads 8 x (48 + 2 x 48)
tokens; a token of 16 samples takes 20 ms): about 70 minutes, of which
  samples      600 prompts x 6 x 48 tokens                                      3 min
  judges       2 x 150 steps of 2 s, each with its report                      12 min
  D_golden     1,800 pairs judged, 1,440 scored under the start                 4 min
  online       5 runs (golden policy too) x 60 steps of 5 s                    25 min
  offline      3 runs x 60 steps of 3 s                                         9 min
  evaluations  27 checkpoints x 30 s, best-of-n                                16 min
"""

from alignment.study import documents, schema
from alignment.types import UserError

documents.load("smollm2_truth.py", beside=__file__)  # the rule `prose`

FORMAT = "Answer in two short sentences.\n\nHuman: {prompt}\n\nAssistant:"


def world(model: str, name: str):
  """All but the data: every role starts from one chat model."""
  if not model:
    raise UserError(f"configs/{name}.py: name a model: configs/{name}.py:MODEL")
  c = schema.get_config()
  c.task = name
  c.vocab.update({"kind": "huggingface", "path": model})
  c.model.update({"remat": "none"})

  adamw = schema.optimizer(name="adamw", b2=0.99, clip_norm=1.0)
  own = {"size": "smollm2_135m", "init": model, "optimizer": adamw, "batch_size": 8}
  judge = own | {
    "kind": "pointwise",
    "learning_rate": 2e-5,
    "warmup_steps": 15,
    "decay": True,
    "steps": 150,
    "evaluations": 2,
  }
  policy = own | {
    "learning_rate": 2e-5,
    "warmup_steps": 5,
    "beta": 0.03,  # IPO wants pairs 1 / (2 beta) = 17 nats apart
    "steps": 60,
    "evaluate_at": (1 / 3, 2 / 3, 1.0),
  }
  c.sft.init = model
  c.golden_pm.update(judge)
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
    {"prompts": 64, "kl_prompts": 64, "pairs": 64, "batch_size": 32,
     "best_of": (2, 4, 8)}
  )  # fmt: skip
  c.figures = ("figure_01", "figure_04", "staleness")
  c.log_every, c.save_every = 5, 30
  return c


def get_config(model: str = ""):
  c = world(model, "smollm2")
  c.data.prompt_format = FORMAT
  c.prompt_length, c.response_length = 48, 64
  c.sampled.update(
    {"data": "initial", "num_prompts": 600, "validation_fraction": 0.2, "pairs": 1,
     "temperatures": (0.7, 1.0, 1.3)}
  )  # fmt: skip
  c.rater.update(
    {"kind": "prose", "options": {"least": 15, "most": 40}, "temperature": 1.0}
  )
  c.notes = (
    "D_initial is sampled by the start of all policies, and labelled by a utility that "
    "is a function of the text: configs/smollm2_truth.py says what it rewards, and how "
    "it can be cheated.",
  )
  return c
