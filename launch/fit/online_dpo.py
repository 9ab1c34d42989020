"""Online DPO of one decoder, its judge of the same size: what docs/memory.md compiles.

  python -m launch.compile_check --config=launch/fit/online_dpo.py:qwen3_0_6b
  python -m launch.compile_check --config=launch/fit/online_dpo.py:qwen3_0_6b \\
    --topology=v5e:2x2 --config.mesh.fsdp=4

Neither a vocabulary nor a checkpoint is needed. `configs/own_model.py` is what runs.
"""

from alignment.study import schema
from alignment.types import UserError

BATCH = 16  # prompts with a pair, for every role


def get_config(size: str = ""):
  if not size:
    raise UserError("launch/fit/online_dpo.py: name a size: online_dpo.py:qwen3_0_6b")
  c = schema.get_config()
  c.vocab.kind = "huggingface"
  c.prompt_length, c.response_length = 1024, 256
  c.judge_context_length = c.prompt_length + 2 * c.response_length + 128
  for role in (c.golden_pm, c.proxy_pm, c.policy, c.golden_policy):
    role.size = size
  for role in (c.sft, c.golden_pm, c.proxy_pm, c.policy, c.golden_policy):
    role.batch_size = BATCH
  c.policy.loss = c.golden_policy.loss = "dpo"
  c.runs = {"online": {"method": ("online",)}}
  c.evaluation.batch_size = BATCH
  return c
