"""Reward models against a live transformers: fresh configs, both directions."""

import random

from make_decoder_fixtures import random_config
from make_reward_fixtures import PAD, expected, make_classifier
import numpy as np
import pytest
import torch
import transformers

from alignment.models import huggingface
from alignment.models.decoder_config import FAMILIES
from tests.models.reward_test import assert_agrees_with_transformers

pytestmark = pytest.mark.usefixtures("compile_quickly")


def random_classifier(model_type):
  config = random_config(model_type)
  print(model_type, config)  # shown if this fails
  return make_classifier(model_type, config, seed=random.randrange(2**31))


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_agrees_with_transformers(tmp_path, model_type, scan_layers):
  model = random_classifier(model_type)
  model.save_pretrained(tmp_path)
  np.savez(tmp_path / "expected.npz", **expected(model))
  assert_agrees_with_transformers(tmp_path, scan_layers)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_loads_our_export(tmp_path, model_type):
  model = random_classifier(model_type)
  model.save_pretrained(tmp_path / "theirs")
  cfg = huggingface.read_config(tmp_path / "theirs")
  params = huggingface.read_reward_params(tmp_path / "theirs", cfg)
  about = {"pad_token_id": PAD}
  huggingface.write(tmp_path / "ours", cfg, params, about=about)
  loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values()), report
  assert loaded.config.num_labels == 1
  tokens = torch.randint(1, cfg.vocab_rows, (3, 12))
  with torch.no_grad():
    theirs, ours = (m.eval()(input_ids=tokens).logits for m in (model, loaded))
  torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
