"""Losses: pure functions of log-probabilities, never of models.

Every policy loss begins alike, so that a config can swap one for another:

  loss_B = loss(logps_BxN, ref_logps_BxN, beta, [lengths_BxN, ...], *, options)

`logps` are `logprobs.sequence_logps`: summed over tokens, in nats. Of a pair, index 0
is the preferred response y_w, index 1 the other, y_l. Results are float32, one per
prompt, unreduced. Most losses are f(z), z = beta * rho, where (`rho` below)

  rho = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)].

beta enters through z only, and once: **larger beta is stronger regularisation**, as z
then reaches f's flat part at a smaller rho. That is the scale of the paper's App. B;
TRL, the IPO paper and the body's eq. 1 scale IPO differently (see `ipo`). In `simpo`
and `orpo`, which have no reference, beta is something else: they say what.

What else a loss reads it names after beta, and is given by that name (`NEEDS`):
`lengths_BxN`, tokens of each response, EOS included; `scores_BxN`, a judge's; and
`kl_BxN`, `logprobs.exact_kl` of policy and reference, summed over tokens. With the
option `length_normalized`, log-ratios are divided by their response's length; the beta
that means the same is then larger by about that length.

To add a loss, write one function under a decorator; its keyword-only arguments are its
options, which a config sets by name, and the registry does the rest:

  @pairwise()
  def cubic(logps_Bx2, ref_logps_Bx2, beta, *, margin=1.0):
    '''max(0, margin - z)^3 ...'''
    return jax.nn.relu(margin - beta * rho(logps_Bx2, ref_logps_Bx2)) ** 3

`@pairwise(responses=3)` asks the data for a third response, the supervised target;
`@pairwise(reference=False)` says that the reference's log-probabilities are not read;
`@group()` is for losses of any N >= 2 responses that the policy has just sampled.

Sources: the paper (arXiv 2405.08448), App. A and B; GPO, generalised preference
optimisation (arXiv 2402.05749); SLiC-HF (arXiv 2305.10425), as its authors state it in
RSO (arXiv 2309.06657); those of later losses stand with them.
"""

# ruff: noqa: F401 (these names are what the package is)
from alignment.core.losses.groups import grpo, rloo
from alignment.core.losses.pairs import (
  best_of_2,
  chi_po,
  dpo,
  exponential,
  ipo,
  orpo,
  robust,
  savage,
  simpo,
  slic,
  slic_hf,
  truncated_squared,
)
from alignment.core.losses.registry import (
  GROUP,
  LOSSES,
  NEEDS,
  Loss,
  LossFn,
  bind,
  check,
  get,
  group,
  own_source,
  pairwise,
)
from alignment.core.losses.supervised import bradley_terry, preference, sft
from alignment.core.losses.terms import per_token, rho
