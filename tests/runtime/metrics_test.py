"""Metrics: exact sums over unequal weights, and a file that a restart mends."""

import json
import math

import jax.numpy as jnp
import pytest

from alignment.runtime import activity, metrics
from alignment.types import UserError


def test_reduce_weighs_every_token_alike():
  # Two steps with 1 and 3 tokens: the mean over tokens, not the mean of means.
  steps = [
    {"loss": (jnp.float32(8.0), jnp.float32(1.0))},
    {"loss": (jnp.float32(0.0), jnp.float32(3.0)), "extra": (1.0, 2.0)},
  ]
  assert metrics.reduce(steps) == {"loss": 2.0, "extra": 0.5}


def test_reduce_without_weight_is_nan():
  assert math.isnan(metrics.reduce([{"loss": (0.0, 0.0)}])["loss"])


@pytest.mark.parametrize(
  "seconds, text",
  [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (250, "4m10s"), (11100, "3h05m")],
)
def test_duration(seconds, text):
  assert activity.duration(seconds) == text


def test_log_drops_lines_past_the_step_it_resumes_from(tmp_path, capsys):
  log = metrics.MetricLog(tmp_path, "sft", 6, 0, 0)
  for step in (2, 4, 6):
    log.write(step, {"loss": step / 10}, ("loss",))
  log.close()
  assert "sft: step 6/6  loss 0.6" in capsys.readouterr().out
  whole = (tmp_path / "metrics.jsonl").read_bytes()
  with open(tmp_path / "metrics.jsonl", "ab") as f:
    f.write(b'{"step": 8, "lo')  # a killed writer
  log = metrics.MetricLog(tmp_path, "sft", 6, 4, 4)
  assert [r["step"] for r in metrics.read_jsonl(tmp_path / "metrics.jsonl")] == [2, 4]
  log.write(6, {"loss": 0.6}, ())
  log.close()
  assert (tmp_path / "metrics.jsonl").read_bytes() == whole
  assert list((tmp_path / "tensorboard").iterdir())
  assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("kept, warns", [((), True), ((2,), True), ((2, 4), False)])
def test_rows_that_are_lost_between_a_stop_and_its_resume_are_told(
  tmp_path, capsys, kept, warns
):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(f'{{"step": {step}}}\n' for step in kept))
  metrics.MetricLog(tmp_path, "sft", 6, 5, 4).close()
  warning = f"warning: {path} has lost rows up to step 4\n"
  assert (warning in capsys.readouterr().out) == warns


@pytest.mark.parametrize("damage", [b"\n{]\n", b'\n{"step": "\xff"}\n', b"\n3\n"])
def test_a_damaged_line_is_named(tmp_path, damage):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(json.dumps({"step": 1}).encode() + damage)
  with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a metrics line"):
    metrics.read_jsonl(path)
