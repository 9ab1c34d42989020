"""The whole study on real human preferences: the path, not the effect.

  python -m alignment.main --config=configs/hh_small.py --workdir=/tmp/hh_small \\
    --config.data.path=PAIRS.jsonl.gz --config.vocab.path=T5/spiece.model

PAIRS holds `prompt`, `chosen`, `rejected`; sized for the 2.3k pairs of Anthropic HH's
helpful-base test split. Without the T5 vocabulary: --config=configs/hh_small.py:bytes.

Hardware: two CPU cores. Duration: 15 to 30 minutes with the T5 vocabulary.
Expected: every stage works. What models this small learn from 2.3k pairs is hardly more
than what the responses' lengths say.
"""

from alignment.study import schema
from alignment.types import UserError

# The most tokens of a prompt and of a response.
LENGTHS = {"sentencepiece": (96, 48), "bytes": (192, 96)}


def get_config(vocabulary: str = "sentencepiece"):
  if vocabulary not in LENGTHS:
    known = " and ".join(LENGTHS)
    raise UserError(f"configs/hh_small.py: no vocabulary '{vocabulary}', but {known}")
  c = schema.get_config()
  c.task = "hh_small"
  c.workers = 2
  c.data.validation_fraction = 0.1
  c.vocab.kind = vocabulary
  c.prompt_length, c.response_length = LENGTHS[vocabulary]
  c.judge_context_length = c.prompt_length + 2 * c.response_length + 16
  c.model.update({"dtype": "float32", "scan_layers": False, "remat": "none"})

  adamw = schema.optimizer(name="adamw", clip_norm=1.0)
  small = {"size": "micro", "optimizer": adamw, "batch_size": 16, "warmup_steps": 50}
  judge = {"learning_rate": 5e-4, "steps": 600, "evaluations": 6}
  c.golden_pm.update(small | judge | {"size": "tiny", "init": "scratch"})
  c.proxy_pm.update(small | judge)
  c.policy.update(small | {"learning_rate": 3e-4, "steps": 400})
  c.golden_policy.update(small | {"learning_rate": 3e-4, "steps": 400})
  del small["size"]
  c.sft.update(small | {"init": "scratch", "learning_rate": 1e-3, "steps": 800})
  c.runs = {
    "online": {"method": ("online",), "beta": (0.1,)},
    "offline": {"method": ("offline",), "beta": (0.1,), "learning_rate": (3e-4, 1e-3)},
  }
  c.policy.evaluate_at = c.golden_policy.evaluate_at = (0.1, 0.25, 0.5, 0.75, 1.0)
  c.evaluation.update(
    {"prompts": 512, "kl_prompts": 256, "pairs": 256, "batch_size": 64}
  )
  c.evaluation.require_good_judge = False
  c.notes = (
    "These are pairs of Anthropic HH's test split, used for training: nothing here is "
    "comparable with published numbers on that data.",
    "2.3k pairs and models trained from scratch show that the path from real human "
    "preferences to the figure works; they do not show the effect the paper measures. "
    "The golden preference model is not required to be good: see its accuracies.",
  )
  c.log_every, c.save_every = 20, 200
  return c
