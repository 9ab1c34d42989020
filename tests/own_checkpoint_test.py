"""The commands of docs/checkpoints.md, "Bring your own model", on a tiny checkpoint."""

import json
from pathlib import Path
import re
import shlex

import jax
import numpy as np
import pytest

from alignment.data.vocabularies import HuggingFaceVocabulary
from alignment.models import huggingface, registry
from tests import tiny_tokenizer

ROOT = Path(__file__).parents[1]
SMALL = (
  "--config.prompt_length=48", "--config.response_length=12",
  "--config.judge_context_length=160", "--config.data.validation_fraction=0.3",
  "--config.evaluation.prompts=8", "--config.evaluation.kl_prompts=4",
  "--config.evaluation.pairs=4", "--config.evaluation.batch_size=4",
  "--config.evaluation.require_good_judge=False", "--config.sft.batch_size=4",
  "--config.model.dtype=float32", "--config.log_every=1",
  *(f"--config.{role}.steps=2" for role in
    ("sft", "golden_pm", "proxy_pm", "policy", "golden_policy")),
  *(f"--config.{role}.batch_size=4" for role in
    ("golden_pm", "proxy_pm", "policy", "golden_policy")),
  *(f"--config.{role}.evaluations=1" for role in ("golden_pm", "proxy_pm")),
  *(f"--config.{role}.evaluate_at=(1.0,)" for role in ("policy", "golden_policy")),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def files(tmp_path):
  """A chat model of a few thousand parameters, and conversations to align it on."""
  tokenizer = tiny_tokenizer.write(tmp_path / "tokenizer", "chatml")
  vocabulary = HuggingFaceVocabulary(tokenizer)
  cfg = registry.config("llama_nano", vocab_rows=vocabulary.size + 3)
  params = registry.model(cfg).init(jax.random.key(0))
  huggingface.write(tmp_path / "MODEL", cfg, params, tokenizer=tokenizer)
  rows = (
    {
      "prompt": [{"role": "user", "content": f"What is {i}?"}],
      "chosen": [{"role": "assistant", "content": f"It is {i}."}],
      "rejected": [{"role": "assistant", "content": "No" + "o" * (i % 5)}],
    }
    for i in range(60)
  )
  (tmp_path / "PAIRS").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path


def commands() -> list[list[str]]:
  """The arguments of the page's four commands."""
  page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
  block = re.search(r"## Bring your own model.*?```sh\n(.*?)```", page, re.DOTALL)
  return [shlex.split(line)[3:] for line in block[1].strip().split("\n")]


def test_a_hugging_face_directory_in_a_trained_policy_out(files, cli):
  told = []
  for arguments in commands():
    placed = [
      re.sub(r"\b(MODEL|PAIRS|WORK|OUT)\b", lambda m: str(files / m[1]), argument)
      .replace("configs/own_model.py", str(ROOT / "configs" / "own_model.py"))
      for argument in arguments
    ]  # fmt: skip
    status, out, err = cli(*placed, *SMALL)
    assert status == 0, err
    told.append(out)
  shown, trained, sampled, _ = told
  assert "<|im_start|>" in shown and "judge reads" in shown
  assert "world0_online_ipo_beta0.1" in trained
  assert sampled.count("prompt: ") == 4
  assert (files / "WORK" / "report.html").exists()
  published = json.loads((files / "WORK" / "study.json").read_text())
  prompts = [row["prompt"] for row in published["samples"]["rows"]]
  assert prompts and all("Human: What is " in p and "<|" not in p for p in prompts)
  before, after = (
    huggingface.read_params(path, huggingface.read_config(path))
    for path in (files / "MODEL", files / "OUT")
  )
  same = jax.tree.map(np.array_equal, before, after)
  assert not all(jax.tree.leaves(same))
  original, exported = (
    HuggingFaceVocabulary(files / name) for name in ("MODEL", "OUT")
  )
  assert exported.fingerprint == original.fingerprint
