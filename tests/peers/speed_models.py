"""Peers of alignment/benchmark.py: the same measurements in PyTorch.

`T5` and `Decoder` are written as a good engineer would with transformers' models, `Trl`
is a step of TRL's DPO trainer.
"""

import abc
import contextlib
import os
import time
from typing import Any

import datasets
import tokenizers
import torch
from torch.nn import functional as F
import transformers
import trl

from alignment import benchmark

BETA, RATE = 0.1, 1e-5
ADAMW = {"lr": RATE, "betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
N = benchmark.N


class Peer(abc.ABC):
  """Policy, reference and judge of one family, and what is done with them."""

  loader: Any
  attention: str
  generated: dict[str, Any] = {}  # settings of generation that only some have

  def __init__(self, directory: str, case: benchmark.Case, compile_it: bool):
    self.case, self.dtype = case, getattr(torch, case.dtype)
    with contextlib.redirect_stderr(open(os.devnull, "w")):
      self.policy, self.reference, self.judge = (self._load(directory) for _ in "prj")
    self.weights = list(self.policy.parameters())
    self.masters = self.weights
    if self.dtype != torch.float32:
      self.masters = [w.detach().float().requires_grad_() for w in self.weights]
    self.optimizer = torch.optim.AdamW(self.masters, **ADAMW)
    torch.manual_seed(0)
    self.vocab = self.policy.config.vocab_size
    shape = (case.prompts, case.prompt_length)
    self.prompts = torch.randint(2, self.vocab, shape)
    self.responses = torch.randint(
      2, self.vocab, (case.prompts * N, case.response_length)
    )
    self.logps = torch.compile(self._logps) if compile_it else self._logps

  def _load(self, directory: str) -> Any:
    model = self.loader.from_pretrained(
      directory, dtype=self.dtype, attn_implementation=self.attention
    )
    return model.eval()  # no dropout anywhere

  @abc.abstractmethod
  def _logits(self, model: Any, responses: torch.Tensor) -> torch.Tensor:
    """[B x N, T, V]; every prompt is read once."""

  @abc.abstractmethod
  def _next_logits(self, tokens: torch.Tensor) -> torch.Tensor:
    """The judge's, after `tokens`: [B, V]."""

  def _logps(self, model: Any, responses: torch.Tensor) -> torch.Tensor:
    """Summed log-probabilities, B x N."""
    logits = self._logits(model, responses)
    nll = F.cross_entropy(
      logits.float().flatten(0, 1), responses.flatten(), reduction="none"
    )
    return -nll.view(self.case.prompts, N, -1).sum(-1)

  def scoring(self, responses: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
      return self.logps(
        self.reference, self.responses if responses is None else responses
      )

  def generation(self) -> torch.Tensor:
    """Both samples of every prompt, each of exactly T tokens."""
    T = self.case.response_length
    settings = transformers.GenerationConfig(
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      num_return_sequences=N,
      max_new_tokens=T,
      eos_token_id=None,
      pad_token_id=0,
      **self.generated,
    )
    with torch.inference_mode():
      tokens = self.policy.generate(
        self.prompts,
        attention_mask=torch.ones_like(self.prompts),
        generation_config=settings,
      )[:, -T:]
    assert tokens.shape == (self.case.prompts * N, T)
    return tokens.clone()

  def train_step(self, responses: torch.Tensor | None = None) -> torch.Tensor:
    """IPO: the reference, loss, gradients, AdamW."""
    responses = self.responses if responses is None else responses
    reference = self.scoring(responses).clone()
    ratios = self.logps(self.policy, responses) - reference
    loss = ((ratios[:, 0] - ratios[:, 1] - 1 / (2 * BETA)) ** 2).mean()
    loss.backward()
    if self.masters is self.weights:
      self.optimizer.step()
    else:
      for master, weight in zip(self.masters, self.weights, strict=True):
        master.grad = weight.grad.float()
      self.optimizer.step()
      with torch.no_grad():
        torch._foreach_copy_(self.weights, self.masters)
    self.policy.zero_grad(set_to_none=True)
    return loss.detach()

  def online_step(self) -> torch.Tensor:
    """Samples, judges both orders, puts the preferred response first, steps."""
    pairs = self.generation().view(self.case.prompts, N, -1)
    first, second = pairs[:, 0], pairs[:, 1]
    swap = (self._margin(first, second) < self._margin(second, first))[:, None, None]
    return self.train_step(torch.where(swap, pairs.flip(1), pairs).flatten(0, 1))

  def _margin(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    def marker(*ids: int) -> torch.Tensor:
      return torch.tensor(ids).expand(len(first), len(ids))

    parts = [self.prompts, marker(2), first, marker(3), second, marker(4, 1)]
    tokens = torch.cat(parts, 1)
    assert tokens.shape[1] == self.case.judge_length()
    with torch.inference_mode():
      logits = self._next_logits(tokens)
    return (logits[:, 5] - logits[:, 6]).float()


class T5(Peer):
  """Eager attention: SDPA's fast path has no position bias, and is slower here."""

  loader = transformers.T5ForConditionalGeneration
  attention = "eager"
  generated = {"decoder_start_token_id": 0}

  def _logits(self, model: Any, responses: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(self.prompts)
    encoded = model.encoder(input_ids=self.prompts, attention_mask=mask)
    return model(
      encoder_outputs=(encoded.last_hidden_state.repeat_interleave(N, 0),),
      attention_mask=mask.repeat_interleave(N, 0),
      decoder_input_ids=F.pad(responses[:, :-1], (1, 0)),
      use_cache=False,
    ).logits

  def _next_logits(self, tokens: torch.Tensor) -> torch.Tensor:
    return self.judge(
      input_ids=tokens,
      attention_mask=torch.ones_like(tokens),
      decoder_input_ids=torch.zeros_like(tokens[:, :1]),
      use_cache=False,
    ).logits[:, 0]


class Decoder(Peer):
  """The prompt's keys and values are computed once, and repeated for its responses.

  `shared=False` repeats the prompt instead, as most code does: on short prompts that
  may be faster, and `speed_peer` takes the faster one.
  """

  loader = transformers.AutoModelForCausalLM
  attention = "sdpa"
  shared = True

  def _logits(self, model: Any, responses: torch.Tensor) -> torch.Tensor:
    T = self.case.response_length
    if not self.shared:
      tokens = torch.cat([self.prompts.repeat_interleave(N, 0), responses], 1)
      return model(tokens[:, :-1], use_cache=False, logits_to_keep=T).logits
    cache = transformers.DynamicCache(config=model.config)
    model.model(self.prompts[:, :-1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(N)
    last = self.prompts[:, -1:].repeat_interleave(N, 0)
    tokens = torch.cat([last, responses[:, :-1]], 1)
    return model(tokens, past_key_values=cache, use_cache=True).logits

  def _next_logits(self, tokens: torch.Tensor) -> torch.Tensor:
    return self.judge(tokens, use_cache=False, logits_to_keep=1).logits[:, 0]


class Trl(trl.DPOTrainer):
  """TRL's DPO trainer with its IPO loss on a peer's pairs, tokenised already."""

  def __init__(self, directory: str, peer: Peer, workdir: str, steps: int):
    case, T = peer.case, peer.case.response_length
    pairs = peer.responses.view(case.prompts, N, T).tolist()
    rows = [
      {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
      for prompt, (chosen, rejected) in zip(peer.prompts.tolist(), pairs, strict=True)
    ]
    arguments = trl.DPOConfig(
      output_dir=workdir,
      per_device_train_batch_size=case.prompts,
      max_steps=steps,
      max_length=None,
      loss_type=["ipo"],
      beta=BETA,
      learning_rate=RATE,
      bf16=case.dtype == "bfloat16",
      gradient_checkpointing=False,
      logging_steps=10_000,
      save_strategy="no",
      report_to=[],
      use_cpu=True,
      disable_tqdm=True,
    )
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0}, "<end>"))
    self.clock = _Clock()
    model, reference = (
      Decoder.loader.from_pretrained(directory, attn_implementation="sdpa")
      for _ in "mr"
    )
    super().__init__(
      model=model,
      ref_model=reference,
      args=arguments,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>"
      ),
      callbacks=[self.clock],
    )

  def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
    return dataset

  def seconds(self) -> list[float]:
    """Of every step but the first."""
    with contextlib.redirect_stdout(open(os.devnull, "w")):
      self.train()
    return self.clock.seconds[1:]


class _Clock(transformers.TrainerCallback):
  def __init__(self):
    self.seconds: list[float] = []

  def on_step_begin(self, *_: Any, **__: Any) -> None:
    self.began = time.perf_counter()

  def on_step_end(self, *_: Any, **__: Any) -> None:
    self.seconds.append(time.perf_counter() - self.began)
