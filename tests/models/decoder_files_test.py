"""Decoders of transformers: same logits, same greedy tokens, same tensors back."""

import functools
import json
import os
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignment.models import decoder, huggingface, registry
from alignment.models.decoder_config import FAMILIES
from alignment.models.rope import Rope
from alignment.types import UserError

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROOT = Path(__file__).parents[1] / "fixtures" / "decoders"
FIXTURES = sorted(path.name for path in ROOT.iterdir())
WEIGHTS, INDEX = huggingface.WEIGHTS, huggingface.INDEX


@functools.partial(jax.jit, static_argnums=(0, 4))
def greedy(model, params, prompts_BxS, lengths_B, length):
  """The most likely continuation, BxT, which no id ends."""
  params = model.for_decoding(params)
  context = model.prepare(params, prompts_BxS, lengths_B, for_decoding=True)

  def step(carry, position):
    cache, token_Bx1 = carry
    logits, cache = model.decode_step(params, context, cache, token_Bx1, position)
    token_Bx1 = logits.argmax(-1).astype(jnp.int32)
    return (cache, token_Bx1), token_Bx1[:, 0]

  carry = model.init_cache(params, context, 1, length), context.start_B[:, None]
  return jax.lax.scan(step, carry, jnp.arange(length))[1].T


@functools.partial(jax.jit, static_argnums=0)
def teacher_forced(model, params, prompts_BxS, lengths_B, responses_BxNxT):
  context = model.prepare(params, prompts_BxS, lengths_B)
  return model.logits(params, model.hidden(params, context, responses_BxNxT))


def assert_agrees_with_transformers(directory: Path, scan_layers: bool) -> None:
  """The checkpoint in `directory` computes what its `expected.npz` says."""
  cfg = huggingface.read_config(directory, scan_layers=scan_layers)
  model, params = registry.model(cfg), huggingface.read_params(directory, cfg)
  expected = np.load(directory / "expected.npz")
  inputs = params, expected["prompts_BxS"], expected["lengths_B"].astype(np.int32)
  logits = teacher_forced(model, *inputs, expected["responses_BxNxT"])
  wanted = expected["logits_BxNxTxV"]
  np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=0)
  if not scan_layers:
    wanted_BxT, eos = expected["greedy_BxT"], expected["eos"]
    tokens_BxT = np.array(greedy(model, *inputs, wanted_BxT.shape[1]))
    ended_BxT = (tokens_BxT == eos).cumsum(axis=1) > 0
    np.testing.assert_array_equal(np.where(ended_BxT, eos, tokens_BxT), wanted_BxT)


@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_transformers(name):
  assert_agrees_with_transformers(ROOT / name, scan_layers=False)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_neox"])
def test_scanned_layers_agree_with_transformers(name):
  assert_agrees_with_transformers(ROOT / name, scan_layers=True)


def test_fixtures_cover_the_features():
  configs = [huggingface.read_config(ROOT / name) for name in FIXTURES]
  assert {c.model_type for c in configs} == set(FAMILIES)
  assert {c.rope.kind for c in configs} == {"default", "linear", "llama3"}
  assert {c.tied for c in configs} == {c.parallel for c in configs} == {True, False}
  assert sum(c.head_dim * c.num_heads != c.d_model for c in configs) >= 6
  assert any(c.num_kv_heads == 1 < c.num_heads for c in configs)
  prompt = np.load(ROOT / "gemma2" / "expected.npz")["prompts_BxS"].shape[1]
  windows = {c.model_type: c.window for c in configs if any(c.local)}
  assert set(windows) == {"qwen2", "gemma2", "gemma3_text"}
  assert all(0 < window < prompt for window in windows.values())


@pytest.mark.parametrize("name", FIXTURES)
def test_read_then_write_gives_the_same_tensors(tmp_path, name):
  for scan_layers, max_shard_bytes in ((False, 10**9), (True, 4000)):
    cfg = huggingface.read_config(ROOT / name, scan_layers=scan_layers)
    params = huggingface.read_params(ROOT / name, cfg)
    out = tmp_path / str(scan_layers)
    huggingface.write(out, cfg, params, max_shard_bytes=max_shard_bytes)
    files = sorted(out.glob("*.safetensors"))
    assert (out / INDEX).exists() == (len(files) > 1) == scan_layers
    written = {k: v for file in files for k, v in load_file(file).items()}
    original = load_file(ROOT / name / WEIGHTS)
    assert {k: v.tobytes() for k, v in written.items()} == {
      k: v.tobytes() for k, v in original.items()
    }
    assert huggingface.read_config(out, scan_layers=scan_layers) == cfg
    jax.tree.map(
      np.testing.assert_array_equal, huggingface.read_params(out, cfg), params
    )


def test_what_we_write_says_what_transformers_says(tmp_path):
  """Of every key that both write; of the others, tests/peers loads our files."""
  unlike = {"rope_parameters", "dtype", "max_window_layers"}
  for name in FIXTURES:
    cfg = huggingface.read_config(ROOT / name)
    huggingface.write(tmp_path / name, cfg, huggingface.read_params(ROOT / name, cfg))
    theirs = json.loads((ROOT / name / "config.json").read_text())
    ours = json.loads((tmp_path / name / "config.json").read_text())
    for key in (set(ours) & set(theirs)) - unlike:
      assert ours[key] == theirs[key], (name, key)


def test_bfloat16_files(tmp_path):
  cfg = huggingface.read_config(ROOT / "gpt_neox")
  params = huggingface.read_params(ROOT / "gpt_neox", cfg)
  huggingface.write(tmp_path / "half", cfg, params, dtype="bfloat16")
  rounded = huggingface.read_params(tmp_path / "half", cfg)

  def check(leaf, exact):
    assert leaf.dtype == np.float32
    kind = huggingface.DTYPES["bfloat16"]
    np.testing.assert_array_equal(leaf, exact.astype(kind).astype(np.float32))

  jax.tree.map(check, rounded, params)


def test_dead_ids_and_special_ids_are_written(tmp_path):
  special = {"eos_token_id": [7, 9], "bos_token_id": 0, "pad_token_id": 7}
  cfg = huggingface.read_config(ROOT / "qwen2", live_ids=36, dead_ids=(3,))
  params = huggingface.read_params(ROOT / "qwen2", cfg)
  huggingface.write(tmp_path / "out", cfg, params, about=special)
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert {key: config[key] for key in special} == special
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert generation == special | {"suppress_tokens": [3, 36, 37, 38, 39]}


@pytest.mark.parametrize("as_directory", [True, False])
def test_tokenizer_files_are_carried(tmp_path, as_directory):
  source, out = tmp_path / "tokenizer", tmp_path / "out"
  source.mkdir()
  files = {"tokenizer.json": b'{"a": "\xc3\xa9"}', "chat_template.jinja": b"{{ x }}"}
  for name, content in files.items():
    (source / name).write_bytes(content)
  (source / "README.md").write_text("not of the tokenizer")
  cfg = huggingface.read_config(ROOT / "llama")
  params = huggingface.read_params(ROOT / "llama", cfg)
  huggingface.write(out, cfg, params, tokenizer=source if as_directory else files)
  assert {name: (out / name).read_bytes() for name in files} == files
  assert sorted(p.name for p in out.iterdir()) == sorted(
    ["config.json", WEIGHTS, *files]
  )


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_honour_the_umask(tmp_path, mask, mode):
  cfg = huggingface.read_config(ROOT / "llama")
  params = huggingface.read_params(ROOT / "llama", cfg)
  before = os.umask(mask)
  try:
    huggingface.write(tmp_path / "out", cfg, params)
  finally:
    os.umask(before)
  modes = {
    path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()
  }
  assert modes == {"config.json": mode, WEIGHTS: mode}


# Checkpoints that others wrote, or damaged: `copy` is one to change.


@pytest.fixture
def copy(tmp_path):
  def make(name):
    directory = tmp_path / "checkpoint"
    shutil.copytree(ROOT / name, directory)
    return directory

  return make


def edit_config(directory, **changes):
  path = directory / "config.json"
  config = json.loads(path.read_text()) | changes
  config = {k: v for k, v in config.items() if v != "absent"}
  path.write_text(json.dumps(config))


def edit_tensors(directory, changes):
  tensors = load_file(directory / WEIGHTS) | changes
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items() if v is not None}
  save_file(tensors, directory / WEIGHTS)


def read(directory):
  return huggingface.read_params(directory, huggingface.read_config(directory))


def error_of(function, *args, **kwargs):
  with pytest.raises(UserError) as info:
    function(*args, **kwargs)
  message = str(info.value)
  assert "\n" not in message
  return message


OLD_LLAMA_3 = {
  "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
  "name, changes",
  [
    ("llama", {"rope_theta": 10000.0}),
    ("llama_biased", {"rope_theta": 100.0, "rope_scaling": OLD_LLAMA_3}),
    (
      "llama_linear",
      {"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 3}},
    ),
    ("qwen2_window", {"rope_theta": 10000.0, "layer_types": "absent"}),
    ("gemma2", {"rope_theta": 10000.0, "layer_types": "absent"}),
    (
      "gemma3",
      {"rope_theta": 500.0, "rope_local_base_freq": 30.0}
      | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}
      | {"layer_types": "absent", "sliding_window_pattern": 3},
    ),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 10000}),
  ],
)
def test_config_of_earlier_transformers(copy, name, changes):
  directory = copy(name)
  expected = huggingface.read_config(directory)
  edit_config(directory, **{"rope_parameters": "absent"} | changes)
  assert huggingface.read_config(directory) == expected


@pytest.mark.parametrize(
  "name, changes, complaint",
  [
    ("llama", {"model_type": "mamba"}, "model_type is 'mamba', only 't5' or "),
    (
      "llama",
      {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
      "RoPE type 'yarn' is not implemented; only default, linear, llama3 are",
    ),
    ("qwen2", {"rope_scaling": {"type": "dynamic"}}, "RoPE type 'dynamic' is not"),
    ("qwen3", {"rope_parameters": [1]}, "rope_parameters is [1], expected an object"),
    (
      "gemma3",
      {"rope_parameters": {"rope_theta": 10.0}},
      "rope_parameters is {'rope_theta': 10.0}, expected full_attention and ",
    ),
    (
      "qwen2_window",
      {"layer_types": "absent", "max_window_layers": "1"},
      "max_window_",
    ),
    ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu', only 'silu' or "),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a div"),
    ("llama", {"head_dim": 5}, "head_dim is 5, expected an even number of channels"),
    ("qwen3", {"vocab_size": "40"}, "vocab_size is '40', expected an integer from 1"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types is ['full_attention"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, onl"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is"),
    (
      "gemma3",
      {"layer_types": ["linear_attention"] * 3},
      "layer_types is ['linear_attention', 'linear_attention', 'linear_attention'], ",
    ),
    ("llama_linear", {"rms_norm_eps": 2}, "rms_norm_eps is 2, expected a number in"),
    (
      "gpt_neox",
      {"rope_parameters": {"partial_rotary_factor": 0.4}},
      "partial_rotary_factor is 0.4, so 3 channels would turn: not in pairs",
    ),
    (
      "llama",
      {"quantization_config": {"quant_method": "gptq"}},
      "its weights are quantised ({'quant_method': 'gptq'}); convert it: python -c ",
    ),
  ],
)
def test_config_faults(copy, name, changes, complaint):
  directory = copy(name)
  edit_config(directory, **changes)
  message = error_of(huggingface.read_config, directory)
  assert message.startswith(f"{directory / 'config.json'}: {complaint}")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.gguf"])
def test_weights_of_another_format_come_with_the_line_that_converts_them(copy, file):
  directory = copy("llama")
  (directory / WEIGHTS).rename(directory / file)
  option = f", gguf_file='{file}'" if file.endswith("gguf") else ""
  assert error_of(read, directory) == (
    f"{directory}: has {file}, but only safetensors are read; convert it: "
    'python -c "from transformers import AutoModelForCausalLM as M; '
    f"M.from_pretrained('{directory}'{option})"
    f".save_pretrained('{directory}-safetensors')\" and copy its tokenizer files"
  )


def test_more_ids_than_rows():
  message = error_of(huggingface.read_config, ROOT / "llama", live_ids=41)
  assert message.endswith("vocab_size is 40, but 41 are in use")


QUERY = "model.layers.1.self_attn.q_proj.weight"
FUSED = "gpt_neox.layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize(
  "name, tensor, value, complaint",
  [
    ("llama", QUERY, None, "is missing; config.json asks for shape (24, 16)"),
    ("llama", QUERY, np.zeros((16, 24), "f"), "has shape (16, 24); config.json asks "),
    ("llama", QUERY, np.zeros((24, 16), np.int8), "is I8, expected F32, BF16 or F16"),
    ("llama", "model.more", np.zeros(1, "f"), "is not in config.json's model"),
    ("gpt_neox", FUSED, np.zeros((16, 48), "f"), "has shape (16, 48); config.json ask"),
    (
      "qwen2",
      "lm_head.weight",
      None,
      "is missing; config.json asks for shape (40, 16)",
    ),
    ("qwen3", "lm_head.weight", np.ones((40, 16), "f"), "differs from 'model.embed_to"),
  ],
)
def test_tensor_faults(copy, name, tensor, value, complaint):
  directory = copy(name)
  edit_tensors(directory, {tensor: value})
  message = error_of(read, directory)
  assert f": tensor '{tensor}' {complaint}" in message


def test_tensors_that_hold_no_parameter(copy):
  directory = copy("gpt_neox")
  expected = read(directory)
  buffers = ("bias", "masked_bias", "rotary_emb.inv_freq")
  name = "gpt_neox.layers.0.attention."
  edit_tensors(directory, {name + buffer: np.ones(3, "f") for buffer in buffers})
  jax.tree.map(np.testing.assert_array_equal, read(directory), expected)


def test_a_copy_of_a_tied_head(copy):
  directory = copy("llama")
  expected = read(directory)
  table = load_file(directory / WEIGHTS)["model.embed_tokens.weight"]
  edit_tensors(directory, {"lm_head.weight": table})
  jax.tree.map(np.testing.assert_array_equal, read(directory), expected)


def test_checkpoint_of_another_model():
  cfg = registry.config("llama_nano", vocab_rows=40)
  message = error_of(huggingface.read_params, ROOT / "llama", cfg)
  assert message.endswith("in the config: it is a checkpoint of another model")
  other = huggingface.read_config(ROOT / "qwen2")
  message = error_of(huggingface.read_params, ROOT / "llama", other)
  assert message.endswith("it is a checkpoint of another model")


def test_a_rope_that_is_not_implemented():
  with pytest.raises(UserError, match="RoPE type 'yarn' is not implemented; only "):
    Rope(kind="yarn")


def test_every_family_has_a_reader():
  assert set(huggingface.FORMATS) == set(registry.MODEL_TYPES) == {"t5", *FAMILIES}
  assert isinstance(registry.model(registry.config("gemma3_nano")), decoder.Decoder)
