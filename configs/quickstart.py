"""The whole study in miniature: figure 1 on a generated language with a known truth.

  make quickstart
  python -m alignment.main --config=configs/quickstart.py --workdir=/tmp/quickstart
  python -m alignment.main --config=configs/quickstart.py:qwen3 --workdir=/tmp/qwen3

The models are decoder-only: llama's, or after the colon another family's (qwen2, qwen3,
gemma2, gemma3, pythia). Judges start from SFT: they can read posts from the start.

Hardware: two CPU cores. Duration: 3 and a half minutes (260 seconds of CPU time)
once installed. docs/quickstart.md says what six worlds show.
"""

from alignment.data import toy
from alignment.study import schema


def get_config(family: str = "llama"):
  c = schema.get_config()
  c.task = "toy"
  c.workers = 2
  c.data.update({"format": "toy", "num_pairs": 24_000, "language": toy.EASY})
  c.vocab.update({"kind": "words", "words": toy.words(24)})
  c.prompt_length = 9  # 8 words and EOS
  c.response_length = 9
  c.judge_context_length = 30  # prompt, two responses and three marks
  c.model.update({"dtype": "float32", "scan_layers": False, "remat": "none"})

  adamw = schema.optimizer(name="adamw", b2=0.99)
  small = {"optimizer": adamw, "batch_size": 32, "warmup_steps": 50}
  model = small | {"size": f"{family}_nano"}
  judge = model | {
    "learning_rate": 2e-3, "decay": True, "batch_size": 64, "evaluations": 3
  }  # fmt: skip
  policy = model | {
    "learning_rate": 1e-3,
    "steps": 300,
    "evaluate_at": (0.07, 0.2, 0.5, 1.0),
  }
  c.sft.update(
    small | {"init": "scratch", "learning_rate": 3e-3, "decay": True, "steps": 600}
  )
  c.golden_pm.update(judge | {"init": "sft", "steps": 1000})
  c.proxy_pm.update(judge | {"steps": 400})
  c.policy.update(policy)
  c.golden_policy.update(policy)
  grid = {"beta": (0.03, 0.1)}
  c.runs = {
    "online": {"method": ("online",), **grid},
    "offline": {"method": ("offline",), **grid},
  }
  c.evaluation.update({"prompts": 512, "batch_size": 256})
  c.log_every = 100
  c.save_every = 1000
  return c
