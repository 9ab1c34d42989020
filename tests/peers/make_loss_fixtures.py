"""Writes tests/fixtures/trl_losses.json: what TRL's own code says of random pairs.

  python tests/peers/make_loss_fixtures.py    # needs torch, transformers and trl

Two tiny random GPT-2s play policy and reference. Log-probabilities and losses come from
`DPOTrainer`'s own methods, run on an instance that never went through its constructor
(which wants data sets, a tokenizer and an output directory); the logits, which are the
input of ours, come from the models' ordinary forward pass.
"""

import collections
import json
import pathlib
import random
import types

import torch
import transformers
import trl

PATH = pathlib.Path(__file__).parents[1] / "fixtures" / "trl_losses.json"
B, S, T, V = 3, 2, 5, 11


def make_case(seed: int, beta: float, label_smoothing: float) -> dict:
  """One case: our inputs (logits, responses, lengths), and TRL's answers to them."""
  torch.manual_seed(seed)
  policy, reference = _gpt2(), _gpt2()
  tokens = torch.randint(2, V, (B, 2, S + T))
  lengths = torch.randint(1, T + 1, (B, 2))
  lengths[0, 0], lengths[0, 1] = T, 1  # one pair with a full and a shortest response
  completion = torch.arange(S + T) - S < lengths[..., None]
  completion &= torch.arange(S + T) >= S
  attention = torch.arange(S + T) < S + lengths[..., None]
  trainer = _trainer(policy, reference, beta, label_smoothing)

  def batch(rows):  # TRL's layout: all preferred responses, then all others
    def flat(array_Bx2xL):
      return array_Bx2xL[rows].transpose(0, 1).reshape(-1, S + T)

    return {
      "input_ids": flat(tokens),
      "attention_mask": flat(attention).long(),
      "completion_mask": flat(completion).long(),
    }

  def loss(name, rows):
    trainer.loss_types = [name]
    with torch.no_grad():
      return trainer._compute_loss(policy, batch(rows), False).item()

  def logps(model):
    with torch.no_grad():
      return torch.stack(trainer.compute_ref_log_probs(model, batch([*range(B)])), 1)

  def response_logits(model):  # position t predicts token t + 1
    with torch.no_grad():
      flat = model(tokens.reshape(2 * B, S + T)).logits[:, S - 1 : -1]
    return flat.reshape(B, 2, T, V)

  # TRL averages over a batch: pairs are given one by one. ("aot" sorts over the batch;
  # for a single pair it is the sigmoid loss with label smoothing.)
  pairs = [[b] for b in range(B)]
  names = ("ipo", "sigmoid", "aot", "hinge")
  return {
    "beta": beta,
    "label_smoothing": label_smoothing,
    "responses_BxNxT": tokens[..., S:].tolist(),
    "lengths_BxN": lengths.tolist(),
    "logits_BxNxTxV": _rounded(response_logits(policy)),
    "ref_logits_BxNxTxV": _rounded(response_logits(reference)),
    "logps_BxN": _rounded(logps(policy)),
    "ref_logps_BxN": _rounded(logps(reference)),
    "losses_B": {name: [loss(name, pair) for pair in pairs] for name in names},
    "sft": loss("sft", [*range(B)]),
  }


def _gpt2() -> torch.nn.Module:
  config = transformers.GPT2Config(
    vocab_size=V,
    n_positions=S + T,
    n_embd=8,
    n_layer=1,
    n_head=2,
    initializer_range=0.7,
    bos_token_id=0,
    eos_token_id=1,
  )
  return transformers.GPT2LMHeadModel(config).eval()


def _trainer(policy, reference, beta, label_smoothing) -> trl.DPOTrainer:
  """A DPOTrainer with just the attributes that its loss reads."""
  extra = ("log_probs", "entropy", "mean_logits", "is_top1")
  for model in (policy, reference):
    trl.trainer.utils.add_fused_lm_head(model, outputs=extra)
  trainer = object.__new__(trl.DPOTrainer)
  vars(trainer).update(
    model=policy,
    ref_model=reference,
    beta=beta,
    label_smoothing=label_smoothing,
    loss_weights=[1.0],
    f_divergence_type="reverse_kl",
    ld_alpha=None,
    aux_loss_enabled=False,
    precompute_ref_logps=False,
    use_weighting=False,
    args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
    accelerator=types.SimpleNamespace(
      device=torch.device("cpu"),
      autocast=torch.no_grad,
      gather=lambda x: x,
      gather_for_metrics=lambda x: x,
    ),
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
  )
  return trainer


def _rounded(tensor: torch.Tensor) -> list:
  """Nested lists with nine significant digits, which is all a float32 has."""
  if tensor.ndim:
    return [_rounded(row) for row in tensor]
  return float(f"{tensor.item():.9g}")


def main() -> None:
  cases = [make_case(0, 0.1, 0.1), make_case(1, 0.5, 0.25), make_case(2, 1.0, 0.0)]
  header = {"trl": trl.__version__, "torch": torch.__version__}
  PATH.parent.mkdir(exist_ok=True)
  PATH.write_text(json.dumps({**header, "cases": cases}) + "\n")


def random_case() -> dict:
  """A case that no one has seen before; its seed is printed for whom it fails."""
  seed = random.SystemRandom().randrange(2**31)
  print("seed", seed)
  beta = random.Random(seed).uniform(0.05, 2)
  return make_case(seed, beta, random.Random(seed + 1).uniform(0, 0.45))


if __name__ == "__main__":
  main()
