"""An 8B chat model aligned online and offline: policy and judges are Qwen3 8B.

  python -m alignment.main --config=configs/qwen3_8b.py --workdir=gs://BUCKET/8b \\
    --config.sft.init=MODEL --config.vocab.path=MODEL --config.data.path=PAIRS
  python -m alignment.main --config=configs/qwen3_8b.py:lora ...  # adapters of rank 16
  python -m launch.compile_check --config=configs/qwen3_8b.py     # what holds it

MODEL is a directory with Qwen3-8B (on the hub: Qwen/Qwen3-8B); it is the start of every
role as it is, there is no SFT. PAIRS is any preference file (docs/your_data.md).

Hardware, by estimate: v5p-8 (--topology=v5p:2x2x1) or v6e-8; with :lora v6e-4 or v5e-8
(--topology=v5e:2x4 --config.mesh.tensor=4: while it samples, a policy is whole on every
chip but for what `tensor` divides).
Duration: not known, this config has not been run. By arithmetic (2 and 6 operations per
parameter and token) 2.4e19 operations, 4e18 of them for an online and 2.5e18 for an
offline run: at 40 % of the peak of a v5p-8 nine hours. Sampling comes on top.
"""

from alignment.study import schema
from alignment.types import UserError


def get_config(trained: str = ""):
  if trained not in ("", "lora"):
    raise UserError(f"configs/qwen3_8b.py: no '{trained}', but lora, or nothing (all)")
  c = schema.get_config()
  c.task = "qwen3_8b"
  c.data.update({"on_bad_pair": "skip"})
  c.vocab.kind = "huggingface"
  c.prompt_length, c.response_length = 1024, 256

  own = {"size": "qwen3_8b", "batch_size": 32, "warmup_steps": 20}
  judge = own | {"kind": "pointwise", "learning_rate": 1e-5, "decay": True}
  policy = own | {"loss": "dpo", "learning_rate": 1e-6, "steps": 1000}
  adapted = {"lora": schema.lora(rank=16, alpha=32.0), "learning_rate": 1e-4}
  if trained == "lora":
    adapted["optimizer"] = schema.optimizer(name="adamw", clip_norm=1.0)
    judge, policy = judge | adapted, policy | adapted
  c.golden_pm.update(judge | {"steps": 2000, "evaluations": 4})
  c.proxy_pm.update(judge | {"steps": 1000, "evaluations": 4})
  for role in (c.policy, c.golden_policy):
    role.update(policy | {"evaluate_at": (0.1, 0.25, 0.5, 0.75, 1.0)})
  for role in (c.golden_pm, c.proxy_pm, c.policy, c.golden_policy):
    role.init = c.sft.get_oneway_ref("init")
  c.runs = {
    "online": {"method": ("online",), "beta": (0.03, 0.1)},
    "offline": {"method": ("offline",), "beta": (0.03, 0.1)},
  }
  c.evaluation.update({"prompts": 512, "batch_size": 32})
  c.mesh.update({"data": 1, "fsdp": -1})
  c.save_every = 100
  return c
