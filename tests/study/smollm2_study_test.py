"""The two studies of SmolLM2, end to end, on a chat model of few parameters."""

import json
from pathlib import Path

import jax
import pytest

from alignment.data.vocabularies import HuggingFaceVocabulary
from alignment.models import huggingface, registry
from alignment.runtime.files import read_json
from tests import tiny_tokenizer

ROOT = Path(__file__).parents[2]
ROLES = ("sft", "golden_pm", "proxy_pm", "policy", "golden_policy")
SMALL = (
  "--config.prompt_length=160", "--config.response_length=12",
  "--config.data.validation_fraction=0.4", "--config.sampled.num_prompts=24",
  "--config.sampled.validation_fraction=0.4", "--config.sampled.pairs=1",
  "--config.evaluation.prompts=8", "--config.evaluation.kl_prompts=4",
  "--config.evaluation.pairs=4", "--config.evaluation.batch_size=4",
  "--config.evaluation.require_good_judge=False", "--config.evaluation.best_of=(2,)",
  "--config.log_every=1", "--config.keep_compiled=False",
  *(f"--config.{role}.steps=2" for role in ROLES),
  *(f"--config.{role}.batch_size=4" for role in ROLES),
)  # fmt: skip
RUNS = {
  f"world0_{name}"
  for name in (
    "online_ipo", "online_dpo", "offline_ipo", "offline_dpo", "shuffled_ipo",
    "semi_online_ipo_every8", "semi_online_ipo_every0", "sft", "golden_policy",
    "best_of_n",
  )
}  # fmt: skip

pytestmark = [pytest.mark.usefixtures("compile_quickly"), pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model")
  tokenizer = tiny_tokenizer.write(directory / "tokenizer", "chatml")
  vocabulary = HuggingFaceVocabulary(tokenizer)
  cfg = registry.config("llama_nano", vocab_rows=vocabulary.size + 3)
  params = registry.model(cfg).init(jax.random.key(0))
  huggingface.write(directory / "MODEL", cfg, params, tokenizer=tokenizer)
  return directory / "MODEL"


@pytest.fixture
def study(model, tmp_path, cli):
  """`study(name, *prompts)` runs a config on pairs to such prompts.

  Returns what it tells, the records by run, and what is published.
  """

  def run(name, *prompts):
    rows = (
      {"prompt": prompt.format(i % 40), "chosen": f"It is {i}.", "rejected": f"No {i}"}
      for i in range(60)
      for prompt in prompts
    )
    path = tmp_path / "PAIRS"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = cli(
      f"--config={ROOT}/configs/{name}.py:{model}", f"--workdir={tmp_path}",
      f"--config.data.path={path}", *SMALL,
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "report.html").exists()
    records = {
      path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
      for path in tmp_path.glob("runs/*/evaluations.jsonl")
    }
    assert records.keys() == RUNS
    assert "golden PM at equal length" in (tmp_path / "claims.csv").read_text()
    return out, records, read_json(tmp_path / "study.json")

  return run


def test_a_world_whose_truth_is_known(study):
  dialogue = "\n\nHuman: What is {}?\n\nAssistant: Hm.\n\nHuman: Oh.\n\nAssistant:"
  question = "\n\nHuman: Why is {}?\n\nAssistant:"
  _, records, published = study("smollm2", dialogue, question)
  for run, rows in records.items():
    assert all("true_win_rate" in row and "true_utility" in row for row in rows), run
  (truth,) = (row for row in published["models"] if row["name"] == "world0_truth")
  assert truth["init"] == "prose" and truth["truth_accuracy"] == 1
  assert 0 < truth["validation_accuracy"] <= 1
  for row in published["samples"]["rows"]:
    assert "Answer in one or two short sentences." in row["prompt"]
    assert " is " in row["prompt"] and "Oh." not in row["prompt"]


def test_human_judgement_of_other_prompts_than_those_that_it_learned_from(study):
  out, records, published = study("smollm2_arguments", "Debate: is {} good?")
  assert not any("true_win_rate" in row for rows in records.values() for row in rows)
  assert all("Debate: is" not in r["prompt"] for r in published["samples"]["rows"])
  assert all(" Write an argument" in r["prompt"] for r in published["samples"]["rows"])
  assert "keeps" not in out  # there were no labels before the golden judge's
