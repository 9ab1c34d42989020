"""Decoders against a live transformers: fresh configs and weights, both directions."""

import os
from pathlib import Path
import random

import jax
from make_decoder_fixtures import expected, make_model, random_config
import numpy as np
import pytest
import torch
import transformers

from alignment.models import huggingface, registry
from alignment.models.decoder_config import FAMILIES
from tests.models.decoder_files_test import (
  assert_agrees_with_transformers,
  greedy,
  teacher_forced,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

REAL = "SMOLLM2_DIR"  # of SmolLM2-135M-Instruct, as a Hugging Face directory


def model_and_answers(model_type):
  """A random model whose greedy choices do not hang on rounding."""
  while True:
    config = random_config(model_type)
    print(model_type, config)  # shown if this fails
    model = make_model(model_type, config, seed=random.randrange(2**31))
    answers = expected(model)
    if answers.pop("margin") > 1e-3:
      return model, answers


@pytest.mark.parametrize("repeat", range(3))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_agrees_with_transformers(tmp_path, model_type, repeat):
  model, answers = model_and_answers(model_type)
  model.save_pretrained(tmp_path)
  np.savez(tmp_path / "expected.npz", **answers)
  assert_agrees_with_transformers(tmp_path, scan_layers=repeat == 1)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_loads_our_export(tmp_path, model_type, max_shard_bytes):
  model, _ = model_and_answers(model_type)
  model.save_pretrained(tmp_path / "theirs")
  cfg = huggingface.read_config(
    tmp_path / "theirs", scan_layers=max_shard_bytes > 10**6
  )
  params = huggingface.read_params(tmp_path / "theirs", cfg)
  huggingface.write(tmp_path / "ours", cfg, params, max_shard_bytes=max_shard_bytes)
  loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values()), report
  tokens = torch.randint(0, cfg.vocab_rows, (3, 12))
  with torch.no_grad():
    theirs, ours = (m.eval()(input_ids=tokens).logits for m in (model, loaded))
  torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_reads_a_model_that_began_here(tmp_path, model_type):
  """Every entry of config.json comes from us, not from one that was read."""
  name = {"gemma3_text": "gemma3", "gpt_neox": "pythia"}.get(model_type, model_type)
  cfg = registry.config(f"{name}_nano", vocab_rows=64)
  key = jax.random.key(random.randrange(2**31))
  params = jax.device_get(registry.model(cfg).init(key))
  directory = tmp_path / "ours"
  huggingface.write(directory, cfg, params)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, attn_implementation="eager"
  ).eval()
  while (answers := expected(model)).pop("margin") < 1e-3:
    pass
  np.savez(directory / "expected.npz", **answers)
  assert_agrees_with_transformers(directory, scan_layers=False)


# Real weights: set SMOLLM2_DIR to a directory with SmolLM2-135M-Instruct, for example
# what `huggingface-cli download HuggingFaceTB/SmolLM2-135M-Instruct` gives.

QUESTIONS = (
  "What is the capital of France?", "Name three colours.", "Why is the sky blue?",
  "Write a haiku about rain.", "What is 7 times 8?", "Who wrote Hamlet?",
  "Give me a recipe for pancakes.", "How do I boil an egg?", "What is a prime number?",
  "Translate 'good morning' to Spanish.", "Tell me a joke.", "What do bees eat?",
  "List the planets.", "How far away is the moon?", "What is photosynthesis?",
  "Suggest a name for a cat.", "Explain gravity to a child.",
  "What rhymes with 'blue'?", "Write one sentence about the sea.", "Hi!",
)  # fmt: skip


@pytest.fixture(scope="module")
def real() -> Path:
  if not os.environ.get(REAL):
    pytest.skip(f"{REAL} is not set to a directory with SmolLM2-135M-Instruct")
  return Path(os.environ[REAL])


def test_answers_of_real_weights(real):
  """20 greedy answers token by token, and logits (up to 30) within 1e-3."""
  length = 20
  tokenizer = transformers.AutoTokenizer.from_pretrained(real)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    real, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  prompts = [
    tokenizer.apply_chat_template(
      [{"role": "user", "content": question}],
      add_generation_prompt=True,
      return_dict=False,
    )
    for question in QUESTIONS
  ]
  lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
  prompts_BxS, left_BxS = np.zeros((2, len(prompts), lengths_B.max()), np.int32)
  for right, left, prompt in zip(prompts_BxS, left_BxS, prompts, strict=True):
    right[: len(prompt)] = left[-len(prompt) :] = prompt
  mask_BxS = np.arange(lengths_B.max()) >= lengths_B.max() - lengths_B[:, None]
  with torch.no_grad():
    generated = theirs.generate(
      torch.tensor(left_BxS).long(),
      attention_mask=torch.tensor(mask_BxS).long(),
      do_sample=False,
      max_new_tokens=length,
      output_logits=True,
      return_dict_in_generate=True,
    )
  wanted_BxT = generated.sequences[:, lengths_B.max() :].numpy()
  wanted_BxTxV = torch.stack(generated.logits, dim=1).numpy()
  said_BxT = (wanted_BxT == theirs.generation_config.eos_token_id).cumsum(axis=1)
  said_BxT -= wanted_BxT == theirs.generation_config.eos_token_id
  said_BxT = said_BxT == 0  # up to the ending id, and with it
  assert said_BxT.mean() > 0.5

  cfg = huggingface.read_config(real, scan_layers=True)
  assert cfg == registry.config(
    "smollm2_135m", norm_epsilon=cfg.norm_epsilon, scan_layers=True
  )
  model, params = registry.model(cfg), huggingface.read_params(real, cfg)
  logits_BxTxV = teacher_forced(
    model, params, prompts_BxS, lengths_B, wanted_BxT[:, None].astype(np.int32)
  )
  logits_BxTxV = np.asarray(logits_BxTxV)[:, 0]
  np.testing.assert_allclose(
    logits_BxTxV[said_BxT], wanted_BxTxV[said_BxT], atol=1e-3, rtol=0
  )
  answers_BxT = np.asarray(greedy(model, params, prompts_BxS, lengths_B, length))
  np.testing.assert_array_equal(answers_BxT[said_BxT], wanted_BxT[said_BxT])
