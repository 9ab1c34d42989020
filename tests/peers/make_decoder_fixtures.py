"""Writes tests/fixtures/decoders/: tiny random models of transformers, with answers.

  python tests/peers/make_decoder_fixtures.py    # needs torch and transformers

Every fixture is a checkpoint (`save_pretrained`) with `expected.npz`: right-padded
prompts and their lengths, N responses per prompt, the logits that predict each of their
tokens, and the greedy continuation of all prompts in one (left-padded) batch.
"""

from pathlib import Path
import random
import shutil

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parents[1] / "fixtures" / "decoders"
B, N, S, T = 3, 2, 11, 7
MIN_MARGIN = 1e-2  # between the two best tokens: no greedy choice hangs on rounding
LLAMA_3 = {
  "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
  "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
GEMMA_3_ROPES = {
  "full_attention": LINEAR,
  "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
SHAPE = {
  "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict]] = {
  "llama": ("llama", {"tie_word_embeddings": True}),
  "llama_biased": (
    "llama",
    {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA_3}
    | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
  ),
  "llama_linear": ("llama", {"rope_parameters": LINEAR, "hidden_act": "gelu"}),
  "qwen2": ("qwen2", {"num_key_value_heads": 1}),
  "qwen2_window": (
    "qwen2",
    {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    | {"tie_word_embeddings": True},
  ),
  "qwen3": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True}),
  "gemma2": (
    "gemma2",
    {"sliding_window": 4, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0}
    | {"final_logit_softcapping": 3.0, "num_hidden_layers": 3},
  ),
  "gemma3": (
    "gemma3_text",
    {"sliding_window": 5, "query_pre_attn_scalar": 11, "num_key_value_heads": 1}
    | {"num_hidden_layers": 3, "rope_parameters": GEMMA_3_ROPES}
    | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
  ),
  "gpt_neox": (
    "gpt_neox",
    {"num_attention_heads": 2, "rope_parameters": {"partial_rotary_factor": 0.5}},
  ),
  "gpt_neox_sequential": (
    "gpt_neox",
    {"use_parallel_residual": False, "rope_parameters": {"partial_rotary_factor": 1.0}},
  ),
}


def random_config(model_type: str) -> dict:
  """Any combination of a family's features, in odd shapes."""
  pick = random.choice
  heads, shared = pick(((4, 4), (4, 2), (4, 1), (2, 1), (1, 1)))
  layers = random.randint(1, 4)
  config = {
    "hidden_size": pick((16, 24, 40)),
    "intermediate_size": pick((8, 36)),
    "num_attention_heads": heads,
    "num_key_value_heads": shared,
    "head_dim": pick((4, 10, 16)),
    "num_hidden_layers": layers,
    "vocab_size": pick((33, 64)),
    "tie_word_embeddings": pick((True, False)),
    "rope_parameters": pick(
      (LLAMA_3, LINEAR, {"rope_type": "default", "rope_theta": 50.0})
    ),
  }
  if model_type in ("llama", "qwen3"):
    config["attention_bias"] = pick((True, False))
  if model_type == "llama":
    config["mlp_bias"] = pick((True, False))
  if model_type.startswith("gemma"):
    config["query_pre_attn_scalar"] = random.randint(3, 20)
    if model_type == "gemma2":  # transformers' Gemma 3 does not read it
      config["attn_logit_softcapping"] = pick((None, 2.0))
    config["final_logit_softcapping"] = pick((None, 2.0))
  if model_type not in ("llama", "gpt_neox"):
    kinds = ("sliding_attention", "full_attention")
    config["layer_types"] = [pick(kinds) for _ in range(layers)]
    config |= {"sliding_window": random.randint(2, 9), "use_sliding_window": True}
  if model_type == "gemma3_text":
    config["rope_parameters"] = GEMMA_3_ROPES
  if model_type == "gpt_neox":
    share = {"partial_rotary_factor": pick((0.25, 0.5, 1.0))}
    config["rope_parameters"] = LINEAR | share
    config["use_parallel_residual"] = pick((True, False))
    config["hidden_size"] = pick((32, 64))  # an even number of channels turn
  return config


def make_model(
  model_type: str, config: dict, seed: int, auto=transformers.AutoModelForCausalLM
):
  """A model of random weights in which every tensor matters to the logits."""
  torch.manual_seed(seed)
  config = SHAPE | {"max_position_embeddings": 64} | config
  if model_type in ("qwen2", "gpt_neox"):  # their heads divide the width
    config.pop("head_dim")
  if model_type == "gpt_neox":
    config.pop("num_key_value_heads")
  special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
  config = transformers.AutoConfig.for_model(model_type, **special | config)
  model = auto.from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if weight.ndim == 2:
        # A tied one that is not small mostly repeats the last token.
        weight.normal_(0, weight.shape[1] ** -0.5)
      elif name.endswith("bias"):
        weight.normal_(0, 0.3)
      else:  # 0 or 1 in a new model: an unread one would go unnoticed
        weight.uniform_(0.5, 1.5)
  return model


def expected(model) -> dict[str, np.ndarray]:
  """Random inputs and the model's answers, as numpy arrays."""
  vocab_size = model.config.vocab_size
  prompts_BxS = torch.randint(0, vocab_size, (B, S))
  lengths_B = torch.randint(1, S + 1, (B,))
  lengths_B[0], lengths_B[1] = S, 1
  responses_BxNxT = torch.randint(0, vocab_size, (B, N, T))
  with torch.no_grad():
    logits = [
      _predictions(model, prompt_S[:length], response_T)
      for prompt_S, length, responses_NxT in zip(
        prompts_BxS, lengths_B, responses_BxNxT, strict=True
      )
      for response_T in responses_NxT
    ]
    # An id that does end a response: of the first row, what it says in its middle.
    eos = int(_greedy(model, prompts_BxS, lengths_B, -1)[0, T // 2])
    greedy_BxT = _greedy(model, prompts_BxS, lengths_B, eos)
    ended_BxT = (greedy_BxT == eos).cumsum(1) > 0
    margins = []
    for prompt_S, length, greedy_T, ended_T in zip(
      prompts_BxS, lengths_B, greedy_BxT, ended_BxT, strict=True
    ):
      best = _predictions(model, prompt_S[:length], greedy_T).topk(2).values
      said = T - int(ended_T.sum()) + 1
      margins.append((best[:said, 0] - best[:said, 1]).min())
  return {
    "prompts_BxS": prompts_BxS.int().numpy(),
    "lengths_B": lengths_B.int().numpy(),
    "responses_BxNxT": responses_BxNxT.int().numpy(),
    "logits_BxNxTxV": torch.stack(logits).reshape(B, N, T, -1).numpy(),
    "greedy_BxT": greedy_BxT.int().numpy(),
    "eos": np.int32(eos),
    "margin": min(margins).numpy(),
  }


def _predictions(model, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
  """Logits of each of a response's tokens, of one sequence without padding."""
  tokens = torch.cat([prompt, response])[None, :-1]
  return model(input_ids=tokens).logits[0, len(prompt) - 1 :]


def _greedy(model, prompts_BxS, lengths_B, eos: int) -> torch.Tensor:
  """Of all prompts in one batch, padded on the left with the ending id."""
  padded_BxS = torch.full_like(prompts_BxS, max(eos, 0))
  for row, prompt_S, length in zip(padded_BxS, prompts_BxS, lengths_B, strict=True):
    row[S - length :] = prompt_S[:length]
  tokens = model.generate(
    padded_BxS,
    attention_mask=(torch.arange(S) >= S - lengths_B[:, None]).long(),
    max_new_tokens=T,
    do_sample=False,
    eos_token_id=None if eos < 0 else eos,
    pad_token_id=max(eos, 0),
  )[:, S:]
  return torch.nn.functional.pad(tokens, (0, T - tokens.shape[1]), value=max(eos, 0))


def make(directory: Path, model_type: str, config: dict, seed: int) -> None:
  """Saves a model and its answers, with greedy choices that are clear and vary."""
  while True:
    model = make_model(model_type, config, seed)
    answers = expected(model)
    varied = len(np.unique(answers["greedy_BxT"])) >= 4
    if varied and answers.pop("margin") >= MIN_MARGIN:
      break
    seed += 1000
  model.save_pretrained(directory)
  (directory / "generation_config.json").unlink(missing_ok=True)
  np.savez_compressed(directory / "expected.npz", **answers)


def main():
  shutil.rmtree(ROOT, ignore_errors=True)
  for seed, (name, (model_type, config)) in enumerate(CONFIGS.items()):
    make(ROOT / name, model_type, config, seed)


if __name__ == "__main__":
  main()
