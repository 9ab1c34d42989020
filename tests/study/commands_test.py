"""Listing stages, and looking into a study: batches, samples, exports."""

import json
import re

import jax
import numpy as np
import pytest

from alignment.models import huggingface, t5
from alignment.study import publish
from alignment.types import UserError
from tests import studies, tiny

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_dry_run_says_what_is_left(capsys, nano):
  studies.dry_run(studies.every(), nano.workdir)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "done   data"
  assert "done   proxy_pm  <- golden_data, sft_nano" in lines
  assert all(line.startswith("done ") for line in lines)
  studies.dry_run(studies.every(), nano.workdir, ["proxy_pm"])
  assert capsys.readouterr().out.splitlines() == [
    "done   data", "done   golden_pm  <- data",
    "done   golden_data  <- data, golden_pm", "done   sft_nano  <- data",
    "done   proxy_pm  <- golden_data, sft_nano",
  ]  # fmt: skip
  with pytest.raises(UserError, match="no stage is called 'proxy'; there are"):
    studies.dry_run(studies.every(), nano.workdir, ["proxy"])
  studies.dry_run(studies.every(**{"policy.beta": 0.5}), nano.workdir)
  lines = capsys.readouterr().out.splitlines()
  left = {line.split()[2] for line in lines if line.startswith("to do")}
  assert {f"evaluate_{name}" for name in nano.runs} < left
  assert not left & {"data", "golden_pm", "proxy_pm", "golden_policy", "sft_micro"}


def test_show_batch(capsys, nano):
  studies.run(studies.every(), nano.workdir, ["show_batch"])
  out = capsys.readouterr().out
  for name in ("prompt (", "preferred (", "other (", "judge reads ("):
    assert out.count(name) == 3
  first = out[out.index("--- pair 0") : out.index("--- pair 1")]
  assert first.startswith("--- pair 0, toy:")
  read = {
    name.split(" (")[0]: rows
    for name, *rows in (part.split("\n") for part in re.split(r"\n(?=\w)", first)[1:])
  }
  origins = {name: [row[2:18].strip() for row in rows] for name, rows in read.items()}
  assert origins["prompt"] == ["prompt", "", "ending", ""]
  for name in ("preferred", "other"):
    assert origins[name][:4] == ["response", "", "ending", ""]
  judged = [name for name in origins["judge reads"] if name]
  assert judged == [
    "prompt", "ending", "marker", "first response", "first ending", "marker",
    "second response", "second ending", "marker", "padding",
  ]  # fmt: skip
  # Every token is shown, by its text and by its id.
  dataset = nano.data("data")
  shown = [int(i) for row in read["prompt"][1::2] for i in row.split()]
  assert shown == dataset.prompts[0].tolist()
  words = read["prompt"][0].removeprefix("  prompt").split()
  assert len(words) == len(shown) - 1
  end = out.rindex("padding")
  whole = 30 - int(re.search(r"padding +(\d+) x", out[end:])[1])
  assert f"judge reads ({whole} of 30 positions)" in out


def test_sample_from_any_model(capsys, nano):
  prompt = " ".join(studies.every().vocab.words[:8])
  asked = {"sample.model": "world0_online_ipo", "sample.step": 4,
           "sample.prompts": (prompt,), "sample.responses": 3}  # fmt: skip
  studies.run(studies.every(**asked), nano.workdir, ["sample"])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f"prompt: {prompt}"
  assert [line[:4] for line in lines[1:]] == ["  1:", "  2:", "  3:"]


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"sample.model": "golden"}, "model 'golden' is no model; there are sft_nano"),
    ({"sample.model": "golden_policy", "policy.beta": 9.0, "golden_policy.beta": 9.0},
     "sample.model 'golden_policy' is not trained yet: run --stages=golden_policy"),
    ({"sample.step": 5}, "params/5: no parameters saved at step 5; there are"),
    ({"sample.prompts": ("BA", 3)}, "sample.prompts has 3; its entries are texts"),
  ],
)  # fmt: skip
def test_sample_errors(nano, overrides, message):
  with pytest.raises(UserError, match=message):
    studies.run(studies.every(**overrides), nano.workdir, ["sample"])


def test_a_run_that_only_others_learn_from_can_be_sampled(tmp_path):
  """It has a stage, and so a name, though it is none of the runs."""
  shuffled = {"method": ("offline",), "dataset": ("stream",)}
  config = studies.nano(
    **{"runs": {"shuffled": shuffled}, "sample.model": "world0_online_ipo"}
  )
  with pytest.raises(UserError, match="not trained yet: run --stages=world0_online_ip"):
    studies.run(config, tmp_path, ["sample"])


def test_export_is_the_trained_model(nano, tmp_path):
  asked = {"export.model": "sft_nano", "export.directory": str(tmp_path / "hf")}
  studies.run(studies.every(**asked), nano.workdir, ["export"])
  model = nano.study.sft("nano").model()
  trained = nano.study.setting.parameters.load(nano.directory("sft_nano"), model)
  exported = huggingface.read_params(tmp_path / "hf", model.cfg)
  jax.tree.map(np.testing.assert_array_equal, exported, jax.device_get(trained))
  # It knows its vocabulary: of as many words in another order, ids mean others.
  start = {"policy.init": str(tmp_path / "hf"), "sft.init": str(tmp_path / "hf")}
  studies.graph(studies.nano(**start))
  words = studies.nano().vocab.words
  with pytest.raises(UserError, match="hf/.*: this checkpoint's vocabulary is not"):
    studies.graph(studies.nano(**start, **{"vocab.words": words[::-1]}))
  with pytest.raises(UserError, match="export.directory is not set"):
    studies.run(studies.every(), nano.workdir, ["export"])


@pytest.mark.parametrize("content", [b"", b'{"step": '])
def test_damaged_artefact_is_one_line_that_says_what_to_delete(nano, content):
  directory = nano.directory("golden_policy")
  path = directory / "model.json"
  whole = path.read_bytes()
  path.write_bytes(content)
  try:
    with pytest.raises(UserError) as error:
      studies.run(studies.every(), nano.workdir, ["sample"])
  finally:
    path.write_bytes(whole)
  assert str(error.value) == f"{path}: damaged; delete {directory} to make it again"


def test_models_that_start_from_a_checkpoint_are_reported_sampled_and_exported(
  tmp_path, capsys
):
  """Their stages' configurations have its checksums where they had its directory."""
  cfg = t5.config("nano", vocab_rows=384)
  huggingface.write(tmp_path / "nano", cfg, tiny.params(0, cfg))
  config = studies.nano(**{
    "sft.init": str(tmp_path / "nano"), "sample.model": "sft_nano",
    "export.model": "sft_nano", "export.directory": str(tmp_path / "hf"),
  })  # fmt: skip
  studies.run(config, tmp_path / "w", ["sft_nano"])
  studies.run(config, tmp_path / "w", ["sample", "export"])
  assert "prompt: " in capsys.readouterr().out
  assert (tmp_path / "hf" / "model.safetensors").exists()
  sft = studies.graph(config).sft("nano")
  row = publish.describe_model(sft, tmp_path / "w")
  count = sum(leaf.size for leaf in jax.tree.leaves(tiny.params(0, cfg)))
  assert (row["init"], row["steps"], row["parameters"]) == ("checkpoint", 8, count)


def test_a_tasks_name_may_be_anything(tmp_path):
  results = tmp_path / "runs" / "world0_sft"
  results.mkdir(parents=True)
  (results / "evaluations.jsonl").write_text(json.dumps({"task": 'tâche "x"'}) + "\n")
  studies.dry_run(studies.nano(task='tâche "x"'), tmp_path)
  with pytest.raises(UserError, match="has the results of task 'tâche \"x\"'"):
    studies.dry_run(studies.nano(task='tâche "y"'), tmp_path)
