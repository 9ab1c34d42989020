"""Every key there is, with the paper's values where it gives them.

Not a study to run by itself: `tldr.py`, `helpfulness.py`, `harmlessness.py`,
`chat_arena.py` set the task; `quickstart.py` and `hh_small.py` are sized for a CPU.
An unknown key is an error.
"""

from ml_collections import ConfigDict


def optimizer(**overrides) -> dict:
  """Adafactor, T5X's default: the paper does not report its optimizer."""
  return {
    "name": "adafactor",
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "decay_rate": 0.8,
    "multiply_by_parameter_scale": True,
    "clip_norm": 0.0,
  } | overrides


def role(**overrides) -> dict:
  """What every trained model has: where it starts and how it trains."""
  return {
    "size": "t5_1_1_large",
    # "scratch", "sft" (the study's own SFT checkpoint of this size), or a directory
    # with a Hugging Face T5 checkpoint.
    "init": "sft",
    "optimizer": optimizer(),
    "learning_rate": 1e-5,
    "warmup_steps": 0,
    "batch_size": 32,  # prompts, each with one pair
    "microbatches": 1,
    "steps": 4000,
  } | overrides


def preference_model(**overrides) -> dict:
  """A role that is a preference model; training stops where validation is best."""
  return (
    role(learning_rate=1e-4, warmup_steps=1000)
    # Evaluated after each of these many equal parts; the best on one half of the
    # validation pairs is kept, the other half reports its accuracy.
    | {"evaluations": 10}
    | overrides
  )


def policy(**overrides) -> dict:
  """A role that is a policy trained on a pairwise loss."""
  return (
    role()
    | {
      "method": "online",  # online, offline
      "loss": "ipo",
      "loss_options": {},
      "beta": 0.1,
      "temperature": 1.0,  # not reported; 1 samples the policy itself, as the KL needs
      "top_p": 1.0,
      "seed": 0,
      # Checkpoints that are evaluated, as fractions of `steps`.
      "evaluate_at": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    }
    | overrides
  )


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.task = "base"
  c.world = 0  # data (if generated), initialisations, SFT, judges, golden policy
  c.workers = 1  # processes on this machine, each with its share of the cores

  c.data = {
    "format": "jsonl",  # jsonl, tfds, toy
    "path": "",  # jsonl: FILE.jsonl or FILE.jsonl.gz
    "name": "",  # tfds: one of the builders in alignment/data/datasets
    "data_dir": "",  # tfds
    "num_pairs": 0,  # toy: how many to generate; jsonl and tfds: 0 is all
    "language": {"temperature": 1.0},  # toy: fields of alignment.data.toy.Language
    "validation_fraction": 0.05,  # of prompts
    "truncate_prompt": "left",  # the side that a prompt which is too long loses
    "long_response": "truncate",  # truncate, drop or error
    "on_bad_pair": "error",  # error or skip: empty or identical responses
  }
  c.vocab = {"kind": "sentencepiece", "path": "", "words": ()}  # or bytes, words
  c.prompt_length = 1024
  c.response_length = 128
  c.judge_context_length = 1024 + 2 * 128 + 32

  c.model = {"dtype": "bfloat16", "scan_layers": True, "remat": "full"}
  c.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
  c.layout = ()  # rules put before the model family's own (alignment/sharding.py)

  # Batches count pairs, and both responses of a pair are targets: 64 pairs are the
  # paper's batch of 128.
  c.sft = role(init="", learning_rate=3e-5, batch_size=64)
  del c.sft["size"]  # an SFT exists for every size that another role starts from
  c.golden_pm = preference_model(size="t5_1_1_xxl", batch_size=16, steps=20_000)
  c.proxy_pm = preference_model(batch_size=32, steps=10_000)
  c.policy = policy()
  c.golden_policy = policy()
  # Each entry is one method's runs: keys of `policy` with a tuple of values each, of
  # which the product is run; all other keys are as in `policy`.
  c.runs = {
    "online": {"method": ("online",)},
    "offline": {
      "method": ("offline",),
      "learning_rate": (3e-6, 1e-5, 3e-5),
      "beta": (0.1, 0.5, 1.0),
      "steps": (4000, 20_000),
    },
  }
  c.evaluation = {
    "prompts": 2048,
    "kl_prompts": 256,
    "pairs": 256,  # of D_golden, for the policy as a classifier
    "batch_size": 64,
    "require_good_judge": True,  # stop if the golden preference model is unusable
  }
  # --stages=sample, --stages=export: a model by its stage's name; step 0 is its last.
  c.sample = {"model": "", "step": 0, "prompts": (), "responses": 2, "temperature": 1.0}
  c.export = {"model": "", "step": 0, "directory": "", "dtype": "float32"}
  c.notes = ()  # sentences for the report: what a reader must know about this study
  c.log_every = 50
  c.save_every = 1000
  return c
