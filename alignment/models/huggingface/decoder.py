"""Files of Llama, Qwen 2 and 3, Gemma 2 and 3, whose tensors have the same names."""

from pathlib import Path
from typing import Any

from alignment.models.decoder_config import FAMILIES, DecoderConfig
from alignment.models.huggingface import tensors
from alignment.models.huggingface.formats import Format, Parameters
from alignment.models.huggingface.rope import parse_ropes, rope_entries
from alignment.models.huggingface.settings import MAX_LAYERS, MAX_SIZE, Settings

MODEL_TYPES = tuple(name for name in FAMILIES if name != "gpt_neox")

ACTIVATIONS = {
  "silu": "silu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}
NAMES_OF_ACTIVATIONS = {
  ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != "gelu_new"
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_GEMMA = {
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": True,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
_COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048}
_DEFAULTS: dict[str, dict[str, Any]] = {  # transformers', for what a file may leave out
  "llama": _COMMON,
  "qwen2": _COMMON | {"max_window_layers": 28},
  "qwen3": _COMMON | {"head_dim": 128, "max_window_layers": 28},
  "gemma2": _COMMON
  | _GEMMA
  | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
  "gemma3_text": _COMMON | _GEMMA | {"sliding_window_pattern": 6},
}
_NAMES = {
  "attention_norm": "input_layernorm",
  "attention_post_norm": "post_attention_layernorm",
  "mlp_post_norm": "post_feedforward_layernorm",
  "query": "q_proj",
  "key": "k_proj",
  "value": "v_proj",
  "out": "o_proj",
  "query_norm": "q_norm",
  "key_norm": "k_norm",
  "gate": "gate_proj",
  "up": "up_proj",
  "down": "down_proj",
  "attention": "self_attn",
  "mlp": "mlp",
}
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def _parse(path: Path, entries: dict[str, Any]) -> DecoderConfig:
  model_type = entries["model_type"]
  flags, settings = FAMILIES[model_type], Settings(path, entries, _DEFAULTS[model_type])
  is_gemma = flags.get("post_norms", False)
  settings.only("use_bidirectional_attention", False)
  if model_type == "gemma3_text":
    settings.only("attn_logit_softcapping")  # transformers would not read it
  activation = "hidden_activation" if is_gemma else "hidden_act"
  settings.only(activation, *ACTIVATIONS)
  biased = settings.flag("attention_bias")
  rope, local_rope = parse_ropes(settings)
  local = _local_layers(settings)
  return DecoderConfig(
    model_type,
    **shape(settings),
    **flags
    | {
      "activation": ACTIVATIONS[settings.get(activation)],
      "qkv_bias": biased or flags.get("qkv_bias", False),
      "out_bias": biased,
      "mlp_bias": settings.flag("mlp_bias"),
    },
    tied=settings.flag("tie_word_embeddings"),
    norm_epsilon=settings.number("rms_norm_eps", 1),
    query_scalar=settings.number("query_pre_attn_scalar") if is_gemma else 0.0,
    score_cap=settings.optional_number("attn_logit_softcapping"),
    logit_cap=settings.optional_number("final_logit_softcapping"),
    rope=rope,
    local_rope=local_rope,
    local=local,
    window=settings.integer("sliding_window") if any(local) else 0,
  )


def shape(settings: Settings) -> dict[str, Any]:
  """The sizes that all families' files call the same.

  Raises:
    UserError: for heads that do not go together.
  """
  heads = settings.integer("num_attention_heads")
  shared = settings.get("num_key_value_heads", heads)
  if type(shared) is not int or shared < 1 or heads % shared:
    raise settings.complaint("num_key_value_heads", f"expected a divisor of {heads}")
  width = settings.integer("hidden_size")
  head_dim = settings.get("head_dim", width // heads)
  if type(head_dim) is not int or not 2 <= head_dim <= MAX_SIZE or head_dim % 2:
    raise settings.complaint("head_dim", "expected an even number of channels")
  return {
    "d_model": width,
    "d_ff": settings.integer("intermediate_size"),
    "num_layers": settings.integer("num_hidden_layers", MAX_LAYERS),
    "num_heads": heads,
    "num_kv_heads": shared,
    "head_dim": head_dim,
    "vocab_rows": settings.integer("vocab_size"),
    "max_positions": settings.integer("max_position_embeddings"),
  }


def _local_layers(settings: Settings) -> tuple[bool, ...]:
  """Which layers see only a window, as the shortest pattern that repeats."""
  count = settings.integer("num_hidden_layers", MAX_LAYERS)
  model_type = settings.get("model_type")
  if model_type in ("llama", "qwen2", "qwen3") and not settings.flag(
    "use_sliding_window"
  ):
    return (False,)
  kinds = settings.get("layer_types")
  if kinds is None and model_type == "gemma2":
    local = [i % 2 == 0 for i in range(count)]
  elif kinds is None and model_type == "gemma3_text":
    period = settings.integer("sliding_window_pattern")
    local = [(i + 1) % period != 0 for i in range(count)]
  elif kinds is None:
    first = settings.get("max_window_layers")
    if type(first) is not int:
      raise settings.complaint("max_window_layers", "expected an integer")
    local = [i >= first for i in range(count)]
  elif not isinstance(kinds, list) or len(kinds) != count:
    raise settings.complaint("layer_types", f"expected a list of {count}")
  elif unknown := set(map(str, kinds)) - {_LOCAL, _GLOBAL}:
    raise settings.complaint(
      "layer_types", f"but '{unknown.pop()}' is neither '{_LOCAL}' nor '{_GLOBAL}'"
    )
  else:
    local = [kind == _LOCAL for kind in kinds]
  period = next(p for p in range(1, count + 1) if _repeats(local, p))
  return tuple(local[:period])


def _repeats(values: list[bool], period: int) -> bool:
  return all(value == values[i % period] for i, value in enumerate(values))


def _describe(cfg: DecoderConfig) -> dict[str, Any]:
  is_gemma = cfg.post_norms
  described = describe_shape(cfg) | {
    "architectures": [_architecture(cfg.model_type)],
    "rms_norm_eps": cfg.norm_epsilon,
    "hidden_activation" if is_gemma else "hidden_act": NAMES_OF_ACTIVATIONS[
      cfg.activation
    ],
    "attention_bias": cfg.out_bias,
    "mlp_bias": cfg.mlp_bias,
    **rope_entries(cfg),
  }
  kinds = [_LOCAL if kind else _GLOBAL for kind in cfg.kinds]
  if cfg.model_type != "llama":
    described |= {"layer_types": kinds, "sliding_window": cfg.window or None}
  if cfg.model_type in ("qwen2", "qwen3"):
    first = kinds.index(_LOCAL) if _LOCAL in kinds else cfg.num_layers
    described |= {"use_sliding_window": any(cfg.local), "max_window_layers": first}
  if is_gemma:
    described |= {
      # transformers asks for one also where no layer has it
      "sliding_window": cfg.window or cfg.max_positions,
      "query_pre_attn_scalar": _as_integer(cfg.query_scalar or cfg.head_dim),
      "attn_logit_softcapping": cfg.score_cap or None,
      "final_logit_softcapping": cfg.logit_cap or None,
    }
  return described


def describe_shape(cfg: DecoderConfig) -> dict[str, Any]:
  """What all families' files have; special ids are for the vocabulary to say."""
  return {
    "model_type": cfg.model_type,
    "hidden_size": cfg.d_model,
    "intermediate_size": cfg.d_ff,
    "num_hidden_layers": cfg.num_layers,
    "num_attention_heads": cfg.num_heads,
    "num_key_value_heads": cfg.num_kv_heads,
    "head_dim": cfg.head_dim,
    "vocab_size": cfg.vocab_rows,
    "max_position_embeddings": cfg.max_positions,
    "tie_word_embeddings": cfg.tied,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "use_cache": True,
  }


def _as_integer(value: float) -> float | int:
  return int(value) if value == int(value) else value


def _architecture(model_type: str) -> str:
  if model_type == "gemma3_text":
    return "Gemma3ForCausalLM"
  return f"{model_type.capitalize()}ForCausalLM"


def _tensors(cfg: DecoderConfig, parameters: Parameters) -> list[tensors.Tensor]:
  return [tensors.plain(_name(path, cfg), path, shape) for path, shape in parameters]


def _name(path: tuple, cfg: DecoderConfig) -> str:
  names = dict(_NAMES)
  # What Llama calls the norm after attention is the one before the MLP.
  names["mlp_norm"] = (
    "pre_feedforward_layernorm" if cfg.post_norms else "post_attention_layernorm"
  )
  match path:
    case ("embedding",):
      return _EMBEDDING
    case ("norm", "scale"):
      return "model.norm.weight"
    case ("head", "kernel"):
      return _HEAD
    case ("layers", layer, *parts, leaf):
      kind = "bias" if leaf == "bias" else "weight"
      return ".".join(
        ("model.layers", str(layer), *(names[part] for part in parts), kind)
      )
  raise ValueError(f"parameter {path} has no name in Hugging Face's {cfg.model_type}")


def dead_ids(cfg: DecoderConfig) -> list[int]:
  rest = range(cfg.live_ids or cfg.vocab_rows, cfg.vocab_rows)
  return sorted({*cfg.dead_ids, *rest})


FORMAT = Format(
  parse=_parse,
  describe=_describe,
  tensors=_tensors,
  embedding=lambda cfg: (_EMBEDDING, *((_HEAD,) if cfg.tied else ())),
  dead=dead_ids,
  unused=r"rotary_emb\.inv_freq$",
)
