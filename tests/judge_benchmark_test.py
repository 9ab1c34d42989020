"""The judge benchmark on a tiny model: what is held out, and what is written."""

import gzip
import json

import jax
import numpy as np
import pytest

from alignment import judge_benchmark
from alignment.analysis import topics
from alignment.data import pairs
from alignment.models import huggingface, registry
from alignment.runtime import compilation, hosts
from alignment.study import held_out_topics
from alignment.study.held_out_topics import Division
from alignment.types import UserError
from tests import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("compile_quickly")

DEBATES = ("cats or dogs", "tea or milk", "is it late", "is a mat a hat")
TOPICS = [f"Debate: {d}? Write this side: {s}." for d in DEBATES for s in ("A", "B")]


def write_pairs(directory):
  """Twelve pairs of each topic, the longer response winning eight of them."""
  path = directory / "pairs.jsonl.gz"
  with gzip.open(path, "wt") as f:
    for topic in TOPICS:
      for i in range(12):
        long, short = f"the cat sat on the mat {i}, and so on", f"what {i} is this"
        chosen, rejected = (short, long) if i % 3 == 0 else (long, short)
        record = {"prompt": topic, "chosen": chosen, "rejected": rejected}
        f.write(json.dumps(record) + "\n")
  return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model") / "llama"
  cfg = registry.config("llama_nano", vocab_rows=384)
  params = jax.device_get(jax.jit(registry.model(cfg).init)(jax.random.key(0)))
  huggingface.write(directory, cfg, params)
  tiny_tokenizer.write(directory, "chatml")
  return directory


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
  """`run(workdir, *words)` is the command; its working directory and its options."""
  patch = pytest.MonkeyPatch()
  patch.setattr(hosts, "start", lambda *_: None)  # leaves signals alone
  patch.setattr(compilation, "keep", lambda _: None)
  data = write_pairs(tmp_path_factory.mktemp("data"))

  def run(workdir, *words):
    judge_benchmark.main(
      [
        f"--model={model}", f"--data={data}", f"--workdir={workdir}", "--parts=2",
        "--pairs_per_topic=5", "--steps=3", "--warmup_steps=1", "--prompt_length=160",
        "--response_length=48", "--dtype=float32", *words,
      ]
    )  # fmt: skip

  yield run
  patch.undo()


@pytest.fixture(scope="module")
def pointwise(run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pointwise")
  run(workdir, "--folds=2")
  return workdir


def directories(workdir, prefix):
  return sorted((workdir / "artefacts").glob(f"{prefix}_*"))


def test_every_topic_is_held_out_once_and_none_is_learned_from(pointwise):
  held_out = topics.from_csv((pointwise / "pointwise.csv").read_text())
  assert {*held_out.topics_P} == {*TOPICS} and len(held_out.margins_P) == 8 * 5
  for fold, directory in enumerate(directories(pointwise, "topics")):
    train, validation = (
      pairs.PairDataset.load(directory / split) for split in ("train", "validation")
    )
    asked = {*validation.columns["topic"]}
    assert not asked & {*train.columns["topic"]} and len(asked) == 4
    assert asked == {*held_out.topics_P[held_out.folds_P == fold]}
    # Both sides of a debate are on one side of the split: nor are its tokens learned.
    assert len({topic.split("?")[0] for topic in asked}) == 2
    assert len(train) == 48
    prompts = [
      {tuple(dataset.prompts[i]) for i in range(len(dataset))}
      for dataset in (train, validation)
    ]
    assert not prompts[0] & prompts[1] and len(prompts[0]) == 4


def test_rows_are_what_the_judges_said(pointwise):
  held_out = topics.from_csv((pointwise / "pointwise.csv").read_text())
  assert np.ptp(held_out.margins_P) > 0
  longer = held_out.characters_Px2[:, 0] > held_out.characters_Px2[:, 1]
  assert 0.3 < longer.mean() < 0.9
  reports = json.loads((pointwise / "pointwise.json").read_text())
  assert reports["pairs"] == 40 and len(reports["judges"]) == 2
  accuracy = np.mean([judge["validation_accuracy"] for judge in reports["judges"]])
  assert reports["rates"]["accuracy"]["value"] == pytest.approx(accuracy)
  assert reports["rates"]["accuracy"]["topics"] == 8
  assert (
    "accuracy on topics that it has not seen"
    in (pointwise / "pointwise.md").read_text()
  )


def test_a_second_run_makes_nothing_and_one_more_fold_only_that(run, pointwise, capsys):
  before = (pointwise / "pointwise.csv").read_bytes()
  capsys.readouterr()
  run(pointwise, "--folds=2")
  assert "started" not in capsys.readouterr().out
  run(pointwise, "--folds=1")  # what is written is of the folds that are asked for
  first = (pointwise / "pointwise.csv").read_text()
  assert len(topics.from_csv(first).margins_P) == 20
  run(pointwise, "--folds=2")
  assert (pointwise / "pointwise.csv").read_bytes() == before


def test_a_pairwise_judge_says_how_often_its_orders_agree(run, tmp_path):
  run(tmp_path, "--kind=pairwise")
  (judge,) = json.loads((tmp_path / "pairwise.json").read_text())["judges"]
  assert 0 <= judge["orders_agree"] <= 1
  assert len(topics.from_csv((tmp_path / "pairwise.csv").read_text()).margins_P) == 20


def test_what_cannot_be_is_refused(run, tmp_path):
  for words, message in [
    (["--folds=3"], "--folds is 3, but there are 2"),
    (["--parts=9"], "4 groups of topics cannot be dealt into 9"),
    (["--parts=2", "--pattern=Debate"], "1 groups of topics"),
    (["--pattern=["], "--pattern is no regular expression: unterminated"),
    (["--seed=-1"], "--seed is -1; give 0 or more"),
    (["--pairs_per_topic=-1"], "--pairs_per_topic is -1; give 0 or more"),
  ]:
    with pytest.raises(UserError, match=message):
      run(tmp_path, *words)


@pytest.mark.parametrize(
  "training, message",
  [
    ({"batch_size": 8, "microbatches": 3}, "judge: microbatches 3 does not divide"),
    ({"batch_size": 0}, "judge: batch_size is 0; give at least 1"),
    ({"steps": 0}, "judge: steps is 0, and a pairwise judge has to learn"),
  ],
)
def test_training_that_cannot_be_is_refused_before_anything_is_read(training, message):
  config = held_out_topics.get_config(
    "nowhere", "nowhere", "pairwise", (8, 8), **training
  )
  with pytest.raises(UserError, match=message):
    next(held_out_topics.judges(config, Division(), 1))


def test_parts_are_those_of_the_seed_and_share_no_topic():
  parts = [Division(4).held_out(TOPICS, fold) for fold in range(4)]
  assert sorted(topic for part in parts for topic in part) == sorted(TOPICS)
  again = [Division(4).held_out(TOPICS[::-1] * 2, fold) for fold in range(4)]
  assert parts == again
  others = [Division(4, seed=1).held_out(TOPICS, fold) for fold in range(4)]
  assert parts != others
  # Whatever comes before the first question mark is the debate.
  sides = Division(8, pattern=".*").held_out(TOPICS, 0)
  assert len(sides) == 1


def test_pairs_that_are_asked_about_are_chosen_by_the_seed():
  of_pairs = [topic for topic in TOPICS for _ in range(12)]
  rows = Division(pairs_per_topic=5).asked(of_pairs)
  assert len(rows) == 40 and len({*rows}) == 40
  assert [of_pairs[i] for i in rows] == [topic for topic in TOPICS for _ in range(5)]
  assert not np.array_equal(rows, Division(pairs_per_topic=5, seed=1).asked(of_pairs))
  assert len(Division(pairs_per_topic=0).asked(of_pairs)) == 96


def test_a_topic_is_a_text(tmp_path, model):
  path = tmp_path / "chats.jsonl"
  said = [{"role": "user", "content": "Hello"}]
  replies = [[{"role": "assistant", "content": text}] for text in ("the cat", "a mat")]
  record = {"prompt": said, "chosen": replies[0], "rejected": replies[1]}
  path.write_text(json.dumps(record) + "\n")
  config = held_out_topics.get_config(str(model), str(path), "pointwise", (32, 16))
  (judge,) = held_out_topics.judges(config, Division(1), 1)
  with pytest.raises(UserError, match="chats.jsonl:1.*a topic is a text"):
    judge.data.make(tmp_path, lambda _: tmp_path)
