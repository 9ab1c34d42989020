"""The whole study in miniature: figure 1 on a generated language with a known truth.

  make quickstart
  python -m alignment.main --config=configs/quickstart.py --workdir=/tmp/quickstart

Hardware: two CPU cores. Duration: about 8 minutes.
"""

from alignment.data import toy
from configs import base


def get_config():
  c = base.get_config()
  c.task = "toy"
  c.workers = 2
  c.data.format = "toy"
  c.data.num_pairs = 24_000
  c.data.validation_fraction = 0.1
  c.vocab.update({"kind": "words", "words": toy.WORDS})
  c.prompt_length = 13  # 12 words and EOS
  c.response_length = 13
  c.judge_context_length = 42  # prompt, two responses and three marks
  c.model = {"dtype": "float32", "scan_layers": False, "remat": "none"}

  adamw = base.optimizer(name="adamw")
  small = {"optimizer": adamw, "batch_size": 32, "warmup_steps": 50}
  c.sft.update(small | {"init": "scratch", "learning_rate": 2e-3, "steps": 1500})
  c.golden_pm.update(
    small
    | {"size": "micro", "init": "scratch", "learning_rate": 1e-3, "steps": 6000,
       "warmup_steps": 200}
  )  # fmt: skip
  c.proxy_pm.update(
    small | {"size": "nano", "learning_rate": 1e-3, "steps": 3000, "warmup_steps": 200}
  )
  policy = small | {"size": "micro", "learning_rate": 3e-4, "steps": 2000}
  c.policy.update(policy)
  c.golden_policy.update(policy)
  c.runs = {
    "online": {"method": ("online",), "beta": (0.03, 0.1)},
    "offline": {
      "method": ("offline",),
      "beta": (0.03, 0.1),
      "learning_rate": (3e-4, 1e-3),
    },
  }
  c.evaluation.prompts = 1024
  c.evaluation.batch_size = 256
  c.log_every = 50
  c.save_every = 500
  return c
