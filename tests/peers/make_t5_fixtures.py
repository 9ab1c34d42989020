"""Writes tests/fixtures/t5/: tiny random T5s of transformers, and what they compute.

  python tests/peers/make_t5_fixtures.py    # needs torch and transformers

Every fixture is a checkpoint (`save_pretrained`) with `expected.npz`: right-padded
prompts and their attention mask, N responses per prompt, their teacher-forced logits,
and the greedy continuation.
"""

from pathlib import Path
import random
import shutil

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parents[1] / "fixtures" / "t5"
B, N, S, T, V = 3, 2, 20, 14, 64
MIN_MARGIN = 1e-2  # between the two best tokens: no greedy choice hangs on rounding
T5_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5_1_0 = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
CONFIGS = {
  "t5_1_1": T5_1_1 | {"num_layers": 2, "num_decoder_layers": 2},
  "original": T5_1_0 | {"num_layers": 2, "num_decoder_layers": 2},
  "deep_decoder": T5_1_1
  | {"num_layers": 1, "num_decoder_layers": 4, "num_heads": 3, "d_ff": 16},
  "deep_encoder": T5_1_0
  | {"num_layers": 3, "num_decoder_layers": 1, "d_model": 20, "d_kv": 12},
  "tied_gated": T5_1_0
  | {"feed_forward_proj": "gated-gelu", "num_layers": 1, "num_decoder_layers": 2}
  | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
  "untied_relu": T5_1_1
  | {"feed_forward_proj": "relu", "num_layers": 2, "num_decoder_layers": 1}
  | {"layer_norm_epsilon": 1e-3, "num_heads": 1, "vocab_size": 50},
}


def random_config() -> dict:
  """A config of any combination of features; d_kv * num_heads is rarely d_model."""
  pick = random.choice
  buckets = pick((4, 8, 32))
  return {
    "feed_forward_proj": pick(("gated-gelu", "relu")),
    "tie_word_embeddings": pick((True, False)),
    "num_layers": random.randint(1, 4),
    "num_decoder_layers": random.randint(1, 4),
    "d_model": pick((16, 24, 40)),
    "d_kv": pick((4, 8, 12)),
    "num_heads": random.randint(1, 5),
    "d_ff": pick((16, 56)),
    "vocab_size": pick((33, 64)),
    "relative_attention_num_buckets": buckets,
    "relative_attention_max_distance": buckets * pick((1, 4)),
  }


def make_model(config: dict, seed: int) -> transformers.T5ForConditionalGeneration:
  """A model of random weights in which every tensor matters to the logits."""
  torch.manual_seed(seed)
  defaults = {"d_model": 24, "d_kv": 8, "num_heads": 2, "d_ff": 32, "vocab_size": V}
  config = transformers.T5Config(
    **defaults | {"dropout_rate": 0.0, "decoder_start_token_id": 0} | config
  )
  model = transformers.T5ForConditionalGeneration(config).eval()
  with torch.no_grad():
    if not config.scale_decoder_outputs:  # T5 1.1: a head of its own
      head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
      model.lm_head.weight = torch.nn.Parameter(head)
    for name, weight in model.named_parameters():
      if "layer_norm" in name:  # 1.0 in a new model: an unread one would go unnoticed
        weight.uniform_(0.5, 1.5)
      elif "relative_attention_bias" in name:
        weight.normal_()
    if config.scale_decoder_outputs:  # tied: else it mostly repeats the last token
      model.shared.weight.mul_(0.3)
  return model


def expected(model: transformers.T5ForConditionalGeneration) -> dict[str, np.ndarray]:
  """Random inputs and the model's answers, as numpy arrays."""
  vocab_size = model.config.vocab_size
  prompts_BxS = torch.randint(2, vocab_size, (B, S))
  lengths_B = torch.randint(1, S + 1, (B,))
  lengths_B[0], lengths_B[1] = S, 1
  mask_BxS = (torch.arange(S) < lengths_B[:, None]).long()
  prompts_BxS = prompts_BxS * mask_BxS
  responses_BxNxT = torch.randint(0, vocab_size, (B, N, T))
  inputs = torch.nn.functional.pad(responses_BxNxT[..., :-1], (1, 0)).reshape(B * N, T)
  with torch.no_grad():
    logits = model(
      input_ids=prompts_BxS.repeat_interleave(N, 0),
      attention_mask=mask_BxS.repeat_interleave(N, 0),
      decoder_input_ids=inputs,
    ).logits
    # With its cache, transformers 5.23 fails if the decoder is deeper than the encoder.
    greedy_BxT = model.generate(
      prompts_BxS,
      attention_mask=mask_BxS,
      max_new_tokens=T,
      do_sample=False,
      num_beams=1,
      use_cache=False,
    )[:, 1:]
    greedy_BxT = torch.nn.functional.pad(greedy_BxT, (0, T - greedy_BxT.shape[1]))
    inputs = torch.nn.functional.pad(greedy_BxT[:, :-1], (1, 0))
    steps = model(
      input_ids=prompts_BxS, attention_mask=mask_BxS, decoder_input_ids=inputs
    ).logits
  best = steps.topk(2).values
  ended = torch.nn.functional.pad((greedy_BxT == 1).cumsum(1)[:, :-1], (1, 0)) > 0
  margin = (best[..., 0] - best[..., 1])[~ended].min()
  return {
    "prompts_BxS": prompts_BxS.int().numpy(),
    "mask_BxS": mask_BxS.int().numpy(),
    "responses_BxNxT": responses_BxNxT.int().numpy(),
    "logits_BxNxTxV": logits.reshape(B, N, T, -1).numpy(),
    "greedy_BxT": greedy_BxT.int().numpy(),
    "margin": margin.numpy(),
  }


def make(directory: Path, config: dict, seed: int) -> None:
  """Saves a model and its answers, with greedy choices that are clear, vary and end."""
  while True:
    model = make_model(config, seed)
    answers = expected(model)
    greedy_BxT = answers["greedy_BxT"]
    varied = len(np.unique(greedy_BxT)) >= 5 and (greedy_BxT[:, 1:-1] == 1).any()
    if varied and answers.pop("margin") >= MIN_MARGIN:
      break
    seed += 1000
  model.save_pretrained(directory)
  (directory / "generation_config.json").unlink()
  np.savez_compressed(directory / "expected.npz", **answers)


def main():
  shutil.rmtree(ROOT, ignore_errors=True)
  for seed, (name, config) in enumerate(CONFIGS.items()):
    make(ROOT / name, config, seed)


if __name__ == "__main__":
  main()
