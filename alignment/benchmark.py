"""How fast the parts of a step are: one JSON line per measurement.

  python -m alignment.benchmark --size=t5_1_1_small --dtype=bfloat16 --prompts=8

train_step   an IPO step on pairs, the reference's forward pass included
online_step  sampling two responses per prompt (or --samples, of which the best and
             the worst are learned from), judging both orders of all pairs with a
             preference model of the policy's size, the reference, and the train step
generation   sampling as many responses per prompt (prompts encoded once)
scoring      log-probabilities of two given responses per prompt

Responses have exactly the given length: EOS does not end them. All run on the mesh of
the devices there are, and compile before they are timed.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import importlib.metadata
import json
import statistics
import sys
import time
from typing import Any

from absl import app, flags
import numpy as np

from alignment.runtime import allocator
from alignment.types import UserError

MEASURES = ("train_step", "online_step", "generation", "scoring")
N = 2  # responses per prompt that are learned from

_SIZE = flags.DEFINE_string("size", "t5_1_1_small", "A name in models/registry.py.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of products.")
_PROMPTS = flags.DEFINE_integer("prompts", 8, "Prompts per batch.", lower_bound=1)
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 128, "Tokens.", lower_bound=1)
_RESPONSE_LENGTH = flags.DEFINE_integer("response_length", 64, "Tokens.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", N, "Per prompt.", lower_bound=2)
_OPTIMIZER = flags.DEFINE_enum("optimizer", "adafactor", ["adafactor", "adamw"], "")
_SCAN_LAYERS = flags.DEFINE_bool("scan_layers", False, "Layers stacked, run by a scan.")
_MEASURE = flags.DEFINE_list("measure", list(MEASURES), "Which of the four.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Case:
  """What is measured: a model's size and numerics, and the shapes of a batch."""

  size: str = "t5_1_1_small"
  dtype: str = "float32"
  prompts: int = 8
  prompt_length: int = 128
  response_length: int = 64
  samples: int = N
  optimizer: str = "adafactor"
  scan_layers: bool = False

  def model(self) -> Any:
    from alignment.models import registry

    cfg = registry.config(self.size, dtype=self.dtype, scan_layers=self.scan_layers)
    return registry.model(cfg)

  def judge_length(self) -> int:
    """The preference model's input: a prompt, two responses and four markers."""
    return self.prompt_length + N * self.response_length + 4


def flops(case: Case) -> dict[str, int]:
  """Floating-point operations of each measurement, as matrix products need them.

  As the model counts them (`costs`): a product of [m, k] and [k, n] is 2mkn, nothing
  else is counted, and the causal mask is not subtracted. A backward pass counts as two
  forward passes; recomputation, as none. Sampling needs what scoring does, the judge
  two forward passes (one per order) over its longer input with one token after it for
  each pair of samples, and an IPO step scores with the reference.
  """
  model = case.model()
  S, T = case.prompt_length, case.response_length
  scoring, generation = (
    case.prompts * model.costs(S, count, T).flops for count in (N, case.samples)
  )
  passes = case.samples * (case.samples - 1)
  judging = passes * case.prompts * model.costs(case.judge_length(), 1, 1).flops
  return {
    "train_step": 4 * scoring,
    "online_step": generation + judging + 4 * scoring,
    "generation": generation,
    "scoring": scoring,
  }


def responses(case: Case, name: str) -> int:
  """Per prompt, of a measurement: sampled, or given."""
  return case.samples if name in ("online_step", "generation") else N


def response_tokens(case: Case, name: str) -> int:
  return case.prompts * responses(case, name) * case.response_length


def programs(case: Case, params: Any = None) -> dict[str, Callable[[], Any]]:
  """The four measurements as functions that run once and return device arrays.

  The policy starts at `params` (random ones if not given), which are also those of
  reference and preference model. Steps update the policy, as in a run.
  """
  import jax
  import jax.numpy as jnp

  from alignment import types
  from alignment.core import judges, optim, rollout, sampling, scoring, train_step
  from alignment.data import vocabularies
  from alignment.runtime import sharding

  model = case.model()
  B, T = case.prompts, case.response_length
  mesh = sharding.make_mesh()
  rules = model.layout_rules(mesh.shape["tensor"])
  sharding.check_batch(B, mesh, "prompts")
  if params is None:
    key = jax.random.key(0)
    params = sharding.init_sharded(model.init, key, mesh=mesh, rules=rules)
  layout = sharding.shardings(params, mesh, rules)
  optimizer = optim.Optimizer(case.optimizer)

  batch = sharding.put_batch(_batch(case, model.cfg.vocab_rows), mesh)
  markers = vocabularies.JudgeMarkers((2,), (3,), (4, 1), first_id=5, second_id=6)
  preference_model = judges.PreferenceModel(model, markers, case.judge_length(), "left")
  sampler = sampling.Sampler(model, ending_ids=())  # responses have full length
  roller = rollout.Roller(sampler, model, preference_model, case.samples, "best_worst")
  roll = rollout.compiled(roller, mesh)
  score = jax.jit(functools.partial(scoring.score, model))
  generate = jax.jit(
    functools.partial(
      sampling.generate, sampler, num_samples=case.samples, max_length=T
    )
  )
  step = train_step.compiled(
    train_step.PolicyObjective(model, "ipo"), optimizer, 1, mesh, rules, model
  )
  params = jax.device_put(params, layout)
  # As the study holds models that are only read.
  freeze = jax.jit(model.cast_for_reading, out_shardings=layout)
  reference = freeze(params)
  copy = jax.jit(lambda p: jax.tree.map(jnp.copy, p), out_shardings=layout)
  # The state is donated to every step: it lives here, as in a training loop.
  state = [train_step.init_state(copy(params), optimizer)]
  state = [jax.device_put(state[0], train_step.state_shardings(state[0], mesh, rules))]
  hyper = train_step.hyper(learning_rate=1e-5, beta=0.1)

  def update(batch: types.Batch) -> Any:
    state[0], metrics = step(state[0], batch, hyper)
    return state[0], metrics

  def offline() -> Any:
    return update(batch.replace(ref_logps_BxN=score(reference, batch)))

  def step_key() -> Any:
    return jax.random.fold_in(jax.random.key(0), state[0].step)

  def online() -> Any:
    rolled = roll(state[0].params, reference, reference, batch, step_key())
    return update(rolled.batch)

  return {
    "train_step": offline,
    "online_step": online,
    "generation": lambda: generate(params, batch, step_key()),
    "scoring": lambda: score(reference, batch),
  }


def _batch(case: Case, rows: int) -> Any:
  """Random pairs, all of them of full length; `rows` is the size of the vocabulary."""
  from alignment.types import Batch

  B, S, T = case.prompts, case.prompt_length, case.response_length
  rng = np.random.default_rng(0)
  return Batch(
    prompts_BxS=rng.integers(2, rows, (B, S), np.int32),
    prompt_lengths_B=np.full((B,), S, np.int32),
    responses_BxNxT=rng.integers(2, rows, (B, N, T), np.int32),
    lengths_BxN=np.full((B, N), T, np.int32),
    ref_logps_BxN=np.zeros((B, N), np.float32),
    weights_B=np.ones((B,), np.float32),
    ids_B=np.arange(B, dtype=np.int32),
  )


def seconds(run: Callable[[], Any]) -> float:
  """Wall time of one call, until its results are there."""
  import jax

  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def matmul_peak(dtype: str) -> float:
  """FLOP/s of the best large matrix product found, over all devices together.

  Inputs of `dtype`, results of `dtype` or float32, whichever is faster here.
  """
  import jax
  import jax.numpy as jnp

  best = 0.0
  for n in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
    x = jnp.ones((n, n), dtype)
    for result in {jnp.dtype(dtype), jnp.dtype("float32")}:
      product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=result))
      run = functools.partial(product, x, x)
      seconds(run)
      best = max(best, 2 * n**3 / min(seconds(run) for _ in range(5)))
  return best * jax.device_count()


def measure(case: Case, names: list[str], repeats: int) -> Iterator[dict[str, Any]]:
  """One dictionary per measurement, as it is done."""
  import jax

  peak = matmul_peak(case.dtype)
  todo = programs(case)
  for name in names:
    seconds(todo[name])
    times = [seconds(todo[name]) for _ in range(repeats)]
    median = statistics.median(times)
    yield {
      "name": name,
      **dataclasses.asdict(case),
      "responses_per_prompt": responses(case, name),
      "median_seconds": median,
      "min_seconds": min(times),
      "max_seconds": max(times),
      "response_tokens_per_second": response_tokens(case, name) / median,
      "flops": flops(case)[name],
      "flops_per_second": flops(case)[name] / median,
      "matmul_peak_flops_per_second": peak,
      "share_of_matmul_peak": flops(case)[name] / median / peak,
      "device": jax.devices()[0].device_kind,
      "devices": jax.device_count(),
      "versions": {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax")},
    }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise UserError(f"unexpected argument '{argv[1]}': options start with --")
  for name in _MEASURE.value:
    if name not in MEASURES:
      raise UserError(f"--measure '{name}' is unknown: any of {', '.join(MEASURES)}")
  names = [field.name for field in dataclasses.fields(Case)]
  chosen: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  case = Case(**chosen)
  for row in measure(case, _MEASURE.value, _REPEATS.value):
    print(json.dumps(row), flush=True)


def cli() -> None:
  allocator.keep_memory()
  try:
    app.run(main)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  cli()
