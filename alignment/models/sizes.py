"""Models by name: as published, and small ones of each family for tests and studies."""

from typing import Any

from alignment.models.rope import Rope

_T5_1_1 = {"gated": True, "tied": False}
_T5_1_0 = {"gated": False, "tied": True}
T5: dict[str, dict[str, Any]] = {
  # name: d_model, d_ff, d_kv, heads, layers (encoder, decoder)
  name: dict(
    zip(
      ("d_model", "d_ff", "d_kv", "num_heads", "encoder_layers", "decoder_layers"),
      shape,
      strict=True,
    )
  )
  | kind
  for name, shape, kind in (
    ("nano", (48, 96, 16, 3, 1, 2), _T5_1_1),
    ("micro", (64, 128, 16, 4, 2, 2), _T5_1_1),
    ("milli", (64, 128, 16, 4, 3, 2), _T5_1_1),
    ("tiny", (128, 256, 32, 4, 2, 2), _T5_1_1),
    ("mini", (256, 512, 64, 4, 4, 4), _T5_1_1),
    ("t5_1_1_small", (512, 1024, 64, 6, 8, 8), _T5_1_1),
    ("t5_1_1_base", (768, 2048, 64, 12, 12, 12), _T5_1_1),
    ("t5_1_1_large", (1024, 2816, 64, 16, 24, 24), _T5_1_1),
    ("t5_1_1_xl", (2048, 5120, 64, 32, 24, 24), _T5_1_1),
    ("t5_1_1_xxl", (4096, 10240, 64, 64, 24, 24), _T5_1_1),
    ("t5_small", (512, 2048, 64, 8, 6, 6), _T5_1_0),
    ("t5_base", (768, 3072, 64, 12, 12, 12), _T5_1_0),
    ("t5_large", (1024, 4096, 64, 16, 24, 24), _T5_1_0),
    ("t5_3b", (1024, 16384, 128, 32, 24, 24), _T5_1_0),
    ("t5_11b", (1024, 65536, 128, 128, 24, 24), _T5_1_0),
  )
}


def _decoders(
  model_type: str, names: tuple[str, ...], rows: tuple[tuple, ...], **common: Any
) -> dict[str, dict[str, Any]]:
  """Rows of a family's table: a name, values of `names`, and what else is its own."""
  sizes = {}
  for name, *values in rows:
    own = values.pop() if len(values) > len(names) else {}
    sizes[name] = {
      "model_type": model_type, **common, **dict(zip(names, values, strict=True)), **own
    }  # fmt: skip
  return sizes


_COLUMNS = ("d_model", "d_ff", "num_layers", "num_heads", "num_kv_heads", "head_dim")
_LLAMA_3 = {
  "vocab_rows": 128256,
  "max_positions": 131072,
  "rope": Rope(500_000.0, "llama3", factor=8.0),
}
_LLAMA_3_2 = _LLAMA_3 | {"rope": Rope(500_000.0, "llama3", factor=32.0), "tied": True}
_QWEN = {"max_positions": 32768, "rope": Rope(1e6), "norm_epsilon": 1e-6}
_GEMMA = {"tied": True, "norm_epsilon": 1e-6}
_GEMMA_2 = _GEMMA | {
  "vocab_rows": 256000,
  "local": (True, False),
  "window": 4096,
  "query_scalar": 256.0,
  "score_cap": 50.0,
  "logit_cap": 30.0,
}
_GEMMA_3 = _GEMMA | {
  "max_positions": 32768,
  "vocab_rows": 262144,
  "local": (True,) * 5 + (False,),
  "window": 512,
  "query_scalar": 256.0,
  "rope": Rope(1e6),
  "local_rope": Rope(),
}
_PICO = (32, 64, 2, 2, 1, 16)
_NANO = (48, 96, 2, 4, 2, 16)
_MICRO = (64, 128, 3, 4, 2, 16)
_MILLI = (64, 128, 4, 4, 2, 16)
_TINY = (128, 256, 4, 4, 2, 32)
_SMALL_GEMMA = {"window": 16, "query_scalar": 16.0, "local": (True, False)}

# model.size -> the fields of a DecoderConfig in which it differs from its family.
DECODERS: dict[str, dict[str, Any]] = {
  **_decoders(
    "llama",
    _COLUMNS,
    (
      ("llama_pico", *_PICO),
      ("llama_nano", *_NANO),
      ("llama_micro", *_MICRO),
      ("llama_milli", *_MILLI),
      ("llama_tiny", *_TINY),
      ("smollm2_135m", 576, 1536, 30, 9, 3, 64),
      ("smollm2_360m", 960, 2560, 32, 15, 5, 64),
      ("smollm2_1_7b", 2048, 8192, 24, 32, 32, 64, {"rope": Rope(130_000.0)}),
      ("llama_3_2_1b", 2048, 8192, 16, 32, 8, 64, _LLAMA_3_2),
      ("llama_3_2_3b", 3072, 8192, 28, 24, 8, 128, _LLAMA_3_2),
      ("llama_3_1_8b", 4096, 14336, 32, 32, 8, 128, _LLAMA_3 | {"tied": False}),
      ("llama_3_1_70b", 8192, 28672, 80, 64, 8, 128, _LLAMA_3 | {"tied": False}),
    ),
    vocab_rows=49152,
    rope=Rope(100_000.0),
    tied=True,
  ),
  **_decoders(
    "qwen2",
    _COLUMNS,
    (
      ("qwen2_nano", *_NANO, {"tied": True}),
      ("qwen2_micro", *_MICRO, {"tied": True}),
      ("qwen2_milli", *_MILLI, {"tied": True}),
      ("qwen2_tiny", *_TINY, {"tied": True}),
      ("qwen2_5_0_5b", 896, 4864, 24, 14, 2, 64, {"tied": True}),
      ("qwen2_5_1_5b", 1536, 8960, 28, 12, 2, 128, {"tied": True}),
      ("qwen2_5_3b", 2048, 11008, 36, 16, 2, 128, {"tied": True}),
      ("qwen2_5_7b", 3584, 18944, 28, 28, 4, 128, {"vocab_rows": 152064}),
      ("qwen2_5_14b", 5120, 13824, 48, 40, 8, 128, {"vocab_rows": 152064}),
      ("qwen2_5_32b", 5120, 27648, 64, 40, 8, 128, {"vocab_rows": 152064}),
      ("qwen2_5_72b", 8192, 29568, 80, 64, 8, 128, {"vocab_rows": 152064}),
    ),
    vocab_rows=151936,
    **_QWEN,
  ),
  **_decoders(
    "qwen3",
    _COLUMNS,
    (
      ("qwen3_nano", *_NANO, {"tied": True}),
      ("qwen3_micro", *_MICRO, {"tied": True}),
      ("qwen3_milli", *_MILLI, {"tied": True}),
      ("qwen3_tiny", *_TINY, {"tied": True}),
      ("qwen3_0_6b", 1024, 3072, 28, 16, 8, 128, {"tied": True}),
      ("qwen3_1_7b", 2048, 6144, 28, 16, 8, 128, {"tied": True}),
      ("qwen3_4b", 2560, 9728, 36, 32, 8, 128, {"tied": True}),
      ("qwen3_8b", 4096, 12288, 36, 32, 8, 128),
      ("qwen3_14b", 5120, 17408, 40, 40, 8, 128),
      ("qwen3_32b", 5120, 25600, 64, 64, 8, 128),
    ),
    vocab_rows=151936,
    **_QWEN,
  ),
  **_decoders(
    "gemma2",
    _COLUMNS,
    (
      ("gemma2_nano", *_NANO, _SMALL_GEMMA),
      ("gemma2_micro", *_MICRO, _SMALL_GEMMA),
      ("gemma2_milli", *_MILLI, _SMALL_GEMMA),
      ("gemma2_tiny", *_TINY, {"window": 32, "query_scalar": 32.0}),
      ("gemma2_2b", 2304, 9216, 26, 8, 4, 256),
      ("gemma2_9b", 3584, 14336, 42, 16, 8, 256),
      ("gemma2_27b", 4608, 36864, 46, 32, 16, 128, {"query_scalar": 144.0}),
    ),
    **_GEMMA_2,
  ),
  **_decoders(
    "gemma3_text",
    _COLUMNS,
    (
      ("gemma3_nano", 48, 96, 6, 4, 1, 16, {"window": 16, "query_scalar": 16.0}),
      ("gemma3_micro", *_MICRO, _SMALL_GEMMA),
      ("gemma3_milli", *_MILLI, _SMALL_GEMMA),
      ("gemma3_tiny", 128, 256, 6, 4, 1, 32, {"window": 32, "query_scalar": 32.0}),
      ("gemma3_270m", 640, 2048, 18, 4, 1, 256),
      ("gemma3_1b", 1152, 6912, 26, 4, 1, 256),
    ),
    **_GEMMA_3,
  ),
  **_decoders(
    "gpt_neox",
    (*_COLUMNS, "rotary_dim"),
    (
      ("pythia_nano", 48, 192, 2, 3, 3, 16, 4),
      ("pythia_micro", 64, 256, 3, 4, 4, 16, 4),
      ("pythia_milli", 64, 256, 4, 4, 4, 16, 4),
      ("pythia_tiny", 128, 512, 4, 4, 4, 32, 8),
      ("pythia_70m", 512, 2048, 6, 8, 8, 64, 16),
      ("pythia_160m", 768, 3072, 12, 12, 12, 64, 16),
      ("pythia_410m", 1024, 4096, 24, 16, 16, 64, 16),
      ("pythia_1b", 2048, 8192, 16, 8, 8, 256, 64),
      ("pythia_1_4b", 2048, 8192, 24, 16, 16, 128, 32),
      ("pythia_2_8b", 2560, 10240, 32, 32, 32, 80, 20),
      ("pythia_6_9b", 4096, 16384, 32, 32, 32, 128, 32, {"vocab_rows": 50432}),
      ("pythia_12b", 5120, 20480, 36, 40, 40, 128, 32, {"vocab_rows": 50688}),
    ),
    vocab_rows=50304,
    max_positions=2048,
    parallel=True,
  ),
}
