"""What sharing a prompt gains: an IPO step against one that repeats it per response.

  python tests/peers/shared_prompt.py              # SmolLM2-135M's shape, minutes
  python tests/peers/shared_prompt.py --layers=6   # fewer layers of the same

Both ways are this code base's: once two responses share a pass over their prompt, once
every response is a row of its own with the prompt before it. They have the same weights
and must find the same loss. They run by turns in one process, A B A B; a step is the
reference's scores, the policy's gradient and Adafactor's update.

Prints the median and range of the ratios; fails if the median is below 1.5.
"""

import argparse
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from alignment.core import optim, scoring
from alignment.models import registry
from alignment.types import Batch

FLOOR, BETA, N = 1.5, 0.1, 2


def random_batch(B: int, S: int, T: int, V: int) -> Batch:  # noqa: N803
  rng = np.random.default_rng(0)
  return Batch(
    prompts_BxS=rng.integers(2, V, (B, S), np.int32),
    prompt_lengths_B=np.full((B,), S, np.int32),
    responses_BxNxT=rng.integers(2, V, (B, N, T), np.int32),
    lengths_BxN=np.full((B, N), T, np.int32),
    ref_logps_BxN=np.zeros((B, N), np.float32),
    weights_B=np.ones((B,), np.float32),
    ids_B=np.arange(B, dtype=np.int32),
  )


def repeated(batch: Batch) -> Batch:
  """Every response as a row with a prompt of its own."""
  B, _, T = batch.responses_BxNxT.shape  # noqa: N806
  rows = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), N, axis=0), batch)
  return rows.replace(
    responses_BxNxT=jnp.asarray(batch.responses_BxNxT).reshape(N * B, 1, T),
    lengths_BxN=jnp.asarray(batch.lengths_BxN).reshape(N * B, 1),
  )


def step(model, optimizer, shares: bool, params, state, reference, batch: Batch):
  """-> (loss, parameters, optimizer state)."""
  rows = batch if shares else repeated(batch)

  def logps_BxN(p):  # noqa: N802
    return scoring.score(model, p, rows).reshape(batch.lengths_BxN.shape)

  before_BxN = logps_BxN(reference)

  def loss(p):
    gains_BxN = logps_BxN(p) - before_BxN
    margin_B = gains_BxN[:, 0] - gains_BxN[:, 1]
    return jnp.mean((margin_B - 1 / (2 * BETA)) ** 2)

  value, gradients = jax.value_and_grad(loss)(params)
  updates, state = optimizer.update(gradients, state, params)
  moved = jax.tree.map(lambda p, u: p - 1e-5 * u, params, updates)
  return value, moved, state


def seconds(run) -> tuple[float, float]:
  """(wall time, loss) of one step."""
  start = time.perf_counter()
  loss, *_ = jax.block_until_ready(run())
  return time.perf_counter() - start, float(loss)


def main() -> int:
  parser = argparse.ArgumentParser()
  for name, default in {
    "layers": 30, "prompts": 2, "prompt_length": 1024, "response_length": 64,
    "turns": 5,
  }.items():  # fmt: skip
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--size", default="smollm2_135m")
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()
  cfg = registry.config(args.size, num_layers=args.layers, dtype=args.dtype)
  model, optimizer = registry.model(cfg), optim.Optimizer("adafactor").transform()
  params = jax.jit(model.init)(jax.random.key(0))
  reference = jax.jit(model.init)(jax.random.key(1))
  state = jax.jit(optimizer.init)(params)
  shape = args.prompts, args.prompt_length, args.response_length
  batch = random_batch(*shape, cfg.vocab_rows)
  ways = [
    functools.partial(
      jax.jit(functools.partial(step, model, optimizer, shares)),
      params, state, reference, batch,
    )
    for shares in (True, False)
  ]  # fmt: skip
  losses = [seconds(run)[1] for run in ways]  # compiles
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
  turns = [[seconds(run)[0] for run in ways] for _ in range(args.turns)]
  ratios = sorted(apart / together for together, apart in turns)
  median = statistics.median(ratios)
  together, apart = (statistics.median(times) for times in zip(*turns, strict=True))
  print(
    f"{args.size}, {args.layers} layers, {args.dtype}, {shape[0]} prompts of "
    f"{shape[1]}, {N} responses of {shape[2]}: shared {together:.2f} s, repeated "
    f"{apart:.2f} s, gain {median:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
  )
  return 0 if median >= FLOOR else 1


if __name__ == "__main__":
  sys.exit(main())
