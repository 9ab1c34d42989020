"""How much faster a step is here than in transformers' T5 in PyTorch.

  python tests/peers/speed_peer.py    # T5 1.1 small, minutes; needs torch

Both sides have the same weights, shapes, threads and optimizer, include the reference's
forward pass, and generate exactly the given number of tokens (EOS ends nothing). They
run by turns in one process, A B A B. The peer gets what helps it: prompts encoded once,
its float32 masters beside bfloat16 weights, fused AdamW, no dropout, inference mode,
eager attention (faster here than its SDPA, which T5's position bias keeps from its fast
path), and the allocator settings that ours has. `--compile` also compiles its forward
passes of the train step.

Prints min, median and max of the ratios, and fails if a median misses its target.
"""

import argparse
from collections.abc import Callable
import contextlib
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
from torch.nn import functional as F
import transformers

from alignment import benchmark
from alignment.models import huggingface, t5

# Ratios below which something has become slower, on any processor seen (docs/speed.md).
FLOORS = {"generation": 2.5, "online_step": 1.4, "train_step": 1.05}
BETA, RATE = 0.1, 1e-5


class Peer:
  """The measurements of alignment/benchmark.py with transformers' T5."""

  def __init__(self, directory: str, case: benchmark.Case, compile_it: bool):
    self.case, self.dtype = case, getattr(torch, case.dtype)
    self.policy, self.reference, self.judge = (self._load(directory) for _ in range(3))
    self.weights = list(self.policy.parameters())
    self.masters = self.weights
    if self.dtype != torch.float32:
      self.masters = [w.detach().float().requires_grad_() for w in self.weights]
    self.optimizer = torch.optim.AdamW(
      self.masters, RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    torch.manual_seed(0)
    self.vocab = self.policy.config.vocab_size
    shape = (case.prompts, case.prompt_length)
    self.prompts = torch.randint(2, self.vocab, shape)
    self.mask = torch.ones_like(self.prompts)
    self.responses = torch.randint(
      2, self.vocab, (case.prompts * benchmark.N, case.response_length)
    )
    self.logps = torch.compile(self._logps) if compile_it else self._logps

  def _load(self, directory: str) -> Any:
    model = transformers.T5ForConditionalGeneration.from_pretrained(
      directory, dtype=self.dtype, attn_implementation="eager"
    )
    return model.eval()  # no dropout anywhere

  def _logps(self, model: Any, responses: torch.Tensor) -> torch.Tensor:
    """Summed log-probabilities, B x N; every prompt is encoded once."""
    encoded = model.encoder(input_ids=self.prompts, attention_mask=self.mask)
    logits = model(
      encoder_outputs=(encoded.last_hidden_state.repeat_interleave(benchmark.N, 0),),
      attention_mask=self.mask.repeat_interleave(benchmark.N, 0),
      decoder_input_ids=F.pad(responses[:, :-1], (1, 0)),
      use_cache=False,
    ).logits
    nll = F.cross_entropy(
      logits.float().flatten(0, 1), responses.flatten(), reduction="none"
    )
    return -nll.view(self.case.prompts, benchmark.N, -1).sum(-1)

  def scoring(self, responses: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
      return self.logps(
        self.reference, self.responses if responses is None else responses
      )

  def generation(self) -> torch.Tensor:
    """Both samples of every prompt, each of exactly T tokens."""
    T = self.case.response_length
    settings = transformers.GenerationConfig(
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      num_return_sequences=benchmark.N,
      max_new_tokens=T,
      eos_token_id=None,
      pad_token_id=0,
      decoder_start_token_id=0,
    )
    with torch.inference_mode():
      tokens = self.policy.generate(
        self.prompts, attention_mask=self.mask, generation_config=settings
      )[:, 1:]
    assert tokens.shape == (self.case.prompts * benchmark.N, T)
    return tokens.clone()

  def train_step(self, responses: torch.Tensor | None = None) -> torch.Tensor:
    """IPO: the reference, loss, gradients, AdamW."""
    responses = self.responses if responses is None else responses
    reference = self.scoring(responses).clone()
    ratios = self.logps(self.policy, responses) - reference
    loss = ((ratios[:, 0] - ratios[:, 1] - 1 / (2 * BETA)) ** 2).mean()
    loss.backward()
    if self.masters is self.weights:
      self.optimizer.step()
    else:
      for master, weight in zip(self.masters, self.weights, strict=True):
        master.grad = weight.grad.float()
      self.optimizer.step()
      with torch.no_grad():
        torch._foreach_copy_(self.weights, self.masters)
    self.policy.zero_grad(set_to_none=True)
    return loss.detach()

  def online_step(self) -> torch.Tensor:
    """Samples, judges both orders, puts the preferred response first, steps."""
    N, B = benchmark.N, self.case.prompts
    pairs = self.generation().view(B, N, -1)
    first, second = pairs[:, 0], pairs[:, 1]
    swap = (self._margin(first, second) < self._margin(second, first))[:, None, None]
    return self.train_step(torch.where(swap, pairs.flip(1), pairs).flatten(0, 1))

  def _margin(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    def marker(*ids: int) -> torch.Tensor:
      return torch.tensor(ids).expand(len(first), len(ids))

    parts = [self.prompts, marker(2), first, marker(3), second, marker(4, 1)]
    tokens = torch.cat(parts, 1)
    assert tokens.shape[1] == self.case.judge_length()
    with torch.inference_mode():
      logits = self.judge(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        decoder_input_ids=torch.zeros_like(tokens[:, :1]),
        use_cache=False,
      ).logits[:, 0]
    return (logits[:, 5] - logits[:, 6]).float()


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


def check_same_answers(peer: Peer, params: Any, model: t5.T5) -> None:
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


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--size", default="t5_1_1_small")
  parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--measure", nargs="+", default=list(FLOORS))
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--compile", action="store_true")
  arguments = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  below = []
  for dtype in arguments.dtype:
    case = benchmark.Case(size=arguments.size, dtype=dtype, optimizer="adamw")
    model = case.model()
    params = model.init(jax.random.key(0))  # its head has std d_model^-0.5
    with tempfile.TemporaryDirectory() as directory:
      huggingface.write(directory, model.cfg, jax.device_get(params))
      with contextlib.redirect_stderr(open(os.devnull, "w")):
        peer = Peer(directory, case, arguments.compile)
    check_same_answers(peer, params, model)
    ours = benchmark.programs(case, params)
    for name in arguments.measure:
      times = compare(ours[name], getattr(peer, name), arguments.repeats)
      ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
      median, floor = statistics.median(ratios), FLOORS[name]
      ok = median >= floor
      print(
        f"{name:12} {dtype:9} ours {statistics.median(times[0]):7.3f} s, "
        f"transformers {statistics.median(times[1]):7.3f} s, ratio {min(ratios):.2f} "
        f"{median:.2f} {max(ratios):.2f} (floor {floor}{'' if ok else ', BELOW'})",
        flush=True,
      )
      if not ok:
        below.append(f"{name} {dtype}")
  if below:
    sys.exit(f"below their floors: {', '.join(below)}")


if __name__ == "__main__":
  main()
