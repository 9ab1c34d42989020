"""How good a judge is on topics that it has not seen: one command, one table.

  python -m alignment.judge_benchmark --model=DIR --data=PAIRS --kind=pointwise \\
      --folds=4 --workdir=WORK

Trains a judge from the Hugging Face model in DIR on the pairs of a preference file, of
which a quarter of the topics (distinct prompts) are held out whole, and says how often
it agrees with the labels of those. With --folds=4 every topic is held out once, by one
of four judges. Writes WORK/KIND.csv (a row per held-out pair), KIND.json and KIND.md,
after every fold. Finished stages are skipped; a killed one resumes.
"""

from alignment.runtime import allocator, interrupts

if __name__ == "__main__":  # before imports that take a second
  interrupts.end_at_once()
  allocator.keep_memory()

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import Any

from alignment.analysis import topics
from alignment.core.rules import TRAINED
from alignment.runtime import compilation, hosts, output
from alignment.runtime.exits import exit_with_status
from alignment.runtime.files import (
  directory_option,
  path_option,
  read_json,
  write_atomically,
  write_json,
)
from alignment.study import artefacts, held_out_topics
from alignment.study.held_out_topics import Division, TopicJudge
from alignment.study.stages.judging import REPORT


def main(words: Sequence[str]) -> None:
  """Runs the command.

  Raises:
    UserError: for what cannot be.
  """
  options = vars(parser().parse_args(words))
  workdir = directory_option(options.pop("workdir"), "--workdir")
  division = Division(
    *(options.pop(key) for key in ("parts", "pattern", "pairs_per_topic", "seed"))
  )
  folds = options.pop("folds")
  lengths = options.pop("prompt_length"), options.pop("response_length")
  for key in ("model", "data"):
    options[key] = str(path_option(options[key], f"--{key}"))
  hosts.start(None, 100)
  config = held_out_topics.get_config(lengths=lengths, **options)
  compilation.keep(workdir / "compiled")
  done: list[TopicJudge] = []
  for judge in held_out_topics.judges(config, division, folds):
    artefacts.run([judge], workdir)
    done.append(judge)
    write(done, workdir, options["kind"])
  print((workdir / f"{options['kind']}.md").read_text(encoding="utf-8"))


def write(judges: Sequence[TopicJudge], workdir: Path, kind: str) -> None:
  """What finished judges say of the topics that they have not seen."""

  def read(artefact: artefacts.Artefact) -> Path:
    return artefact.verified(workdir)

  held_out = topics.concatenate(judge.held_out(read) for judge in judges)
  reports = [read_json(read(judge) / REPORT) for judge in judges]
  files = {"csv": topics.to_csv(held_out), "md": topics.table(held_out)}
  for suffix, text in files.items():
    write_atomically(workdir / f"{kind}.{suffix}", text.encode())
  write_json(workdir / f"{kind}.json", topics.report(held_out) | {"judges": reports})


def parser() -> argparse.ArgumentParser:
  """The command's options."""
  program = "python -m alignment.judge_benchmark"
  formatter = argparse.ArgumentDefaultsHelpFormatter
  p = argparse.ArgumentParser(program, formatter_class=formatter, allow_abbrev=False)

  def option(name: str, default: Any, explained: str) -> None:
    p.add_argument(f"--{name}", type=type(default), default=default, help=explained)

  for name, explained in {
    "model": "a Hugging Face directory, where the judge starts",
    "data": "a preference file, in any layout that a study reads",
    "workdir": "directory of artefacts and results",
  }.items():
    p.add_argument(f"--{name}", required=True, help=explained)
  p.add_argument("--kind", choices=TRAINED, default="pointwise", help="of judge")
  option("folds", 1, "how many parts are held out, one after the other")
  option("parts", Division.parts, "into how many the topics are dealt")
  option("pattern", Division.pattern, "topics with the same such start go together")
  option("pairs_per_topic", Division.pairs_per_topic, "that are asked about; 0: all")
  option("seed", Division.seed, "of parts and pairs")
  option("steps", 150, "of training")
  option("batch_size", 8, "pairs")
  option("microbatches", 1, "into which a batch is cut, to save memory")
  option("learning_rate", 2e-5, "after the warm-up")
  option("warmup_steps", 15, "of the learning rate")
  option("prompt_length", 64, "tokens that are read of a prompt")
  option("response_length", 80, "tokens that are read of a response")
  p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
  return p


def cli() -> None:
  output.prepare()
  exit_with_status(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
  cli()
