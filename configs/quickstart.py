"""The whole study in miniature: figure 1 on a generated language with a known truth.

  make quickstart
  python -m alignment.main --config=configs/quickstart.py --workdir=/tmp/quickstart

Hardware: two CPU cores. Duration: 7 to 9 minutes on cores that multiply float32
matrices at 200 GFLOP/s each (12 of CPU time), 12 on some that reach half of that.
"""

from alignment.data import toy
from alignment.study import schema


def get_config():
  c = schema.get_config()
  c.task = "toy"
  c.workers = 2
  c.data.update(
    {"format": "toy", "num_pairs": 60_000, "validation_fraction": 0.05,
     "language": {"num_words": 24, "prompt_words": 8, "response_words": 8,
                  "free_words": 4, "temperature": 0.15}}
  )  # fmt: skip
  c.vocab.update({"kind": "words", "words": toy.words(24)})
  c.prompt_length = 9  # 8 words and EOS
  c.response_length = 9
  c.judge_context_length = 30  # prompt, two responses and three marks
  c.model.update({"dtype": "float32", "scan_layers": False, "remat": "none"})

  adamw = schema.optimizer(name="adamw", b2=0.99)
  small = {"optimizer": adamw, "batch_size": 32, "warmup_steps": 50}
  judge = small | {"learning_rate": 1e-3, "warmup_steps": 200, "decay": True}
  policy = small | {
    "size": "micro",
    "learning_rate": 3e-4,
    "steps": 1000,
    "evaluate_at": (0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0),
  }
  c.sft.update(
    small | {"init": "scratch", "learning_rate": 2e-3, "decay": True, "steps": 2000}
  )
  # As wide as the proxy, but deeper and trained for longer.
  c.golden_pm.update(judge | {"size": "milli", "init": "scratch", "steps": 6000})
  c.proxy_pm.update(judge | {"size": "micro", "steps": 4000})
  c.policy.update(policy)
  c.golden_policy.update(policy)
  grid = {"beta": (0.05, 0.1, 0.3), "learning_rate": (1e-4, 3e-4)}
  c.runs = {
    "online": {"method": ("online",), **grid},
    "offline": {"method": ("offline",), **grid},
  }
  c.evaluation.update({"prompts": 1024, "batch_size": 256})
  c.log_every = 100
  c.save_every = 1000
  return c
