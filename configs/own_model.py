"""Your own Hugging Face model, aligned online and offline on your own pairs.

  python -m alignment.main --config=configs/own_model.py:MODEL --workdir=WORK \\
    --config.data.path=PAIRS

MODEL is a directory with `config.json`, `model.safetensors` and `tokenizer.json`. SFT
and the golden preference model start from it, the proxy and policies from that SFT.
PAIRS is any preference file (docs/your_data.md).

Hardware: what holds a policy with its optimizer, the reference and a preference model
of that size; `python -m launch.compile_check` with the same options says which slice.
Duration: hours; it depends on the model.
"""

from alignment.study import schema
from alignment.types import UserError


def get_config(model: str = ""):
  if not model:
    raise UserError("configs/own_model.py: name a model: configs/own_model.py:MODEL")
  c = schema.get_config()
  c.task = "own_model"
  c.vocab.update({"kind": "huggingface", "path": model})
  c.sft.init = model
  c.prompt_length, c.response_length = 512, 128
  c.judge_context_length = c.prompt_length + 2 * c.response_length + 128
  own = {"size": "own", "steps": 1000}  # the size is the checkpoint's
  judge = {"learning_rate": 2e-5, "warmup_steps": 100, "batch_size": 16}
  c.golden_pm.update(own | judge)
  c.proxy_pm.update(own | judge)
  c.policy.update(own)
  c.golden_policy.update(own)
  c.sft.update({"steps": 500, "batch_size": 16})
  grid = {"beta": (0.1, 0.5)}
  c.runs = {
    "online": {"method": ("online",)} | grid,
    "offline": {"method": ("offline",)} | grid,
  }
  c.evaluation.update({"prompts": 512, "batch_size": 32})
  return c
