"""The command: what it prints, when it fails; compiling itself is slow and marked."""

import importlib.util
import os
from pathlib import Path
import subprocess
import sys

from absl.testing import flagsaver
import pytest

from alignment.runtime import sharding
from alignment.study import recipes
from alignment.types import UserError
from launch import compile_check
from launch.fit import propose, topology
from launch.fit.placed import placed
from tests import studies

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check(monkeypatch, capsys):
  """`check(*arguments)` runs the command in here: (status, stdout, stderr)."""

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["compile_check", *arguments])
    capsys.readouterr()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
      compile_check.cli()
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err

  return run


def test_what_does_not_fit_fails_with_a_suggestion(check):
  status, out, _ = check(
    f"--config={ROOT}/configs/tldr.py", "--topology=v5e:2x4", "--estimate",
    "--only=golden_pm step|proxy_pm step",
  )  # fmt: skip
  assert status == 1
  assert "v5e:2x4 (v5e-8), mesh data 1, fsdp 8, tensor 1; 15.75 GiB per chip" in out
  assert "golden_pm step, t5_1_1_xxl does not fit v5e:2x4" in out
  assert "microbatches" not in out  # their gradients' sum would not fit either
  assert "more chips: --topology=v5e:4x4" in out
  assert "proxy_pm step, t5_1_1_large does not fit" not in out


def test_a_pattern_that_is_none_is_a_line(check):
  config = f"--config={ROOT}/configs/quickstart.py"
  status, _, err = check(config, "--topology=v6e:1x1", "--estimate", "--only=(")
  assert status == 1 and err.startswith("error: --only is no regular expression: ")


def test_what_fits_ends_well(check):
  status, out, _ = check(
    f"--config={ROOT}/configs/quickstart.py", "--topology=v6e:1x1", "--estimate"
  )
  assert status == 0 and "programs fit v6e:1x1" in out


def test_without_a_topology_it_proposes_one_per_generation(check):
  status, out, _ = check(f"--config={ROOT}/configs/quickstart.py")
  assert status == 0
  names = [line.split(":")[0] for line in out.splitlines()]
  assert names == ["v4-8", "v5e-1", "v5p-8", "v6e-1"]


@pytest.mark.parametrize(
  "trained, options",
  [
    ("", "--topology=v5p:2x2x1"),
    (":lora", "--topology=v5e:2x4 --config.mesh.tensor=4"),
  ],
)
def test_the_study_of_8b_fits_the_slice_that_it_names(check, trained, options):
  config = f"{ROOT}/configs/qwen3_8b.py"
  assert options in Path(config).read_text(encoding="utf-8")
  status, out, _ = check(f"--config={config}{trained}", *options.split(), "--estimate")
  assert status == 0 and "programs fit" in out
  assert "policy step, dpo, qwen3_8b" in out and "golden_pm step, qwen3_8b" in out


DPO = f"--config={ROOT}/launch/fit/online_dpo.py"


def test_a_decoder_needs_neither_vocabulary_nor_checkpoint(check):
  status, out, _ = check(
    f"{DPO}:qwen3_0_6b", "--topology=v5e:2x2", "--estimate", "--config.mesh.fsdp=4",
    "--config.mesh.data=1", "--config.sft.init=/nowhere/{size}",
    "--config.vocab.path=/nowhere", "--only=policy step|rollout",
  )  # fmt: skip
  assert status == 0
  assert "policy step, dpo, qwen3_0_6b" in out
  assert "rollout, qwen3_0_6b judged by qwen3_0_6b" in out
  assert "there is no vocabulary at /nowhere: models have the rows that their" in out


def test_rows_are_those_of_the_size():
  config = studies.document("study").get_config("figure_01,tldr")
  for size, rows in {"gemma3_1b": 262144, "t5_1_1_large": 32128}.items():
    config.policy.size = config.golden_policy.size = size
    study = placed(config, propose.abstract_mesh(dict.fromkeys(sharding.AXES, 1)))
    model = study.setting.model(recipes.PolicyRecipe.of(config.policy))
    assert model.cfg.vocab_rows == rows and 0 < model.cfg.live_ids < rows


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--topology=v5p:2x2x1",), "--config is required"),
    (("--config=configs/quickstart.py", "--topology=v9:2x2"), "no TPU generation 'v9'"),
    (("--config=configs/quickstart.py", "--topology=v5e:4x4", "--estimate",
      "--config.mesh.data=3"), "does not cover 16 devices"),
    (("--config=configs/tldr.py", "--topology=v5e:4x8", "--estimate"),
     "--config.mesh.fsdp=16 --config.mesh.tensor=2"),
    (("--config=configs/quickstart.py", "--topology=v5e:1x1", "--estimate",
      "--only=reward"), "--only='reward' is found in no program's name"),
    ((DPO,), "name a size: online_dpo.py:qwen3_0_6b"),
    ((f"{DPO}:qwen3_9b",), "model.size 'qwen3_9b' is unknown; choose from "),
    ((f"{DPO}:smollm2_135m", "--topology=v5e:1x1", "--estimate",
      "--config.model.attention=flash", "--config.model.dtype=float32"),
     "its kernels multiply bfloat16"),
    ((f"{DPO}:smollm2_135m", "--topology=v5e:2x2", "--estimate",
      "--config.mesh.data=1", "--config.mesh.tensor=4"), "9 attention heads are not"),
  ],
)  # fmt: skip
def test_errors_are_one_line(check, arguments, message):
  status, out, err = check(*arguments)
  assert status == 1 and not out
  assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_says_that_libtpu_is_missing(check, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  status, _, err = check("--config=configs/quickstart.py", "--topology=v5e:1x1")
  assert status == 1 and "libtpu is not installed: pip install -e '.[tpu]'" in err


def test_topologies():
  where = topology.parse("v5p:2x2x2")
  assert (where.chips, where.accelerator, str(where)) == (8, "v5p-16", "v5p:2x2x2")
  assert topology.parse("v5e:4x4").accelerator == "v5e-16"
  assert str(where.neighbour(1)) == "v5p:2x2x4"
  assert str(where.neighbour(-1)) == "v5p:2x2x1"
  assert topology.parse("v6e:1x1").neighbour(-1) is None
  for text in ("v5p:2x2", "v5e:2x2x2", "v5e:", "v5e:0x4", "v5e:axb", "2x2"):
    with pytest.raises(UserError, match=f"topology '{text}': "):
      topology.parse(text)


@pytest.mark.slow
def test_compiles_for_a_slice_that_is_not_there():
  """In a process of its own, since libtpu is loaded once."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed")
  command = [
    sys.executable, "-m", "launch.compile_check", "--config=configs/quickstart.py",
    "--topology=v5e:2x2", "--only=policy step",
  ]  # fmt: skip
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout + result.stderr
  for text in ("compiled: ", "all-reduce: ", "programs fit v5e:2x2"):
    assert text in result.stdout
