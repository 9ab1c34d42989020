"""Adapters against a live PEFT: our files there, and the gradients of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import peft as peers
import pytest
import torch
import transformers

from alignment.core import losses, scoring
from alignment.models import huggingface, lora, registry
from alignment.models.decoder_config import FAMILIES
from alignment.models.huggingface import peft
from alignment.models.lora import LORA, LoraSettings
from alignment.models.protocol import BASE
from alignment.types import Batch

pytestmark = pytest.mark.usefixtures("compile_quickly")

V, S, T = 64, 6, 5
RNG = np.random.default_rng(0)
SIZES = {"gemma3_text": "gemma3", "gpt_neox": "pythia", "t5": ""}
TARGETS = {"llama": ("q_proj", "v_proj"), "t5": ("q", "wi_0", "wo")}


def made(tmp_path, family, scan_layers=False):
  """A model with adapters that were trained, in files and in PEFT."""
  name = f"{SIZES.get(family, family)}_nano".lstrip("_")
  cfg = registry.config(name, vocab_rows=V, scan_layers=scan_layers)
  targets = TARGETS.get(family, ("all-linear",))
  model = lora.wrap(registry.model(cfg), LoraSettings(3, 6.0, targets))
  params = jax.device_get(model.init(jax.random.key(0)))
  draw = lambda leaf: RNG.normal(0, 0.2, leaf.shape).astype(np.float32)  # noqa: E731
  params[LORA] = jax.tree.map(draw, params[LORA])
  huggingface.write(tmp_path / "base", cfg, params[BASE])
  peft.write(
    tmp_path / "adapters",
    cfg,
    model.settings,
    params[LORA],
    base=str(tmp_path / "base"),
  )
  kind = transformers.AutoModelForCausalLM
  if family == "t5":
    kind = transformers.AutoModelForSeq2SeqLM
  base = kind.from_pretrained(tmp_path / "base", attn_implementation="eager")
  theirs = peers.PeftModel.from_pretrained(
    base, tmp_path / "adapters", is_trainable=True
  )
  return model, params, theirs.eval()


def batch():
  """Whole rows: nothing is padded."""
  return Batch(
    prompts_BxS=RNG.integers(2, V, (3, S), np.int32),
    prompt_lengths_B=np.full(3, S, np.int32),
    responses_BxNxT=RNG.integers(2, V, (3, 1, T), np.int32),
    lengths_BxN=np.full((3, 1), T, np.int32),
    ref_logps_BxN=np.zeros((3, 1), np.float32),
    weights_B=np.ones(3, np.float32),
    ids_B=np.arange(3, dtype=np.int32),
  )


def their_loss(theirs, given, family):
  """The mean cross-entropy of the responses' tokens."""
  prompts, responses = (
    torch.tensor(x).long() for x in (given.prompts_BxS, given.responses_BxNxT[:, 0])
  )
  if family == "t5":
    return theirs(input_ids=prompts, labels=responses).loss
  tokens = torch.cat([prompts, responses], 1)
  labels = torch.cat([torch.full_like(prompts, -100), responses], 1)
  return theirs(input_ids=tokens, labels=labels).loss


@pytest.mark.parametrize("family", ["t5", *FAMILIES])
def test_peft_computes_our_loss_and_our_gradients(tmp_path, family):
  """Of every adapter, by the names that our files give them."""
  scan_layers = family in ("t5", "gemma2", "gpt_neox")
  model, params, theirs = made(tmp_path, family, scan_layers)
  given = batch()

  def ours(adapters):
    logps = scoring.score(model, {BASE: params[BASE], LORA: adapters}, given)
    loss_B, tokens_B = losses.sft(logps, given.lengths_BxN)
    return jnp.sum(loss_B) / jnp.sum(tokens_B)

  params = jax.tree.map(jnp.asarray, params)
  value, grads = jax.jit(jax.value_and_grad(ours))(params[LORA])
  loss = their_loss(theirs, given, family)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  loss.backward()
  cfg, settings = model.cfg, model.settings
  peft.write(tmp_path / "gradients", cfg, settings, jax.device_get(grads))
  wanted = {
    name.replace(".default", ""): p.grad.numpy()
    for name, p in theirs.named_parameters()
    if p.requires_grad
  }
  from safetensors.numpy import load_file

  written = load_file(tmp_path / "gradients" / peft.WEIGHTS)
  assert set(written) == set(wanted) and wanted
  for name, gradient in written.items():
    close = np.abs(wanted[name]).max() * 1e-3 + 1e-7
    np.testing.assert_allclose(gradient, wanted[name], atol=close, err_msg=name)


@pytest.mark.parametrize("family", ["t5", "llama", "gpt_neox"])
def test_what_peft_merges_is_what_we_merge(tmp_path, family):
  model, params, theirs = made(tmp_path, family)
  huggingface.write(tmp_path / "merged", model.cfg, model.merged(params))
  ours = type(theirs.get_base_model()).from_pretrained(tmp_path / "merged")
  merged = theirs.merge_and_unload().state_dict()
  for name, tensor in ours.state_dict().items():
    torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)


def test_a_new_adapter_is_distributed_as_pefts(tmp_path):
  model, params, theirs = made(tmp_path, "llama")
  config = peers.LoraConfig(
    r=16, lora_alpha=32, target_modules=["q_proj"], task_type="CAUSAL_LM"
  )
  fresh = peers.get_peft_model(theirs.get_base_model(), config, adapter_name="fresh")
  (a, *_) = (p for n, p in fresh.named_parameters() if "lora_A.fresh" in n)
  a = a.detach().numpy()
  ours = lora.wrap(model.model, LoraSettings(16, 32.0, ("q_proj",)))
  ours = ours.init(jax.random.key(0))[LORA]["layers"][0]["attention"]["query"]["a"]
  assert ours.T.shape == a.shape
  bound = a.shape[1] ** -0.5
  for drawn in a, np.asarray(ours):
    assert 0.98 * bound < np.abs(drawn).max() <= bound
    np.testing.assert_allclose(drawn.std(), bound / 3**0.5, rtol=0.1)
