"""Writes tests/fixtures/rewards/: tiny random reward models, with their answers.

  python tests/peers/make_reward_fixtures.py    # needs torch and transformers

Every fixture is a sequence classifier with one label (`save_pretrained`), and
`expected.npz`: right-padded prompts and N responses to each, their lengths, and the
logit of each prompt with each response, all in one right-padded batch.
"""

from pathlib import Path
import shutil

from make_decoder_fixtures import CONFIGS, make_model
import numpy as np
import torch
import transformers

ROOT = Path(__file__).parents[1] / "fixtures" / "rewards"
B, N, S, T = 4, 3, 9, 6
PAD = 0  # no token of prompts and responses: transformers looks for it
NAMES = ("llama_biased", "gemma3", "gpt_neox")


def make_classifier(model_type: str, config: dict, seed: int):
  """A classifier with one label whose every tensor matters to its logit."""
  labels = {"num_labels": 1, "pad_token_id": PAD}
  auto = transformers.AutoModelForSequenceClassification
  return make_model(model_type, config | labels, seed, auto)


def expected(model) -> dict[str, np.ndarray]:
  """Random prompts and responses, and the model's logits, as numpy arrays."""
  vocab_size = model.config.vocab_size
  prompts_BxS = torch.randint(PAD + 1, vocab_size, (B, S))
  prompt_lengths_B = torch.randint(1, S + 1, (B,))
  prompt_lengths_B[0], prompt_lengths_B[1] = S, 1
  responses_BxNxT = torch.randint(PAD + 1, vocab_size, (B, N, T))
  lengths_BxN = torch.randint(1, T + 1, (B, N))
  lengths_BxN[0, 0], lengths_BxN[1, 0] = T, 1
  rows = [
    torch.cat([prompts_BxS[b, : prompt_lengths_B[b]], responses_BxNxT[b, n, :length]])
    for b in range(B)
    for n, length in enumerate(lengths_BxN[b])
  ]
  tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
  with torch.no_grad():
    logits = model(input_ids=tokens, attention_mask=(tokens != PAD).long()).logits
  return {
    "prompts_BxS": prompts_BxS.int().numpy(),
    "prompt_lengths_B": prompt_lengths_B.int().numpy(),
    "responses_BxNxT": responses_BxNxT.int().numpy(),
    "lengths_BxN": lengths_BxN.int().numpy(),
    "logits_BxN": logits.reshape(B, N).numpy(),
  }


def main():
  shutil.rmtree(ROOT, ignore_errors=True)
  for seed, name in enumerate(NAMES):
    model_type, config = CONFIGS[name]
    model = make_classifier(model_type, config, seed)
    model.save_pretrained(ROOT / name)
    np.savez_compressed(ROOT / name / "expected.npz", **expected(model))


if __name__ == "__main__":
  main()
