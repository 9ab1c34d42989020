"""T5's files: the original, T5 1.1, and tied ones whose logits are not scaled."""

from pathlib import Path
from typing import Any

from alignment.models import t5
from alignment.models.huggingface import tensors
from alignment.models.huggingface.formats import Format, Parameters
from alignment.models.huggingface.settings import MAX_LAYERS, MAX_SIZE, Settings
from alignment.types import UserError

SIZES = {  # T5Config's name -> config.json's
  "d_model": "d_model",
  "d_ff": "d_ff",
  "d_kv": "d_kv",
  "num_heads": "num_heads",
  "encoder_layers": "num_layers",
  "decoder_layers": "num_decoder_layers",
  "vocab_rows": "vocab_size",
  "buckets": "relative_attention_num_buckets",
  "max_distance": "relative_attention_max_distance",
}
_DEFAULTS = {  # transformers' own, for keys that its early versions did not write
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "layer_norm_epsilon": 1e-6,
  "feed_forward_proj": "relu",
  "tie_word_embeddings": True,
}
_PARTS = {
  "encoder": {
    "attention_norm": "layer.0.layer_norm",
    "attention": "layer.0.SelfAttention",
    "mlp_norm": "layer.1.layer_norm",
    "mlp": "layer.1.DenseReluDense",
  },
  "decoder": {
    "self_norm": "layer.0.layer_norm",
    "self_attention": "layer.0.SelfAttention",
    "cross_norm": "layer.1.layer_norm",
    "cross_attention": "layer.1.EncDecAttention",
    "mlp_norm": "layer.2.layer_norm",
    "mlp": "layer.2.DenseReluDense",
  },
}
_KERNELS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_KERNELS |= {"gate": "wi_0", "up": "wi_1", "down": "wo"}  # without a gate, `up` is wi
_SHARED = "shared.weight"
_HEAD = "lm_head.weight"
# The shared embedding's other names: present or not, depending on who wrote the file.
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# The first T5 checkpoints hold this table; no T5 uses it.
_UNUSED = (
  r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)


def _parse(path: Path, entries: dict[str, Any]) -> t5.T5Config:
  settings = Settings(path, entries, _DEFAULTS)
  settings.only("is_encoder_decoder", True)
  settings.only("pad_token_id", t5.PAD)
  settings.only("decoder_start_token_id", t5.PAD)
  settings.only("eos_token_id", 1)
  settings.only("feed_forward_proj", "gated-gelu", "relu")
  gated = settings.get("feed_forward_proj") == "gated-gelu"
  settings.only("is_gated_act", gated)
  settings.only("dense_act_fn", "gelu_new" if gated else "relu")
  tied, scaled = _head(settings)
  defaults = _DEFAULTS | {"num_decoder_layers": settings.get("num_layers")}
  settings = Settings(path, entries, defaults)
  sizes: dict[str, Any] = {
    field: settings.integer(key, MAX_LAYERS if key.endswith("layers") else MAX_SIZE)
    for field, key in SIZES.items()
  }
  cfg = t5.T5Config(
    **sizes,
    gated=gated,
    tied=tied,
    scale_logits=scaled,
    norm_epsilon=settings.number("layer_norm_epsilon", 1),
  )
  if not 4 <= cfg.buckets < 2 * cfg.max_distance:
    raise UserError(
      f"{path}: relative_attention_num_buckets is {cfg.buckets}, expected 4 or more "
      f"and less than twice relative_attention_max_distance ({cfg.max_distance})"
    )
  return cfg


def _head(settings: Settings) -> tuple[bool, bool]:
  """Whether the head is the embedding, and whether its logits are scaled if so.

  transformers 5 writes `tie_word_embeddings: true` for every T5, and says only by
  `scale_decoder_outputs` what earlier versions said by the other: that a T5 1.1 has a
  head of its own. One that it made of a T5 1.1 configuration itself is tied and not
  scaled, which can be told by the missing head.
  """
  tied = settings.get("tie_word_embeddings")
  scaled = settings.only("scale_decoder_outputs", True, False)
  if scaled is None:
    scaled = bool(tied)
  if not scaled and tied:
    names = tensors.tensor_names(settings.path.parent)
    tied = bool(names) and _HEAD not in names
    return tied, not tied
  return bool(scaled), True


def _describe(cfg: t5.T5Config) -> dict[str, Any]:
  return {key: getattr(cfg, field) for field, key in SIZES.items()} | {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": t5.PAD,
    "dense_act_fn": "gelu_new" if cfg.gated else "relu",
    "dropout_rate": 0.0,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu" if cfg.gated else "relu",
    "is_encoder_decoder": True,
    "is_gated_act": cfg.gated,
    "layer_norm_epsilon": cfg.norm_epsilon,
    "model_type": "t5",
    "pad_token_id": t5.PAD,
    "scale_decoder_outputs": cfg.tied and cfg.scale_logits,
    "tie_word_embeddings": cfg.tied,
    "use_cache": True,
  }


def _tensors(cfg: t5.T5Config, parameters: Parameters) -> list[tensors.Tensor]:
  return [
    tensors.plain(_name(path, cfg.gated), path, shape) for path, shape in parameters
  ]


def _name(path: tuple, gated: bool) -> str:
  match path:
    case ("embedding",):
      return _SHARED
    case ("head", "kernel"):
      return _HEAD
    case (stack, "position"):
      return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    case (stack, "norm", "scale"):
      return f"{stack}.final_layer_norm.weight"
    case (stack, "layers", layer, norm, "scale"):
      return f"{stack}.block.{layer}.{_PARTS[stack][norm]}.weight"
    case (stack, "layers", layer, part, name, "kernel"):
      kernel = "wi" if name == "up" and not gated else _KERNELS[name]
      return f"{stack}.block.{layer}.{_PARTS[stack][part]}.{kernel}.weight"
  raise ValueError(f"parameter {path} has no name in Hugging Face's T5")


def _dead(cfg: t5.T5Config) -> list[int]:
  if not cfg.live_ids:
    return list(cfg.dead_ids)
  return sorted({t5.PAD, *cfg.dead_ids, *range(cfg.live_ids, cfg.vocab_rows)})


FORMAT = Format(
  parse=_parse,
  describe=_describe,
  tensors=_tensors,
  embedding=lambda cfg: (_SHARED, *_ALIASES, *((_HEAD,) if cfg.tied else ())),
  dead=_dead,
  unused=_UNUSED,
)
