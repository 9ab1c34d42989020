"""Rotary embeddings in a config.json, as transformers 5 writes them and as before."""

from typing import Any

from alignment.models.decoder_config import DecoderConfig
from alignment.models.huggingface.settings import Settings
from alignment.models.rope import Rope
from alignment.types import UserError

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_LLAMA_3 = {  # Rope's field -> the files'
  "factor": "factor",
  "low_freq_factor": "low_freq_factor",
  "high_freq_factor": "high_freq_factor",
  "original_length": "original_max_position_embeddings",
}
_FIELDS: dict[str, dict[str, str]] = {
  "default": {},
  "linear": {"factor": "factor"},
  "llama3": _LLAMA_3,
}


def parse_ropes(settings: Settings) -> tuple[Rope, Rope | None]:
  """The embedding, and that of local layers where they have their own.

  Raises:
    UserError: for a type that is not implemented.
  """
  is_gemma3 = settings.get("model_type") == "gemma3_text"
  theta = settings.get("rope_theta", 1e6 if is_gemma3 else 1e4)
  given = settings.get("rope_parameters") or {}
  if not isinstance(given, dict):
    raise settings.complaint("rope_parameters", "expected an object")
  nested = bool({_LOCAL, _GLOBAL} & set(given))
  if not is_gemma3:
    scaling = settings.get("rope_scaling") or (given.get(_GLOBAL) if nested else given)
    return parse_rope(settings, scaling, theta), None
  if given and not nested:
    raise settings.complaint(
      "rope_parameters", f"expected {_GLOBAL} and {_LOCAL} in it"
    )
  whole, local = (given.get(kind) if nested else None for kind in (_GLOBAL, _LOCAL))
  base = settings.get("rope_local_base_freq", 1e4)
  return (
    parse_rope(settings, settings.get("rope_scaling") or whole, theta),
    parse_rope(settings, local, base),
  )


def parse_rope(settings: Settings, given: Any, theta: float) -> Rope:
  """One entry: `given` is an object of `rope_parameters` or `rope_scaling`, or None."""
  given = {} if given is None else given
  if not isinstance(given, dict):
    raise UserError(f"{settings.path}: rope_parameters is {given!r}, not an object")
  own = Settings(
    settings.path,
    given,
    {
      "rope_theta": theta,
      "rope_type": given.get("type", "default"),
      "original_max_position_embeddings": settings.get("max_position_embeddings"),
    },
  )
  kind = own.get("rope_type")
  if kind not in _FIELDS:
    choices = ", ".join(_FIELDS)
    raise UserError(
      f"{settings.path}: RoPE type '{kind}' is not implemented; only {choices} are"
    )
  values: dict[str, Any] = {
    field: own.number(key) for field, key in _FIELDS[kind].items()
  }
  if "original_length" in values:
    values["original_length"] = own.integer("original_max_position_embeddings")
  return Rope(own.number("rope_theta"), kind, **values)


def rope_entries(cfg: DecoderConfig) -> dict[str, Any]:
  """Both forms: a reader of one must not fall back to its defaults without a word."""
  whole = _entry(cfg.rope)
  scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
  entries = {
    "rope_parameters": whole,
    "rope_theta": cfg.rope.theta,
    "rope_scaling": None if cfg.rope.kind == "default" else scaling,
  }
  if cfg.local_rope:
    both = {_GLOBAL: whole, _LOCAL: _entry(cfg.local_rope)}
    entries |= {"rope_parameters": both, "rope_local_base_freq": cfg.local_rope.theta}
  return entries


def _entry(rope: Rope) -> dict[str, Any]:
  values = {key: getattr(rope, field) for field, key in _FIELDS[rope.kind].items()}
  return {"rope_type": rope.kind, "rope_theta": rope.theta, **values}
