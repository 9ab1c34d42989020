"""What a program will need of memory and arithmetic, by formula.

Arguments and what is alive besides are exact. Temporaries are a model of what the
compiler keeps: gradients and casts of the parameters, activations that
rematerialisation saves, and the working set of the largest layer.
"""

import dataclasses
from typing import Any

from alignment.models import t5
from alignment.study.programs import Program, device_bytes

SCORES = 1.5  # copies of a layer's attention scores alive at once, forward
SCORES_BACKWARD = 10.0  # and with its backward pass


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device while a program runs."""

  arguments: int
  temporaries: int
  held: int  # alive, but not this program's

  @property
  def total(self) -> int:
    return self.arguments + self.temporaries + self.held


def estimate(program: Program) -> Memory:
  """What a program is likely to need on each device of its mesh."""
  shape, work = program.mesh.shape, program.work
  rows, tensor = shape["data"] * shape["fsdp"], shape["tensor"]
  saved, working = 0.0, 0.0
  for cfg, B, S, N, T in work.passes:
    b, width = B / rows, _width(cfg)
    if work.kind == "train":
      tokens = cfg.encoder_layers * S + cfg.decoder_layers * N * T
      full = cfg.remat == "full"
      # Kept per layer: its input; without rematerialisation all that it computes.
      each = cfg.d_model if full else 6 * cfg.d_model + 3 * cfg.d_ff / tensor
      saved += b * tokens * each * width
      if cfg.remat == "none":
        saved += cfg.encoder_layers * b * cfg.num_heads / tensor * S * S * (4 + width)
    copies = SCORES_BACKWARD if work.kind == "train" else SCORES
    scores = copies * b * cfg.num_heads / tensor * S * S * 4
    mlp = b * S * (4 * cfg.d_model + 3 * cfg.d_ff / tensor) * width
    logits = (
      (3 if work.kind == "train" else 2) * b * N * T * cfg.vocab_rows / tensor * 4
    )
    cache = 0.0
    if work.kind in ("rollout", "sample") and T > 1:
      inner = cfg.num_heads * cfg.d_kv / tensor
      cache = cfg.decoder_layers * b * (S + N * T) * inner * 2 * width
    layers = 2 * _layer_kernels(cfg) / tensor * width  # gathered, and the next one
    working = max(working, scores + mlp + logits + cache + layers)
  return Memory(
    program.argument_bytes,
    int(saved + working + _copies(program)),
    program.held_bytes,
  )


def _copies(program: Program) -> float:
  """Gradients and casts of parameters."""
  state_or_params = program.arguments[0]
  cfg = program.work.passes[0][0]
  half = _width(cfg) / 4
  if program.work.kind == "train":
    masters = device_bytes(state_or_params.params)
    # Casts of stacked kernels leave the loop over layers, all at once.
    cast = half * masters if half < 1 else 0.0
    # 4: as one compiled program has it (the 11B golden PM, 2 microbatches, v5e:4x4).
    return masters * (4.0 if program.work.microbatches > 1 else 1.0) + cast
  if program.work.kind in ("rollout", "sample"):
    policy = next(a for a in program.arguments if not isinstance(a, t5.T5))
    # Decoding has a copy of its own, of single layers, in the compute dtype.
    is_cast = _a_kernel(policy).dtype != program.work.passes[0][0].dtype
    return device_bytes(policy) * (half if is_cast else 1.0)
  return 0.0


def _a_kernel(params: Any) -> Any:
  layers = params["decoder"]["layers"]
  layer = layers[0] if isinstance(layers, list) else layers
  return layer["mlp"]["down"]["kernel"]


def _width(cfg: t5.T5Config) -> int:
  return 2 if cfg.dtype == "bfloat16" else 4


def _layer_kernels(cfg: t5.T5Config) -> int:
  """Parameters of a decoder layer."""
  inner = cfg.num_heads * cfg.d_kv
  return 8 * cfg.d_model * inner + (3 if cfg.gated else 2) * cfg.d_model * cfg.d_ff


def flops(program: Program) -> float:
  """Operations of its matrix products over all devices, recomputation not counted.

  A product of [m, k] and [k, n] counts 2mkn; a backward pass as two forward passes.
  """
  forward = sum(
    rows * forward_flops(cfg, S, N * T, T) for cfg, rows, S, N, T in program.work.passes
  )
  times = 3 if program.work.kind == "train" else 1
  return times * program.work.microbatches * forward


def forward_flops(cfg: t5.T5Config, S: int, tokens: int, T: int) -> int:  # noqa: N803
  """One prompt of S tokens, with responses of T tokens each and `tokens` together."""
  D, V, H = cfg.d_model, cfg.vocab_rows, cfg.num_heads * cfg.d_kv
  mlp = 2 * (3 if cfg.gated else 2) * D * cfg.d_ff
  encoder = S * cfg.encoder_layers * (8 * D * H + mlp + 4 * S * H)
  decoder = tokens * (12 * D * H + mlp + 4 * T * H + 4 * S * H) + S * 4 * D * H
  return encoder + cfg.decoder_layers * decoder + tokens * 2 * D * V
