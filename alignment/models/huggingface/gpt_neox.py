"""Files of GPT-NeoX (Pythia): queries, keys and values are one tensor, head by head."""

from collections.abc import Iterable
import functools
from pathlib import Path
from typing import Any

import numpy as np

from alignment.models.decoder_config import FAMILIES, DecoderConfig
from alignment.models.huggingface import decoder, tensors
from alignment.models.huggingface.formats import Format, Parameters
from alignment.models.huggingface.rope import parse_rope, rope_entries
from alignment.models.huggingface.settings import Settings

_DEFAULTS = {  # transformers', for what a file may leave out
  "layer_norm_eps": 1e-5,
  "hidden_act": "gelu",
  "attention_bias": True,
  "use_parallel_residual": True,
  "rotary_pct": 0.25,
  "rotary_emb_base": 10_000,
  "max_position_embeddings": 2048,
}
_NAMES = {
  "attention_norm": "input_layernorm",
  "mlp_norm": "post_attention_layernorm",
  "attention": "attention",
  "out": "dense",
  "mlp": "mlp",
  "up": "dense_h_to_4h",
  "down": "dense_4h_to_h",
}
_FUSED = ("query", "key", "value")
_EMBEDDING = "gpt_neox.embed_in.weight"
_HEAD = "embed_out.weight"


def _parse(path: Path, entries: dict[str, Any]) -> DecoderConfig:
  settings = Settings(path, entries, _DEFAULTS)
  settings.only("hidden_act", *decoder.ACTIVATIONS)
  # `rotary_emb_base` and `rotary_pct` are what others call rope_theta, and the share of
  # a head's channels that turn.
  given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
  rope = parse_rope(settings, given, settings.get("rotary_emb_base"))
  share = Settings(path, given, {"partial_rotary_factor": settings.get("rotary_pct")})
  shape = decoder.shape(settings)
  turning = int(shape["head_dim"] * share.number("partial_rotary_factor", 1.0001))
  if turning < 2 or turning % 2:
    raise share.complaint(
      "partial_rotary_factor", f"so {turning} channels would turn: not in pairs"
    )
  biased = settings.flag("attention_bias")
  return DecoderConfig(
    "gpt_neox",
    **shape,
    **FAMILIES["gpt_neox"]
    | {
      "activation": decoder.ACTIVATIONS[settings.get("hidden_act")],
      "qkv_bias": biased,
      "out_bias": biased,
    },
    tied=settings.flag("tie_word_embeddings"),
    parallel=settings.flag("use_parallel_residual"),
    norm_epsilon=settings.number("layer_norm_eps", 1),
    rope=rope,
    rotary_dim=turning,
  )


def _describe(cfg: DecoderConfig) -> dict[str, Any]:
  share = (cfg.rotary_dim or cfg.head_dim) / cfg.head_dim
  entries = rope_entries(cfg)
  entries["rope_parameters"]["partial_rotary_factor"] = share
  names = decoder.NAMES_OF_ACTIVATIONS
  return decoder.describe_shape(cfg) | {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_bias": cfg.out_bias,
    "hidden_act": names[cfg.activation],
    "hidden_dropout": 0.0,
    "layer_norm_eps": cfg.norm_epsilon,
    "use_parallel_residual": cfg.parallel,
    "rotary_pct": share,
    "rotary_emb_base": entries.pop("rope_theta"),
    **entries,
  }


def _tensors(cfg: DecoderConfig, parameters: Parameters) -> list[tensors.Tensor]:
  listed = []
  for path, shape in parameters:
    if len(path) == 5 and path[3] in _FUSED:
      if path[3] == "query":  # stands for all three
        listed.append(_fused(cfg, path, shape))
    else:
      listed.append(tensors.plain(_name(path), path, shape))
  return listed


def _fused(cfg: DecoderConfig, path: tuple, shape: tuple[int, ...]) -> tensors.Tensor:
  """A kernel [in, H K] or bias [H K] of queries, with those of keys and values."""
  _, layer, _, _, leaf = path
  kind = "bias" if leaf == "bias" else "weight"
  return tensors.Tensor(
    f"gpt_neox.layers.{layer}.attention.query_key_value.{kind}",
    (3 * shape[-1], *shape[:-1]),
    tuple((*path[:3], part, leaf) for part in _FUSED),
    functools.partial(_split, cfg.num_heads),
    functools.partial(_join, cfg.num_heads),
  )


def _split(heads: int, tensor: np.ndarray) -> list[np.ndarray]:
  by_head = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
  return [by_head[:, i].reshape(-1, *tensor.shape[1:]).T for i in range(3)]


def _join(heads: int, leaves: Iterable[np.ndarray]) -> np.ndarray:
  parts = [leaf.T.reshape(heads, 1, -1, *leaf.shape[:-1]) for leaf in leaves]
  tensor = np.concatenate(parts, axis=1)
  return tensor.reshape(-1, *tensor.shape[3:])


def _name(path: tuple) -> str:
  match path:
    case ("embedding",):
      return _EMBEDDING
    case ("norm", leaf):
      return f"gpt_neox.final_layer_norm.{'bias' if leaf == 'bias' else 'weight'}"
    case ("head", "kernel"):
      return _HEAD
    case ("layers", layer, *parts, leaf):
      kind = "bias" if leaf == "bias" else "weight"
      names = (_NAMES[part] for part in parts)
      return ".".join(("gpt_neox.layers", str(layer), *names, kind))
  raise ValueError(f"parameter {path} has no name in Hugging Face's GPT-NeoX")


FORMAT = Format(
  parse=_parse,
  describe=_describe,
  tensors=_tensors,
  embedding=lambda cfg: (_EMBEDDING, *((_HEAD,) if cfg.tied else ())),
  dead=decoder.dead_ids,
  # Masks and angles that earlier versions stored.
  unused=r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
)
