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

from alignment.models import huggingface
from alignment.models.huggingface import INDEX, WEIGHTS, classifiers
from alignment.models.reward import RewardModel
from alignment.types import UserError
from tests import tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")

ROOT = Path(__file__).parents[1] / "fixtures" / "rewards"
FIXTURES = sorted(path.name for path in ROOT.iterdir())
DECODERS = ROOT.parent / "decoders"
FAMILIES = {"t5": tiny.CFG} | {
  name: huggingface.read_config(DECODERS / name, scan_layers=name == "gemma2")
  for name in ("llama", "gemma2", "gpt_neox")
}


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
  return classifiers.network(FAMILIES[request.param])


@pytest.fixture(scope="module")
def params(model):
  return jax.jit(model.init)(jax.random.key(0))


def rubbish(x, lengths):
  """The same with other tokens behind its length."""
  inside = np.arange(x.shape[-1]) < lengths[..., None]
  return np.where(inside, x, 9).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def last_state(body, params, prompt_1xS, tokens_1x1xT):
  context = body.prepare(params, prompt_1xS, jnp.array([prompt_1xS.shape[1]]))
  return body.hidden(params, context, tokens_1x1xT)[0, 0, -1]


def test_is_the_head_on_the_state_after_the_last_token(model, params):
  """Teacher forcing of just one response and a token more, nothing padded or shared."""
  batch = tiny.batch(4)
  assert batch.lengths_BxN[1, 1] < tiny.T and batch.prompt_lengths_B[1] < tiny.S
  prompt_1xS = batch.prompts_BxS[1:2, : batch.prompt_lengths_B[1]]
  response_T = batch.responses_BxNxT[1, 1, : batch.lengths_BxN[1, 1]]
  longer = np.append(response_T, 3)[None, None].astype(np.int32)
  state_D = last_state(model.body, params, prompt_1xS, longer)
  wanted = float(state_D @ params["score"]["weight"])
  assert of(model, params, batch)[1, 1] == pytest.approx(wanted, abs=1e-4)


def test_sharing_a_prompt_equals_responses_apart(model, params):
  """Every response again, alone with its prompt, and amid rubbish that is not read."""
  batch = tiny.batch(4)
  alone = batch.replace(
    prompts_BxS=rubbish(batch.prompts_BxS, batch.prompt_lengths_B).repeat(2, axis=0),
    prompt_lengths_B=batch.prompt_lengths_B.repeat(2),
    responses_BxNxT=np.pad(
      rubbish(batch.responses_BxNxT, batch.lengths_BxN).reshape(8, 1, tiny.T),
      ((0, 0), (0, 0), (0, 2)),
    ),
    lengths_BxN=batch.lengths_BxN.reshape(8, 1),
  )
  shared, apart = of(model, params, batch), of(model, params, alone)
  np.testing.assert_allclose(apart.reshape(4, 2), shared, atol=2e-5)


def test_does_not_depend_on_neighbours(model, params):
  batch = tiny.batch(4)
  given_BxN = of(model, params, batch)
  turned = jax.tree.map(lambda x: x[::-1], batch)
  np.testing.assert_allclose(of(model, params, turned)[::-1], given_BxN, atol=2e-5)
  other = batch.responses_BxNxT.copy()
  other[:, 1] = 5
  moved_BxN = of(model, params, batch.replace(responses_BxNxT=other))
  np.testing.assert_allclose(moved_BxN[:, 0], given_BxN[:, 0], atol=2e-5)
  assert np.abs(moved_BxN[:, 1] - given_BxN[:, 1]).min() > 1e-3


def test_every_token_counts(model, params):
  """The last of the response, too, and the prompt's first."""
  batch = tiny.batch(4)
  given_BxN = of(model, params, batch)
  responses, prompts = batch.responses_BxNxT.copy(), batch.prompts_BxS.copy()
  for b in range(4):
    responses[b, 0, batch.lengths_BxN[b, 0] - 1] = 10
  prompts[:, 0] = 11
  last_BxN = of(model, params, batch.replace(responses_BxNxT=responses))
  assert np.abs(last_BxN - given_BxN)[:, 0].min() > 1e-3
  first_BxN = of(model, params, batch.replace(prompts_BxS=prompts))
  assert np.abs(first_BxN - given_BxN).min() > 1e-4


def test_has_no_parameters_that_predict_tokens(model, params):
  body = jax.eval_shape(model.body.init, jax.random.key(0))
  assert set(params) == set(body) - {"head"} | {"score"}
  assert params["score"]["weight"].shape == (model.cfg.d_model,)
  norm = float(jnp.linalg.norm(params["score"]["weight"]))
  assert norm == pytest.approx(1, abs=0.6)  # of states of unit size: unit rewards


def test_what_is_only_read_keeps_its_head_in_float32():
  model = classifiers.network(dataclasses.replace(FAMILIES["llama"], dtype="bfloat16"))
  read = model.cast_for_reading(jax.jit(model.init)(jax.random.key(0)))
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


def test_the_line_that_converts_a_classifier_keeps_its_head(copy):
  (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
  message = refused(huggingface.check_reward_model, copy)
  assert "import AutoModelForSequenceClassification as M" in message


def test_a_classifier_without_a_head_is_refused(copy):
  tensors = load_file(copy / WEIGHTS)
  del tensors["score.weight"]
  save_file(tensors, copy / WEIGHTS)
  assert refused(huggingface.check_reward_model, copy) == (
    f"{copy}: tensor 'score.weight' is missing: no reward model's head"
  )


def test_language_models_are_told_apart():
  assert not any(map(huggingface.is_reward_model, DECODERS.iterdir()))
  assert all(map(huggingface.is_reward_model, ROOT.iterdir()))


def test_an_encoder_decoder_has_no_layout_to_be_written_in(tmp_path):
  params = jax.jit(classifiers.network(tiny.CFG).init)(jax.random.key(0))
  message = refused(huggingface.write, tmp_path / "out", tiny.CFG, params)
  assert message.startswith("a reward model of the family 't5' has no layout that ")
  assert not (tmp_path / "out").exists()
