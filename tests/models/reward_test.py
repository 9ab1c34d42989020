"""Reward models: what transformers' classifiers say, prompts shared, nothing leaks."""

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

from alignment.models import huggingface, registry
from alignment.models.huggingface import INDEX, WEIGHTS, classifiers
from alignment.models.reward import RewardModel
from alignment.types import UserError
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROOT = Path(__file__).parents[1] / "fixtures" / "rewards"
FIXTURES = sorted(path.name for path in ROOT.iterdir())
FAMILIES = ("nano", "llama_nano", "gemma2_nano", "gemma3_nano", "pythia_nano")


@functools.partial(jax.jit, static_argnums=0)
def rewards(model, params, prompts_BxS, prompt_lengths_B, responses_BxNxT, lengths_BxN):
  return model.rewards(
    params, prompts_BxS, prompt_lengths_B, responses_BxNxT, lengths_BxN
  )


def of(model, params, batch):
  """float32 BxN, on the host."""
  return np.asarray(
    rewards(
      model, params, batch.prompts_BxS, batch.prompt_lengths_B,
      batch.responses_BxNxT, batch.lengths_BxN,
    )
  )  # fmt: skip


def assert_agrees_with_transformers(directory: Path, scan_layers: bool) -> None:
  """The reward model in `directory` says what its `expected.npz` does."""
  cfg = huggingface.read_config(directory, scan_layers=scan_layers)
  params = huggingface.read_reward_params(directory, cfg)
  expected = dict(np.load(directory / "expected.npz"))
  wanted_BxN = expected.pop("logits_BxN")
  given_BxN = rewards(classifiers.network(cfg), params, **expected)
  np.testing.assert_allclose(given_BxN, wanted_BxN, atol=1e-4, rtol=0)
  assert np.ptp(wanted_BxN) > 0.1, "no longer a test of anything"


@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_transformers(name):
  assert_agrees_with_transformers(ROOT / name, scan_layers=name == "gemma3")


@pytest.mark.parametrize("name", FIXTURES)
def test_read_then_write_gives_the_same_tensors(tmp_path, name):
  for scan_layers, max_shard_bytes in ((False, 10**9), (True, 4000)):
    cfg = huggingface.read_config(ROOT / name, scan_layers=scan_layers)
    params = huggingface.read_reward_params(ROOT / name, cfg)
    out = tmp_path / str(scan_layers)
    huggingface.write(out, cfg, params, max_shard_bytes=max_shard_bytes)
    files = sorted(out.glob("*.safetensors"))
    assert (out / INDEX).exists() == (len(files) > 1) == scan_layers
    written = {k: v.tobytes() for file in files for k, v in load_file(file).items()}
    original = load_file(ROOT / name / WEIGHTS)
    assert written == {k: v.tobytes() for k, v in original.items()}
    assert huggingface.is_reward_model(out)
    ours, theirs = (
      json.loads((d / "config.json").read_text()) for d in (out, ROOT / name)
    )
    for key in ("architectures", "id2label", "label2id"):
      assert ours[key] == theirs[key]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> RewardModel:
  return classifiers.network(registry.config(request.param, vocab_rows=20))


@pytest.fixture(scope="module")
def params(model):
  return model.init(jax.random.key(0))


def rubbish(x, lengths):
  """The same with other tokens behind its length."""
  inside = np.arange(x.shape[-1]) < lengths[..., None]
  return np.where(inside, x, 9).astype(np.int32)


def test_is_the_head_on_the_state_after_the_last_token(model, params):
  """Teacher forcing of exactly this response and one token more, without padding."""
  batch = tiny.batch(4, responses=3)
  given_BxN = of(model, params, batch)
  for b, n in ((0, 0), (1, 2), (2, 1), (3, 0)):
    prompt_1xS = batch.prompts_BxS[b : b + 1, : batch.prompt_lengths_B[b]]
    response_T = batch.responses_BxNxT[b, n, : batch.lengths_BxN[b, n]]
    context = model.body.prepare(params, prompt_1xS, batch.prompt_lengths_B[b : b + 1])
    longer = np.append(response_T, 3)[None, None].astype(np.int32)
    state_D = model.body.hidden(params, context, longer)[0, 0, -1]
    wanted = float(state_D @ params["score"]["weight"])
    assert given_BxN[b, n] == pytest.approx(wanted, abs=1e-4)


def test_sharing_a_prompt_equals_responses_apart(model, params):
  batch = tiny.batch(3, responses=4)
  together = of(model, params, batch)
  for n in range(4):
    alone = batch.replace(
      responses_BxNxT=batch.responses_BxNxT[:, n : n + 1],
      lengths_BxN=batch.lengths_BxN[:, n : n + 1],
    )
    np.testing.assert_allclose(
      of(model, params, alone)[:, 0], together[:, n], atol=2e-5
    )


def test_does_not_depend_on_padding_or_neighbours(model, params):
  batch = tiny.batch(4, responses=2)
  given_BxN = of(model, params, batch)
  dirty = batch.replace(
    prompts_BxS=np.pad(
      rubbish(batch.prompts_BxS, batch.prompt_lengths_B), ((0, 0), (0, 3))
    ),
    responses_BxNxT=np.pad(
      rubbish(batch.responses_BxNxT, batch.lengths_BxN), ((0, 0), (0, 0), (0, 2))
    ),
  )
  np.testing.assert_allclose(of(model, params, dirty), given_BxN, atol=2e-5)
  reversed_ = jax.tree.map(lambda x: x[::-1], batch)
  np.testing.assert_allclose(of(model, params, reversed_)[::-1], given_BxN, atol=2e-5)
  other = batch.responses_BxNxT.copy()
  other[:, 1] = 5
  moved = of(model, params, batch.replace(responses_BxNxT=other))
  np.testing.assert_allclose(moved[:, 0], given_BxN[:, 0], atol=2e-5)
  assert np.abs(moved[:, 1] - given_BxN[:, 1]).min() > 1e-3


def test_every_token_counts(model, params):
  """The last of the response, too, and the prompt's."""
  batch = tiny.batch(4, responses=2)
  given_BxN = of(model, params, batch)
  for b in range(4):
    responses, prompts = batch.responses_BxNxT.copy(), batch.prompts_BxS.copy()
    responses[b, 0, batch.lengths_BxN[b, 0] - 1] = 10
    prompts[b, 0] = 11
    last = of(model, params, batch.replace(responses_BxNxT=responses))
    first = of(model, params, batch.replace(prompts_BxS=prompts))
    assert abs(last[b, 0] - given_BxN[b, 0]) > 1e-3
    assert np.abs(first[b] - given_BxN[b]).min() > 1e-4


def test_has_no_parameters_that_predict_tokens(model, params):
  body = model.body.init(jax.random.key(0))
  assert set(params) == set(body) - {"head"} | {"score"}
  assert params["score"]["weight"].shape == (model.cfg.d_model,)
  assert 0.5 < np.std(of(model, params, tiny.batch(16))) < 2  # of unit size


def test_what_is_only_read_keeps_its_head_in_float32():
  cfg = registry.config("llama_nano", vocab_rows=20, dtype="bfloat16")
  model = classifiers.network(cfg)
  read = model.cast_for_reading(model.init(jax.random.key(0)))
  assert read["score"]["weight"].dtype == jnp.float32
  assert read["embedding"].dtype == jnp.bfloat16
  assert of(model, read, tiny.batch(2)).dtype == np.float32


def test_costs_are_those_of_the_body_without_its_head(model):
  cfg, costs = model.cfg, model.costs(20, 3, 6, 1)
  whole = model.body.costs(20, 3, 7, 1)
  assert costs.logits == 0 and costs.saved == whole.saved
  assert whole.flops - costs.flops == 2 * 3 * 7 * cfg.d_model * cfg.vocab_rows


# Checkpoints that are none, or damaged.


@pytest.fixture
def copy(tmp_path):
  return Path(shutil.copytree(ROOT / "llama_biased", tmp_path / "checkpoint"))


def refused(function, *arguments):
  with pytest.raises(UserError) as info:
    function(*arguments)
  message = str(info.value)
  assert "\n" not in message
  return message


def test_a_head_with_more_labels_is_refused(copy):
  tensors = load_file(copy / WEIGHTS)
  save_file(tensors | {"score.weight": np.zeros((2, 16), "f")}, copy / WEIGHTS)
  assert refused(huggingface.check_reward_model, copy) == (
    f"{copy}: its head gives 2 numbers (num_labels), but a reward model gives one: "
    "name a checkpoint that was trained with num_labels=1"
  )


def test_a_classifier_without_a_head_is_refused(copy):
  tensors = load_file(copy / WEIGHTS)
  del tensors["score.weight"]
  save_file(tensors, copy / WEIGHTS)
  assert refused(huggingface.check_reward_model, copy) == (
    f"{copy}: tensor 'score.weight' is missing: no reward model's head"
  )


def test_language_models_are_told_apart():
  decoders = ROOT.parent / "decoders"
  assert not any(map(huggingface.is_reward_model, decoders.iterdir()))
  assert all(map(huggingface.is_reward_model, ROOT.iterdir()))


def test_an_encoder_decoder_has_no_layout_to_be_written_in(tmp_path):
  cfg = dataclasses.replace(tiny.CFG)
  params = classifiers.network(cfg).init(jax.random.key(0))
  message = refused(huggingface.write, tmp_path / "out", cfg, params)
  assert message.startswith("a reward model of the family 't5' has no layout that ")
  assert not (tmp_path / "out").exists()
