"""How much faster a train step is here than in Tunix's DPO trainer: both are JAX.

  python tests/peers/tunix_peer.py              # SmolLM2-135M's shape, 4 layers: 6 GB
  python tests/peers/tunix_peer.py --layers=30  # all of them: 10 GB or more (not tried)

Not part of `make peers`: google-tunix wants safetensors<0.8, and requirements.lock has
0.8. It runs with that all the same. To install it into a copy of `make install`'s
environment, without the dependencies that only other parts of Tunix import:

  pip install --no-deps google-tunix==0.1.7 google-metrax==0.2.4 tensorboardX==2.6.5 \\
    jaxtyping==0.3.11 wadler_lindig==0.1.8 perfetto==0.59.1 pandas==3.1.1

Both sides have the same shape, weights (through a Hugging Face directory), tokens,
threads, allocator and AdamW, and include the reference's forward pass. They run by
turns in one process, A B A B. What differs:

- The loss: IPO here, DPO there (Tunix has no IPO). Neither takes time.
- Tunix repeats the prompt for each response and computes logits at every position, the
  prompt's too. That is its way; it has no setting for it. So fewer layers, beside the
  same head, make Tunix look slower than it is.
- Of Tunix's loop only what is needed runs: `_prepare_inputs`, which concatenates the
  tokens and runs the reference, and the compiled step. Metrics are not fetched.
- In bfloat16 Tunix's weights and AdamW's moments are bfloat16; ours stay float32, and
  only products are bfloat16.

Tunix's Llama turns positions by base 1e6 whatever `rope_theta` says: both sides do.

Checks that log-probabilities of the same pairs are equal; prints min, median and max of
the ratios.
"""

import argparse
from collections.abc import Callable
import dataclasses
import statistics
import tempfile
from typing import Any

from alignment.runtime import allocator

allocator.keep_memory()

import jax
import numpy as np
import optax
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.sft.dpo import dpo_trainer

from alignment import benchmark
from alignment.core import scoring
from alignment.models import huggingface, registry
from alignment.models.rope import Rope
from alignment.types import Batch
from tests.peers import shared_prompt

BETA, RATE, BASE = 0.1, 1e-5, 1_000_000
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # relative, of a response's sum


@dataclasses.dataclass(frozen=True)
class Case(benchmark.Case):
  """A size with another number of layers, and the base that Tunix has."""

  layers: int = 30

  def model(self) -> Any:
    cfg = super().model().cfg
    rope = Rope(float(BASE))
    return registry.model(dataclasses.replace(cfg, num_layers=self.layers, rope=rope))


class Tunix:
  """Policy, reference and trainer, at the weights in `directory`."""

  def __init__(self, directory: str, case: Case, batch: Batch):
    cfg = case.model().cfg
    shape = llama.ModelConfig(
      num_layers=cfg.num_layers,
      vocab_size=cfg.vocab_rows,
      embed_dim=cfg.d_model,
      hidden_dim=cfg.d_ff,
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      num_kv_heads=cfg.num_kv_heads,
      rope_theta=BASE,
      norm_eps=cfg.norm_epsilon,
      weight_tying=cfg.tied,
    )
    policy, reference = (
      llama_params.create_model_from_safe_tensors(directory, shape, dtype=case.dtype)
      for _ in "pr"
    )
    self.trainer = dpo_trainer.DPOTrainer(
      policy,
      reference,
      optax.adamw(RATE, b1=0.9, b2=0.95, weight_decay=0.0),
      dpo_trainer.DPOTrainingConfig(eval_every_n_steps=1, beta=BETA),
    )
    self.step, _ = self.trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    chosen, rejected = (np.asarray(batch.responses_BxNxT[:, i]) for i in range(2))
    self.pairs = dpo_trainer.TrainingInput(
      prompt_ids=batch.prompts_BxS,
      prompt_mask=np.ones_like(batch.prompts_BxS),
      chosen_ids=chosen,
      chosen_mask=np.ones_like(chosen),
      rejected_ids=rejected,
      rejected_mask=np.ones_like(rejected),
    )

  def train_step(self) -> Any:
    """(loss, metrics, gradient norm)"""
    return self.step(self.trainer._prepare_inputs(self.pairs))

  def reference_logps(self) -> np.ndarray:
    """B x N"""
    example = self.trainer._prepare_inputs(self.pairs)
    return np.stack([example.ref_chosen_logps, example.ref_rejected_logps], 1)


def check_same_answers(peer: Tunix, model: Any, params: Any, batch: Batch) -> float:
  """The largest relative difference of a response's log-probability."""
  ours_BxN = np.asarray(jax.jit(scoring.score, static_argnums=0)(model, params, batch))
  theirs_BxN = peer.reference_logps()
  np.testing.assert_allclose(theirs_BxN, ours_BxN, rtol=TOLERANCE[model.cfg.dtype])
  return float(np.max(np.abs(theirs_BxN / ours_BxN - 1)))


def by_turns(
  ours: Callable[[], Any], theirs: Callable[[], Any], turns: int
) -> list[tuple[float, float]]:
  """Seconds of either, after one untimed call each, which compiles."""
  ways = (ours, theirs)
  for run in ways:
    benchmark.seconds(run)
  return [tuple(benchmark.seconds(run) for run in ways) for _ in range(turns)]


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--size", default="smollm2_135m")
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
  parser.add_argument("--turns", type=int, default=5)
  args = parser.parse_args()
  case = Case(args.size, args.dtype, optimizer="adamw", layers=args.layers)
  model = case.model()
  shape = case.prompts, case.prompt_length, case.response_length
  batch = shared_prompt.random_batch(*shape, model.cfg.vocab_rows)
  params = jax.jit(model.init)(jax.random.key(0))
  with tempfile.TemporaryDirectory() as directory:
    huggingface.write(directory, model.cfg, jax.device_get(params))
    peer = Tunix(directory, case, batch)
  difference = check_same_answers(peer, model, params, batch)
  ours = benchmark.programs(case, params)["train_step"]
  times = by_turns(ours, peer.train_step, args.turns)
  ratios = [theirs / ours for ours, theirs in times]
  medians = [statistics.median(each) for each in zip(*times, strict=True)]
  print(
    f"{case.size}, {case.layers} layers, {case.dtype}: ours {medians[0]:.3f} s, Tunix "
    f"{medians[1]:.3f} s, ratio {min(ratios):.2f} {statistics.median(ratios):.2f} "
    f"{max(ratios):.2f}; log-probabilities differ by {difference:.1e}"
  )


if __name__ == "__main__":
  main()
