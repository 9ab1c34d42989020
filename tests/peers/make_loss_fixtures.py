"""Writes tests/fixtures/trl_losses.json: what TRL's own code says of random pairs.

  python tests/peers/make_loss_fixtures.py    # needs torch, transformers and trl

Two tiny random GPT-2s play policy and reference. Log-probabilities and losses come from
`DPOTrainer`'s own methods, run on an instance that never went through its constructor
(which wants data sets, a tokenizer and an output directory); the logits, which are the
input of ours, come from the models' ordinary forward pass. SimPO and ORPO come from
`CPOTrainer` and `ORPOTrainer` on the same logits, in the same way.

Of RLOO and GRPO, sampling and scoring are replaced by given numbers: advantages and
loss are TRL's, and as these losses are worth their gradient alone, it is stored.
"""

import collections
import json
import pathlib
import random
import types

import torch
import transformers
import trl
from trl.experimental import cpo, orpo

PATH = pathlib.Path(__file__).parents[1] / "fixtures" / "trl_losses.json"
B, N, S, T, V = 3, 4, 2, 5, 11


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

  def loss(name, rows):  # "a+b": a with half of b
    trainer.loss_types = name.split("+")
    trainer.loss_weights = [1.0, 0.5][: len(trainer.loss_types)]
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
  names = ("ipo", "sigmoid", "aot", "hinge", "robust", "sigmoid_norm", "sigmoid+sft")
  labels = torch.where(completion, tokens, -100)[..., S:]
  reference_free = _reference_free(response_logits(policy), labels, beta)
  return {
    "beta": beta,
    "label_smoothing": label_smoothing,
    "responses_BxNxT": tokens[..., S:].tolist(),
    "lengths_BxN": lengths.tolist(),
    "logits_BxNxTxV": _rounded(response_logits(policy)),
    "ref_logits_BxNxTxV": _rounded(response_logits(reference)),
    "logps_BxN": _rounded(logps(policy)),
    "ref_logps_BxN": _rounded(logps(reference)),
    "losses_B": {name: [loss(name, pair) for pair in pairs] for name in names}
    | reference_free,
    "sft": loss("sft", [*range(B)]),
  }


def _reference_free(logits_Bx2xTxV, labels_Bx2xT, beta) -> dict[str, list[float]]:
  """SimPO (gamma 0.5) and ORPO of each pair, as for an encoder-decoder: no prompt."""
  common = {
    "beta": beta,
    "label_smoothing": 0.0,
    "accelerator": _accelerator(),
    "is_encoder_decoder": True,
    "aux_loss_enabled": False,
    "pad_token_id": 0,
    "padding_value": 0,
  }
  cpo_trainer, orpo_trainer = (
    object.__new__(kind) for kind in (cpo.CPOTrainer, orpo.ORPOTrainer)
  )
  vars(cpo_trainer).update(common, loss_type="simpo", simpo_gamma=0.5, alpha=0.0)
  vars(orpo_trainer).update(common, _shift_right=lambda labels: labels)
  simpo, odds = [], []
  for logits, labels in zip(logits_Bx2xTxV, labels_Bx2xT, strict=True):
    logps = cpo_trainer.get_batch_logps(logits, labels.clone(), True, True)
    simpo.append(cpo_trainer.cpo_loss(logps[:1], logps[1:])[0].item())
    inputs = {
      "concatenated_labels": labels,
      "concatenated_input_ids": labels,
      "concatenated_attention_mask": labels != -100,
    }
    orpo_trainer.concatenated_inputs = lambda *_, inputs=inputs, **__: inputs
    output = types.SimpleNamespace(logits=logits)
    loss, _ = orpo_trainer.get_batch_loss_metrics(
      lambda *_, output=output, **__: output, {"chosen_labels": labels[:1]}
    )
    odds.append(loss.item())
  return {"simpo": simpo, "orpo": odds}


def make_group_case(seed: int, beta: float) -> dict:
  """Groups of scored responses, and the gradient of TRL's RLOO and GRPO in log-probs.

  TRL's estimates of the KL are given too, RLOO's as the number that it is there.
  """
  torch.manual_seed(seed)
  lengths = torch.randint(1, T + 1, (B, N))
  lengths[0, 0], lengths[0, 1] = T, 1
  scores = torch.randn(B, N)
  policy, reference = -torch.rand(B, N, T) * 4, -torch.rand(B, N, T) * 4
  mask = torch.arange(T) < lengths[..., None]
  gradients = {
    name: _group_gradient(kind, policy, reference, lengths, scores, beta)
    for name, kind in {"rloo": trl.RLOOTrainer, "grpo": trl.GRPOTrainer}.items()
  }
  return {
    "beta": beta,
    "lengths_BxN": lengths.tolist(),
    "scores_BxN": _rounded(scores),
    "token_logps_BxNxT": _rounded(policy),
    "ref_token_logps_BxNxT": _rounded(reference),
    "gradients_BxNxT": {
      name: _rounded(gradient * mask) for name, gradient in gradients.items()
    },
  }


def _group_gradient(kind, policy_BxNxT, reference_BxNxT, lengths_BxN, scores_BxN, beta):
  """d loss / d log-probability of each token, for one of TRL's online trainers."""
  leaf = policy_BxNxT.clone().requires_grad_()
  models = [types.SimpleNamespace(training=True) for _ in range(2)]
  models[0].is_gradient_checkpointing = False
  answers = [leaf.reshape(B * N, T), reference_BxNxT.reshape(B * N, T)]

  def token_logps(model, *_, **__):
    logps = answers[models.index(model)]
    return logps, torch.zeros_like(logps), None

  completions = [[1] * int(length) for length in lengths_BxN.flatten()]
  generated = ([[1]] * (B * N), completions, completions)
  if kind is trl.GRPOTrainer:
    generated = ([[1]] * (B * N), completions, None, completions, None, {}, None, None)
  trainer = object.__new__(kind)
  vars(trainer).update(
    _group_settings(beta),
    model=models[0],
    ref_model=models[1],
    _generate=lambda prompts: generated,
    _get_per_token_logps_and_entropies=token_logps,
    _calculate_rewards=lambda *_: scores_BxN.reshape(B * N, 1),
  )
  inputs = trainer._generate_and_score_completions([{"prompt": ""}] * (B * N))
  trainer._compute_loss(models[0], inputs).backward()
  return leaf.grad


def _group_settings(beta: float) -> dict:
  """Every attribute that scoring and loss read, at TRL's defaults but for the loss."""
  return {
    "beta": beta,
    "loss_type": "grpo",
    "scale_rewards": "group",
    "num_generations": N,
    "accelerator": _accelerator(),
    "args": types.SimpleNamespace(
      gradient_checkpointing_kwargs=None,
      per_device_train_batch_size=B * N,
      steps_per_generation=1,
      gradient_accumulation_steps=1,
      delta=None,
      use_bias_correction_kl=False,
      report_to=[],
    ),
    "state": types.SimpleNamespace(global_step=0),
    "reward_weights": torch.ones(1),
    "reward_func_names": ["score"],
    "reward_funcs": [None],
    "reward_clip_range": None,
    "normalize_advantages": False,
    "multi_objective_aggregation": "sum_then_normalize",
    "importance_sampling_level": "token",
    "off_policy_mask_threshold": None,
    "top_entropy_quantile": 1.0,
    "_entropy_bonus_enabled": False,
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "num_iterations": 1,
    "current_gradient_accumulation_steps": 1,
    "environment_factories": None,
    "environments": None,
    "tools": None,
    "use_vllm": False,
    "aux_loss_enabled": False,
    "mask_truncated_completions": False,
    "pad_to_multiple_of": None,
    "log_multimodal": False,
    "_tokenizer": types.SimpleNamespace(pad_token_id=0),
    "_metrics": collections.defaultdict(lambda: collections.defaultdict(list)),
    "_logs": collections.defaultdict(list)
    | {key: collections.defaultdict(list) for key in ("rewards", "extra")},
    "_pending_extra_logs": {},
    "_pending_metrics": {},
  }


def _accelerator() -> types.SimpleNamespace:
  """What one process without any device but a CPU would have."""
  return types.SimpleNamespace(
    device=torch.device("cpu"),
    process_index=0,
    is_main_process=True,
    autocast=torch.no_grad,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
  )


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
    accelerator=_accelerator(),
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
  groups = [make_group_case(0, 0.1), make_group_case(1, 0.5)]
  PATH.write_text(json.dumps({**header, "cases": cases, "groups": groups}) + "\n")


def random_case() -> dict:
  """A case that no one has seen before; its seed is printed for whom it fails."""
  seed = _new_seed()
  beta = random.Random(seed).uniform(0.05, 2)
  return make_case(seed, beta, random.Random(seed + 1).uniform(0, 0.45))


def random_group_case() -> dict:
  """The same for groups."""
  seed = _new_seed()
  return make_group_case(seed, random.Random(seed).uniform(0.05, 2))


def _new_seed() -> int:
  seed = random.SystemRandom().randrange(2**31)
  print("seed", seed)
  return seed


if __name__ == "__main__":
  main()
