"""Every key of a configuration, with the paper's values where it gives them.

A configuration is what `get_config` of a document returns: a Python file, such as those
in `configs/`, that starts from `get_config` here or from another document
(`documents.load`), and sets some of the keys. It is no study by itself: a document sets
the task at least.

An unknown key is an error, in a document as on the command line: `schema_checks.py`.
What a comment calls ours, the paper does not report.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from alignment.data.layouts import COLUMNS
from alignment.runtime.files import path_option

FILE = "alignment/study/schema.py"  # as errors name this file
_PATHS = ("path", "data_dir", "directory", "init")  # keys that are paths, wherever


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


def lora(**overrides) -> dict:
  """Adapters of low rank, trained instead of all parameters: see docs/lora.md."""
  return {
    "rank": 0,  # 0: none
    "alpha": 0.0,  # what they add is scaled by alpha / rank; 0: as it is
    "targets": ("all-linear",),  # or names of the checkpoint's modules, such as q_proj
  } | overrides


def role(**overrides) -> dict:
  """What every trained model has: where it starts and how it trains."""
  return {
    "size": "t5_1_1_large",  # a name in alignment/models/sizes.py
    # "scratch", "sft" (the study's own SFT checkpoint of this size), or a directory
    # with a Hugging Face checkpoint, in which {size} stands for the role's size.
    "init": "sft",
    "lora": lora(),
    "optimizer": optimizer(),
    "learning_rate": 1e-5,
    "warmup_steps": 0,  # 0 is ours, for SFT and policies
    "decay": False,  # linearly to 0 at the last step; a constant rate is ours
    "batch_size": 32,  # prompts, each with one pair
    "microbatches": 1,
    "steps": 4000,
    # A loss or gradient that is not finite: "stop" with its batch saved, or "skip" the
    # update and count it (the metric "skipped"), until all of `log_every` are skipped.
    "on_non_finite": "stop",
  } | overrides


def preference_model(**overrides) -> dict:
  """A role that is a judge: a preference model, or another kind.

  The paper trains "until validation accuracy is flat". Here `steps` is fixed and
  generous, and of `evaluations` equally spaced checkpoints the one is kept that is best
  on one half of the validation pairs; the other half reports its accuracy.
  """
  return (
    role(learning_rate=1e-4, warmup_steps=1000)
    | {
      # pairwise (the paper's, which reads both responses), pointwise (a reward model,
      # which gives each response a number; of 0 steps, as it is imported), "truth" (the
      # toy language's utility), or a rule of one's own (alignment/core/rules.py); what
      # is no model reads `options` alone.
      "kind": "pairwise",
      "options": {},
      # A vocabulary of its own: as config.vocab, with prompt_length, response_length
      # and context_length in its tokens (without them the study's). {} is the study's.
      "vocab": {},
      "evaluations": 10,
    }
    | overrides
  )


def policy(**overrides) -> dict:
  """A role that is a policy, trained by one of the losses in alignment/core/losses."""
  return (
    role()
    | {
      "method": "online",  # online, offline
      # online: who samples. Renewed every so many steps: 1 is online, more is
      # semi-online, 0 (never) samples from SFT all along. Below a fraction of 1, the
      # rest of the batch keeps its pair of D_golden.
      "refresh_every": 1,
      # online: how many responses are sampled to a prompt, and which of them are
      # learned from: two (of 2), best_worst (of any number, by the judge's scores), or
      # all, with their scores, which the losses rloo and grpo need (docs/rollouts.md).
      "samples": 2,
      "select": "two",
      "on_policy_fraction": 1.0,
      "record": False,  # keep every pair; what is replayed is recorded anyway
      # offline: "golden" (D_golden), a name in `datasets`, or "stream": what the online
      # run of `policy` (with `stream` overriding its keys) learned from, in its order
      # (replay_window 0), shuffled within windows of k batches, or over all (-1).
      "dataset": "golden",
      "replay_window": -1,
      "stream": {},
      "loss": "ipo",
      "loss_options": {},
      "beta": 0.1,
      "temperature": 1.0,  # ours: 1 samples the policy itself, as the KL needs
      "top_p": 1.0,
      "seed": 0,
      # Checkpoints that are evaluated, as fractions of `steps` (ours).
      "evaluate_at": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    }
    | overrides
  )


def data() -> dict:
  """Preference pairs, and how they are read and tokenised."""
  return {
    "format": "files",  # files, tfds, toy
    # files: a file, a directory, or a pattern with * and ?. JSON lines, a JSON array or
    # Parquet, in any layout of docs/your_data.md, which the content tells.
    "path": "",
    # files: what they call a field which layouts know by the name on the left.
    "columns": {name: "" for name in COLUMNS},
    "name": "",  # tfds: one of the builders in alignment/data/datasets
    "data_dir": "",  # tfds
    "num_pairs": 0,  # toy: how many to generate; files and tfds: 0 is all
    "language": {"temperature": 1.0},  # toy: fields of alignment.data.toy.Language
    "validation_fraction": 0.05,  # of prompts (ours)
    # A text in which {prompt} stands for what the user says, also of sampled.path.
    "prompt_format": "",
    "truncate_prompt": "left",  # the side that a prompt which is too long loses
    "long_response": "truncate",  # truncate, drop or error
    # error or skip, which counts them: responses that are empty, identical or to
    # different prompts, scores that are tied or contradict the labels, ...
    "on_bad_pair": "error",
  }


def sampled() -> dict:
  """Pairs that policies' start samples itself: see docs/sampled_data.md."""
  return {
    "data": "",  # or initial: D_initial, which `rater` labels, or golden: D_golden
    # Lines of text, or records with a prompt; "" is data.path. Prompts that are over
    # prompt_length are left out.
    "path": "",
    "num_prompts": 0,  # the first that fit; 0 is all
    "validation_fraction": 0.1,  # of prompts
    "pairs": 2,  # to each prompt at each temperature
    "temperatures": (1.0,),
  }


def evaluation() -> dict:
  """What checkpoints are asked, and on how many prompts and pairs."""
  return {
    "prompts": 2048,
    "kl_prompts": 256,
    "pairs": 256,  # of D_golden, for the policy as a classifier
    "batch_size": 64,
    "require_good_judge": True,  # stop if the golden preference model is unusable
    "length_control": False,  # the golden model at equal length as one more judge
    "stream_steps": 10,  # figure 6: steps of the online stream, and pairs near each
    "stream_pairs": 64,
    "best_of": (),  # n of best-of-n from SFT, judged by the proxy: () is none
  }


def runs() -> dict:
  """The runs of figure 1 at the paper's scale."""
  return {
    "online": {"method": ("online",)},
    "offline": {
      "method": ("offline",),
      "learning_rate": (3e-6, 1e-5, 3e-5),
      "beta": (0.1, 0.5, 1.0),
      "steps": (4000, 20_000),
    },
  }


def _lock(c: ConfigDict) -> None:
  # What has no default here is a mistake, in whatever file. These hold other keys: what
  # they may be is known where they are used.
  c.lock()
  for free in (c.runs, c.datasets, c.data.language, c.data.columns, c.sft.by_size):
    free.unlock()
  for role_ in (c.policy, c.golden_policy):
    role_.loss_options.unlock()
    role_.stream.unlock()
  c.rater.options.unlock()
  for judge in (c.golden_pm, c.proxy_pm):
    judge.options.unlock()
    judge.vocab.unlock()


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.task = "base"
  # A world is its data (if generated), initialisations, SFT, judges and golden policy;
  # worlds are independent of each other (but for real data, which they share), the runs
  # within one are not.
  c.worlds = 1
  c.first_world = 0
  c.without_worlds = ()  # left out of the count, such as those whose judge is refused
  c.workers = 1  # processes on this machine, each with its share of the cores

  c.data = data()
  c.sampled = sampled()
  # Who labels a sampled D_initial: a rule (alignment/core/rules.py), its options, and
  # the temperature of its noise. Evaluations then know the truth: the rule without it.
  c.rater = {"kind": "", "options": {}, "temperature": 1.0}
  # kind: sentencepiece, bytes, words, or huggingface: a directory with tokenizer.json.
  c.vocab = {"kind": "sentencepiece", "path": "", "words": ()}
  # The paper's context 1024 and target 128 are read as tokens, for policies too. A
  # preference model reads two responses and marks besides; how its 1024 were shared out
  # is not reported, so no prompt is cut any further here.
  c.prompt_length = 1024
  c.response_length = 128
  c.judge_context_length = 1024 + 2 * 128 + 32

  c.model = {
    "dtype": "bfloat16",
    "scan_layers": True,
    "remat": "full",
    "attention": "auto",  # plain, or flash: a kernel (alignment/models/flash.py)
  }
  c.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
  # Rules put before the model family's own (runtime/sharding.py): for training and
  # scoring, and for sampling, which lays parameters out anew once per rollout.
  c.layout = ()
  c.decode_layout = ()

  # Batches count pairs, and both responses of a pair are targets: 64 pairs are the
  # paper's batch of 128. Its recipes for XL and XXL are in configs/study.py.
  c.sft = role(init="", learning_rate=3e-5, batch_size=64)
  del c.sft["size"]  # an SFT exists for every size that another role starts from
  # What SFT learns from: () is the study's own data; else entries that each override
  # keys of `data`, such as {"name": "chatbot_arena"}, and are pooled.
  c.sft.data = ()
  c.sft.by_size = {}  # size -> keys of this recipe that differ for it
  # Steps of both are ours. The golden preference model's start is not reported either:
  # here the checkpoint that SFT starts from, so no SFT of its size has to be trained.
  c.golden_pm = preference_model(size="t5_1_1_xxl", batch_size=16, steps=20_000)
  c.golden_pm.init = c.sft.get_oneway_ref("init")
  c.proxy_pm = preference_model(batch_size=32, steps=10_000)
  c.policy = policy()
  c.golden_policy = policy()
  # Resampled data sets: D_a-vs-b, a response of each of two models to the prompts of
  # D_golden, labelled by the golden preference model. Models are "sft",
  # "golden_policy", and "online@0.2": the online run of `policy`, at a fraction of its
  # steps that is one of evaluate_at.
  c.datasets = {}
  # Each entry is one method's runs: keys of `policy` with a tuple of values each, of
  # which the product is run; all other keys are as in `policy`. An entry may be a tuple
  # of such products.
  c.runs = runs()
  c.evaluation = evaluation()
  c.figures = ("figure_01",)  # names in alignment/analysis/figures
  # --stages=sample, --stages=export: a model by its stage's name; step 0 is its last.
  c.sample = {"model": "", "step": 0, "prompts": (), "responses": 2, "temperature": 1.0}
  # Of a model with adapters: merge adds them to its start; else only they are written.
  c.export = {
    "model": "", "step": 0, "directory": "", "dtype": "float32", "merge": True
  }  # fmt: skip
  c.notes = ()  # sentences for the report: what a reader must know about this study
  # Compiled programs are kept in WORKDIR/compiled, for restarts, workers and studies.
  c.keep_compiled = True
  # Who is told of metrics besides metrics.jsonl: "tensorboard", "wandb".
  c.tracking = ("tensorboard",)
  # Refuse what cannot fit this machine's memory, by estimate (study/memory.py).
  c.check_memory = True
  c.log_every = 50
  c.save_every = 1000
  _lock(c)
  return c


# The paper's tasks: their builder in alignment/data/datasets, and the side on which a
# prompt that is too long is cut. Conversations keep their end; for Chatbot Arena, whose
# side is not stated, that is ours.
PAPER_DATA = {
  "tldr": {"name": "openai_comparisons", "truncate_prompt": "right"},
  "helpfulness": {"name": "anthropic_helpfulness", "truncate_prompt": "left"},
  "harmlessness": {"name": "anthropic_harmlessness", "truncate_prompt": "left"},
  "chat_arena": {"name": "chatbot_arena", "truncate_prompt": "left"},
}


def paper_task(task: str) -> ConfigDict:
  """One of the paper's four tasks at its own scale.

  SFT pools all four, so their configs share it where `artefacts` of one working
  directory is a link to that of another.
  `sft.init`, `vocab.path` and `data.data_dir` are the user's to set.
  """
  c = get_config()
  c.task = task
  c.data.update({"format": "tfds"} | PAPER_DATA[task])
  c.sft.data = tuple(PAPER_DATA.values())
  c.sft.by_size = {
    "t5_1_1_xl": {"batch_size": 8, "learning_rate": 1e-5, "steps": 8000},
    "t5_1_1_xxl": {"batch_size": 4, "learning_rate": 1e-5, "steps": 8000},
  }
  c.mesh.update({"data": 1, "fsdp": -1})  # 11B parameters fit no single chip
  return c


# --- paths ----------------------------------------------------------------------------


def expand_paths(config: ConfigDict) -> None:
  """Puts the home directory for `~` in all keys that are paths: no stage does so.

  Raises:
    UserError: for the home of an unknown user.
  """
  _expanded(config, "config")


def _expanded(value: Any, name: str) -> Any:
  """A value of a key of that (dotted) name, with its paths expanded."""
  if isinstance(value, ConfigDict):
    for key, below in value.items():
      expanded = _expanded(below, f"{name}.{key}")
      if expanded != below:  # others stay what they are: references to other keys
        value[key] = expanded
  elif isinstance(value, Mapping):
    return {key: _expanded(below, f"{name}.{key}") for key, below in value.items()}
  elif isinstance(value, tuple | list):
    return tuple(_expanded(below, name) for below in value)
  elif isinstance(value, str) and value.startswith("~"):
    is_path = name.rpartition(".")[2] in _PATHS
    return str(path_option(value, f"--{name}")) if is_path else value
  return value
