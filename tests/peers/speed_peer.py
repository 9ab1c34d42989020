"""How much faster a step is here than in transformers' models in PyTorch, and in TRL.

  python -m tests.peers.speed_peer    # T5 1.1 small and SmolLM2 135M; needs torch

Both sides have the same weights, shapes, threads and optimizer, include the reference's
forward pass, and generate exactly the given number of tokens (EOS ends nothing). They
run by turns in one process, A B A B; TRL's trainer, whose loop is its own, between two
blocks of ours. The peer gets what helps it (speed_models.py): prompts read once where
that is faster, its float32 masters beside bfloat16 weights, fused AdamW, no dropout,
inference mode, the faster attention, and the allocator settings that ours has.
`--compile` also compiles its forward passes of the train step.

Prints min, median and max of the ratios, and fails if a median misses its floor.
"""

import argparse
from collections.abc import Callable
import os
import statistics
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by PyTorch when it starts

from alignment.runtime import allocator

allocator.keep_memory()

import jax
import torch

from alignment import benchmark
from alignment.models import huggingface
from tests.peers import speed_models

MEASURES = ("generation", "online_step", "train_step")
# Ratios below which something has become slower, on any processor seen (docs/speed.md).
FLOORS = {
  ("t5_1_1_small", "generation"): 2.5,
  ("t5_1_1_small", "online_step"): 1.4,
  ("t5_1_1_small", "train_step"): 1.05,
}


def compare(
  ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float]]:
  """Seconds of either, run by turns, after one untimed call each."""
  benchmark.seconds(ours)
  theirs()
  times: tuple[list[float], list[float]] = ([], [])
  for _ in range(repeats):
    times[0].append(benchmark.seconds(ours))
    start = time.perf_counter()
    theirs()
    times[1].append(time.perf_counter() - start)
  return times


def check_same_answers(peer: speed_models.Peer, params: Any, model: Any) -> None:
  """Both sides must compute the same thing: log-probabilities of the same pairs."""
  import jax.numpy as jnp
  import numpy as np

  from alignment.core import logprobs

  B = peer.case.prompts
  lengths_B = jnp.full((B,), peer.case.prompt_length)
  responses_BxNxT = jnp.asarray(peer.responses.view(B, benchmark.N, -1).numpy())
  context = model.prepare(params, jnp.asarray(peer.prompts.numpy()), lengths_B)
  hidden = model.hidden(params, context, responses_BxNxT)
  logits = model.logits(params, hidden)
  ours_BxN = logprobs.token_logps(logits, responses_BxNxT).sum(-1)
  tolerance = 1e-4 if peer.case.dtype == "float32" else 1e-2
  np.testing.assert_allclose(ours_BxN, peer.scoring().numpy(), rtol=tolerance)


def faster(peer: speed_models.Peer, name: str) -> Callable[[], Any]:
  """The peer's measurement, its prompts read once or repeated: whichever is faster."""
  run = getattr(peer, name)
  if not isinstance(peer, speed_models.Decoder):
    return run
  seconds = {}
  for shared in (True, False):
    peer.shared = shared
    run()
    start = time.perf_counter()
    run()
    seconds[shared] = time.perf_counter() - start
  peer.shared = seconds[True] < seconds[False]
  return run


def report(name: str, case: benchmark.Case, of: str, times: Any) -> bool:
  """Prints one line; whether it is not below its floor."""
  ratios = [b / a for a, b in zip(*times, strict=True)]
  median = statistics.median(ratios)
  floor = FLOORS.get((case.size, name), 0.0)
  ok = median >= floor
  ours, theirs = map(statistics.median, times)
  beside = f" (floor {floor}{'' if ok else ', BELOW'})" if floor else ""
  print(
    f"{case.size:13} {name:12} {case.dtype:9} ours {ours:7.3f} s, "
    f"{of} {theirs:7.3f} s, ratio {min(ratios):.2f} {median:.2f} {max(ratios):.2f}"
    f"{beside}",
    flush=True,
  )
  return ok


def against_trl(
  ours: Callable[[], Any], directory: str, peer: speed_models.Peer, repeats: int
) -> tuple[list[float], list[float]]:
  """Seconds of train steps: half of ours, TRL's, the other half of ours."""
  with tempfile.TemporaryDirectory() as workdir:
    trainer = speed_models.Trl(directory, peer, workdir, repeats + 1)
    before = [benchmark.seconds(ours) for _ in range(repeats // 2)]
    theirs = trainer.seconds()
    return [
      *before,
      *(benchmark.seconds(ours) for _ in range(repeats - len(before))),
    ], theirs


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--size", nargs="+", default=["t5_1_1_small", "smollm2_135m"])
  parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--measure", nargs="+", default=[*MEASURES, "trl"])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--compile", action="store_true")
  arguments = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  below = []
  for size in arguments.size:
    for dtype in arguments.dtype:
      case = benchmark.Case(size=size, dtype=dtype, optimizer="adamw")
      below += measure(case, arguments)
  if below:
    sys.exit(f"below their floors: {', '.join(below)}")


def measure(case: benchmark.Case, arguments: argparse.Namespace) -> list[str]:
  """Prints the lines of one size and dtype; those that are below their floor."""
  model, below = case.model(), []
  kind = speed_models.T5 if case.size.startswith("t5") else speed_models.Decoder
  params = model.init(jax.random.key(0))
  with tempfile.TemporaryDirectory() as directory:
    huggingface.write(directory, model.cfg, jax.device_get(params))
    peer = kind(directory, case, arguments.compile)
    check_same_answers(peer, params, model)
    ours = benchmark.programs(case, params)
    for name in arguments.measure:
      if name != "trl":
        times = compare(ours[name], faster(peer, name), arguments.repeats)
        if not report(name, case, "transformers", times):
          below.append(f"{name} {case.size} {case.dtype}")
      elif kind is speed_models.Decoder:
        times = against_trl(ours["train_step"], directory, peer, arguments.repeats)
        report("train_step", case, "TRL", times)
  return below


if __name__ == "__main__":
  main()
