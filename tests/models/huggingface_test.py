"""T5 checkpoints of transformers: same logits, same greedy tokens, same bytes back."""

import dataclasses
import functools
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignment.core import sampling
from alignment.models import huggingface, t5
from alignment.types import UserError
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROOT = Path(__file__).parents[1] / "fixtures" / "t5"
FIXTURES = sorted(path.name for path in ROOT.iterdir())
WEIGHTS, INDEX = huggingface.WEIGHTS, huggingface.INDEX


@functools.partial(jax.jit, static_argnums=0)
def compute(model, params, prompts_BxS, lengths_B, responses_BxNxT):
  """(teacher-forced logits, greedy tokens Bx1xT: only from layers that are a list)."""
  context = model.prepare(params, prompts_BxS, lengths_B, for_decoding=True)
  hidden_BxNxTxD = model.hidden(params, context, responses_BxNxT)
  logits_BxNxTxV = model.logits(params, hidden_BxNxTxD)
  if model.cfg.scan_layers:
    return logits_BxNxTxV, None
  draws_Bx1xT = jnp.zeros_like(responses_BxNxT[:, :1], jnp.float32)  # greedy has no use
  greedy = sampling.Sampler(model, ending_ids=(1,), temperature=0.0)
  samples = sampling.sample(greedy, params, context, draws_Bx1xT)
  return logits_BxNxTxV, samples.tokens_BxNxT


def assert_agrees_with_transformers(directory: Path, scan_layers: bool) -> None:
  """The checkpoint in `directory` computes what its `expected.npz` says."""
  cfg = huggingface.read_config(directory, scan_layers=scan_layers)
  params = huggingface.read_params(directory, cfg)
  expected = np.load(directory / "expected.npz")
  prompts_BxS, lengths_B = expected["prompts_BxS"], expected["mask_BxS"].sum(axis=1)
  logits_BxNxTxV, greedy_Bx1xT = compute(
    t5.T5(cfg), params, prompts_BxS, lengths_B, expected["responses_BxNxT"]
  )
  wanted = expected["logits_BxNxTxV"]
  np.testing.assert_allclose(logits_BxNxTxV, wanted, atol=1e-4, rtol=0)
  if not scan_layers:
    np.testing.assert_array_equal(greedy_Bx1xT[:, 0], expected["greedy_BxT"])


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_transformers(name, scan_layers):
  assert_agrees_with_transformers(ROOT / name, scan_layers)


def test_fixtures_cover_the_features():
  configs = [huggingface.read_config(ROOT / name) for name in FIXTURES]
  assert {(c.gated, c.tied) for c in configs} == {
    (gated, tied) for gated in (True, False) for tied in (True, False)
  }
  assert any(c.encoder_layers < c.decoder_layers for c in configs)
  assert any(c.encoder_layers > c.decoder_layers for c in configs)
  assert sum(c.d_kv * c.num_heads != c.d_model for c in configs) >= 5


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("name", ["original", "t5_1_1"])
def test_read_then_write_gives_the_same_bytes(
  tmp_path, name, max_shard_bytes, scan_layers
):
  cfg = huggingface.read_config(ROOT / name, scan_layers=scan_layers)
  params = huggingface.read_params(ROOT / name, cfg)
  out = tmp_path / "runs" / "out"
  huggingface.write(out, cfg, params, max_shard_bytes=max_shard_bytes)
  assert [path.name for path in out.parent.iterdir()] == ["out"]
  files = sorted(out.glob("*.safetensors"))
  assert (out / INDEX).exists() == (len(files) > 1) == (max_shard_bytes == 20_000)
  written = {k: v for file in files for k, v in load_file(file).items()}
  original = load_file(ROOT / name / WEIGHTS)
  assert {k: v.tobytes() for k, v in written.items()} == {
    k: v.tobytes() for k, v in original.items()
  }
  assert huggingface.read_config(out, scan_layers=scan_layers) == cfg
  jax.tree.map(np.testing.assert_array_equal, huggingface.read_params(out, cfg), params)
  theirs = json.loads((ROOT / name / "config.json").read_text())
  ours = json.loads((out / "config.json").read_text())
  # transformers 5 writes `tie_word_embeddings: true` whatever the model is.
  unlike = {"dropout_rate", "tie_word_embeddings"}
  assert {k: v for k, v in ours.items() if k not in unlike}.items() <= theirs.items()


def test_shards_keep_to_their_size(tmp_path):
  cfg = huggingface.read_config(ROOT / "original")
  params = huggingface.read_params(ROOT / "original", cfg)
  huggingface.write(tmp_path / "out", cfg, params, max_shard_bytes=8000)
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  sizes = [sum(v.nbytes for v in load_file(file).values()) for file in files]
  assert max(sizes) <= 8000 and len(files) > 5
  index = json.loads((tmp_path / "out" / INDEX).read_text())
  assert index["metadata"]["total_size"] == sum(sizes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path, dtype):
  cfg = huggingface.read_config(ROOT / "t5_1_1")
  params = huggingface.read_params(ROOT / "t5_1_1", cfg)
  huggingface.write(tmp_path / "half", cfg, params, dtype=dtype)
  rounded = huggingface.read_params(tmp_path / "half", cfg)
  kind = huggingface.DTYPES[dtype]

  def check(leaf, exact):
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, exact.astype(kind).astype(np.float32))

  jax.tree.map(check, rounded, params)
  huggingface.write(tmp_path / "again", cfg, rounded, dtype=dtype)
  files = [(tmp_path / d / WEIGHTS).read_bytes() for d in ("half", "again")]
  assert files[0] == files[1]


def test_dead_ids_are_suppressed_when_transformers_generates(tmp_path):
  cfg = dataclasses.replace(t5.config("nano", vocab_rows=128), live_ids=53)
  huggingface.write(tmp_path / "a", cfg, tiny.params(0, cfg))
  found = json.loads((tmp_path / "a" / "generation_config.json").read_text())
  assert found["suppress_tokens"] == [0, *range(53, 128)]
  cfg = dataclasses.replace(cfg, live_ids=0)  # all are
  huggingface.write(tmp_path / "b", cfg, tiny.params(0, cfg))
  assert not (tmp_path / "b" / "generation_config.json").exists()


def test_an_export_has_its_tokenizer_and_the_mode_of_any_file(tmp_path):
  cfg = huggingface.read_config(ROOT / "original")
  params = huggingface.read_params(ROOT / "original", cfg)
  huggingface.write(tmp_path / "out", cfg, params, tokenizer={"spiece.model": b"x"})
  (tmp_path / "plain").touch()
  mode = (tmp_path / "plain").stat().st_mode
  assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {mode}
  assert (tmp_path / "out" / "spiece.model").read_bytes() == b"x"


def test_choices_of_the_reader():
  cfg = huggingface.read_config(ROOT / "t5_1_1", live_ids=60, dtype="bfloat16")
  assert (cfg.live_ids, cfg.dtype, cfg.vocab_rows) == (60, "bfloat16", 64)
  params = huggingface.read_params(ROOT / "t5_1_1", cfg)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
  with pytest.raises(UserError, match="vocab_size is 64, but 65 are in use"):
    huggingface.read_config(ROOT / "t5_1_1", live_ids=65)


# Checkpoints that others wrote, or damaged: `copy` is one to change.


@pytest.fixture
def copy(tmp_path):
  def make(name="original"):
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
  tensors = load_file(directory / WEIGHTS)
  for name, change in changes.items():
    tensors[name] = change(tensors) if change else None
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


def shared(tensors):
  return tensors["shared.weight"]


@pytest.mark.parametrize("aliases", [("encoder",), ("encoder", "decoder", "head")])
@pytest.mark.parametrize("keep_shared", [True, False])
def test_other_names_of_the_shared_embedding(copy, aliases, keep_shared):
  directory = copy("original")
  expected = read(directory)
  names = {
    "encoder": "encoder.embed_tokens.weight",
    "decoder": "decoder.embed_tokens.weight",
    "head": "lm_head.weight",
  }
  edit_tensors(directory, {names[alias]: shared for alias in aliases})
  if not keep_shared:
    edit_tensors(directory, {"shared.weight": None})
  jax.tree.map(np.testing.assert_array_equal, read(directory), expected)


def test_unlike_copies_of_the_shared_embedding(copy):
  directory = copy("original")
  edit_tensors(directory, {"lm_head.weight": lambda t: shared(t) + 1})
  message = error_of(read, directory)
  assert message.startswith(f"{directory / WEIGHTS}: tensor 'lm_head.weight' differs ")


def test_the_unused_table_of_early_checkpoints(copy):
  directory = copy("original")
  expected = read(directory)
  name = "decoder.block.0.layer.{}.relative_attention_bias.weight"
  table = name.format("0.SelfAttention")
  edit_tensors(directory, {name.format("1.EncDecAttention"): lambda t: t[table] + 1})
  jax.tree.map(np.testing.assert_array_equal, read(directory), expected)


@pytest.mark.parametrize("name, tied", [("original", True), ("t5_1_1", False)])
def test_config_of_earlier_transformers(copy, name, tied):
  directory = copy(name)
  expected = huggingface.read_config(directory)
  assert expected.tied == tied
  edit_config(
    directory,
    scale_decoder_outputs="absent",
    tie_word_embeddings="absent" if tied else False,
    feed_forward_proj="absent" if tied else "gated-gelu",
    num_decoder_layers="absent",
    relative_attention_max_distance="absent",
    is_gated_act="absent",
    dense_act_fn=None,
  )
  assert huggingface.read_config(directory) == expected


@pytest.mark.parametrize(
  "changes, complaint",
  [
    ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu', only "),
    ({"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu', only 'relu' is implemented"),
    ({"is_gated_act": True}, "is_gated_act is True, only False is implemented"),
    ({"model_type": "umt5"}, "model_type is 'umt5', only 't5' or 'gpt_neox' or 'l"),
    ({"model_type": "absent"}, "model_type is None, expected one of t5, gpt_neox, "),
    ({"is_encoder_decoder": False}, "is_encoder_decoder is False, only True"),
    ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2, only 0"),
    ({"pad_token_id": 3}, "pad_token_id is 3, only 0 is implemented"),
    ({"eos_token_id": 2}, "eos_token_id is 2, only 1 is implemented"),
    (
      {"quantization_config": {"bits": 8}},
      "its weights are quantised ({'bits': 8}); convert it",
    ),
    ({"scale_decoder_outputs": "yes"}, "scale_decoder_outputs is 'yes', only True or"),
    ({"d_kv": "absent"}, "d_kv is None, expected an integer from 1"),
    ({"num_layers": "absent"}, "num_layers is None, expected an integer from 1"),
    ({"num_heads": 2.5}, "num_heads is 2.5, expected an integer from 1"),
    ({"d_ff": True}, "d_ff is True, expected an integer from 1"),
    ({"vocab_size": 0}, "vocab_size is 0, expected an integer from 1"),
    ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon is '1e-6', expected"),
    ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2, "),
    ({"relative_attention_max_distance": 16}, "relative_attention_num_buckets is 32, "),
  ],
)
def test_config_faults(copy, changes, complaint):
  directory = copy("original")
  edit_config(directory, **changes)
  message = error_of(huggingface.read_config, directory)
  assert message.startswith(f"{directory / 'config.json'}: {complaint}")


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\udcff"])
def test_damaged_config(copy, text):
  path = copy() / "config.json"
  path.unlink()
  if text is not None:
    path.write_bytes(text.encode(errors="surrogateescape"))
  assert error_of(read, path.parent).startswith(f"{path}: ")


QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
  "changes, where, complaint",
  [
    ({QUERY: None}, "", f"'{QUERY}' is missing; config.json asks for shape (16, 24)"),
    ({"shared.weight": None}, "", "'shared.weight' is missing; config.json asks for "),
    (
      {QUERY: lambda t: t[QUERY].T},
      WEIGHTS,
      f"'{QUERY}' has shape (24, 16); config.json asks for shape (16, 24)",
    ),
    (
      {QUERY: lambda t: t[QUERY].astype(np.int8)},
      WEIGHTS,
      f"'{QUERY}' is I8, expected F32, BF16 or F16",
    ),
    (
      {"encoder.block.2.extra": shared},
      WEIGHTS,
      "'encoder.block.2.extra' is not in config.json's model",
    ),
  ],
)
def test_tensor_faults(copy, changes, where, complaint):
  directory = copy("original")
  edit_tensors(directory, changes)
  message = error_of(read, directory)
  assert message.startswith(f"{directory / where}: tensor {complaint}")


@pytest.mark.parametrize("scan_layers", [False, True])
def test_tied_without_scaled_logits(copy, tmp_path, scan_layers):
  """What transformers 5 writes for a model made from a T5 1.1 configuration."""
  directory = copy("t5_1_1")
  tensors = load_file(directory / WEIGHTS)
  edit_tensors(directory, {"lm_head.weight": None})
  cfg = huggingface.read_config(directory, scan_layers=scan_layers)
  assert cfg.tied and not cfg.scale_logits
  params = huggingface.read_params(directory, cfg)
  inputs = np.full((1, 4), 3), np.array([4]), np.full((1, 1, 3), 5)
  logits, _ = compute(t5.T5(cfg), params, *inputs)
  untied = {**params, "head": {"kernel": tensors["shared.weight"].T}}
  same = t5.T5(dataclasses.replace(cfg, tied=False))
  np.testing.assert_allclose(compute(same, untied, *inputs)[0], logits, atol=1e-5)
  huggingface.write(tmp_path / "out", cfg, params)
  assert huggingface.read_config(tmp_path / "out", scan_layers=scan_layers) == cfg
  jax.tree.map(
    np.testing.assert_array_equal,
    huggingface.read_params(tmp_path / "out", cfg),
    params,
  )


def test_untied_needs_its_head(copy):
  directory = copy("t5_1_1")
  edit_tensors(directory, {"lm_head.weight": None})
  edit_config(directory, tie_word_embeddings=False)
  assert "tensor 'lm_head.weight' is missing" in error_of(read, directory)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights(copy, kept):
  path = copy() / WEIGHTS
  path.write_bytes(path.read_bytes()[:kept])
  message = error_of(read, path.parent)
  assert message.startswith(f"{path}: not a readable safetensors file (")


def test_no_weights(copy):
  directory = copy()
  (directory / WEIGHTS).unlink()
  message = error_of(read, directory)
  assert message == f"{directory}: has neither {WEIGHTS} nor {INDEX}"


def test_missing_directory(tmp_path):
  path = tmp_path / "nowhere"
  message = error_of(huggingface.read_config, path)
  assert message.startswith(f"{path / 'config.json'}: cannot be read")


def sharded(directory):
  (directory / WEIGHTS).rename(directory / "a.safetensors")
  names = load_file(directory / "a.safetensors")
  return {"weight_map": dict.fromkeys(names, "a.safetensors")}


@pytest.mark.parametrize(
  "shard", ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "..", ".", "", 3]
)
def test_index_leads_outside(copy, shard):
  directory = copy()
  index = sharded(directory)
  index["weight_map"][QUERY] = shard
  (directory / INDEX).write_text(json.dumps(index))
  message = error_of(read, directory)
  assert message == (
    f"{directory / INDEX}: tensor '{QUERY}' is in {shard!r}, which is not the name of "
    "a file in this directory"
  )


def test_index_faults(copy):
  directory = copy()
  index = sharded(directory)
  path = directory / INDEX
  path.write_text(json.dumps(index))
  read(directory)  # as it should be

  weight_map = index["weight_map"] | {QUERY: "b.safetensors"}
  path.write_text(json.dumps({"weight_map": weight_map}))
  message = error_of(read, directory)
  where = f"{path}: tensor '{QUERY}' is in 'b.safetensors'"
  assert message == f"{where}, which is missing"

  weight_map = index["weight_map"] | {"encoder.more": "a.safetensors"}
  path.write_text(json.dumps({"weight_map": weight_map}))
  message = error_of(read, directory)
  where = directory / "a.safetensors"
  assert message == f"{where}: tensor 'encoder.more' is missing; see {INDEX}"

  path.write_text("{}")
  assert error_of(read, directory) == f"{path}: weight_map is None, expected an object"


def test_checkpoint_of_another_model():
  cfg = huggingface.read_config(ROOT / "original")
  path = ROOT / "original" / "config.json"
  read_as = functools.partial(huggingface.read_params, ROOT / "original")
  message = error_of(read_as, dataclasses.replace(cfg, d_model=64))
  assert message.startswith(f"d_model 24 in {path}, 64 in the config")
  message = error_of(read_as, dataclasses.replace(cfg, gated=True))
  assert message.startswith(f"dense_act_fn relu in {path}, gelu_new in the config")


def test_write_faults(tmp_path, monkeypatch):
  cfg = huggingface.read_config(ROOT / "original")
  params = huggingface.read_params(ROOT / "original", cfg)
  message = error_of(huggingface.write, tmp_path / "a", cfg, params, dtype="int8")
  assert message.startswith("dtype 'int8' is unknown")
  with pytest.raises(ValueError, match="not those of this T5Config"):
    huggingface.write(
      tmp_path / "a", dataclasses.replace(cfg, decoder_layers=1), params
    )
  (tmp_path / "file").write_text("")
  message = error_of(huggingface.write, tmp_path / "file", cfg, params)
  assert message.startswith(f"{tmp_path / 'file'}: exists already")
  assert error_of(huggingface.write, tmp_path, cfg, params).startswith(f"{tmp_path}: ")
  message = error_of(huggingface.write, tmp_path / "file" / "a", cfg, params)
  assert "cannot be written" in message

  def disk_full(*args, **kwargs):
    raise OSError("No space left on device")

  monkeypatch.setattr(huggingface, "write_json", disk_full)
  message = error_of(huggingface.write, tmp_path / "b", cfg, params)
  assert message == f"{tmp_path / 'b'}: cannot be written (No space left on device)"
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
