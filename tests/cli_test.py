"""Bad input: exit status 1, one line that names the thing, and nothing half-written."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest
import sentencepiece

from alignment.models import huggingface, t5
from alignment.runtime import allocator, exits
from tests import tiny

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/hh_small.py:bytes"
PAIR = {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "Hello!", "rejected": "No."}


def line(**changes) -> bytes:
  """A pair as a line of JSON; a field changed to ... is left out."""
  fields = {k: v for k, v in (PAIR | changes).items() if v is not ...}
  return json.dumps(fields).encode() + b"\n"


GOOD = b"".join(line(prompt=f"\n\nHuman: {i}\n\nAssistant:") for i in range(40))


@pytest.fixture
def pairs(tmp_path):
  path = tmp_path / "pairs.jsonl"
  path.write_bytes(GOOD)
  return path


@pytest.fixture
def fails(cli, tmp_path):
  """`fails(pattern, *arguments)`: the command fails as all bad input must."""
  workdir = tmp_path / "workdir"

  def run(pattern: str, *arguments: str) -> None:
    status, _, err = cli(f"--workdir={workdir}", *arguments)
    assert status == 1, err
    assert len(err.splitlines()) == 1, err
    assert re.search("^error: .*" + pattern, err), err
    assert not [p for p in workdir.rglob("done.json") if "data-" not in str(p)]

  run.workdir = workdir
  return run


# --- the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
  "pattern, arguments",
  [
    ("bta", ["--config.policy.bta=0.5"]),
    ("steps", ["--config.policy.steps=many"]),
    ("stagess", ["--stagess=data"]),
    ("'policy.bogus' is no key of the configuration; all are in "
     "alignment/study/schema.py",
     ["--config.policy.bogus=1"]),
    ("data.format 'csv' is unknown; there are toy, files, tfds",
     ["--config.data.format=csv"]),
    ("unexpected argument 'data': options start with --", ["data"]),
    ("no stage is called 'sfft'; there are show_batch, .*sft_micro", ["--stages=sfft"]),
    ("vocab.kind is 'words2'; use", ["--config.vocab.kind=words2"]),
    ("vocab.path is not set", ["--config.vocab.kind=sentencepiece"]),
    ("nowhere/spiece.model: cannot read the SentencePiece model",
     ["--config.vocab.kind=sentencepiece", "--config.vocab.path=nowhere/spiece.model"]),
    ("model.size 'huge' is unknown; choose from nano", ["--config.policy.size=huge"]),
    ("optimizer.name 'sgd' is unknown", ["--config.sft.optimizer.name=sgd"]),
    ("loss 'ipoo'", ["--config.policy.loss=ipoo"]),
    ("golden_policy: method 'on' is unknown: online or offline",
     ["--config.golden_policy.method=on"]),
    ("a policy needs a start that can respond", ["--config.policy.init=scratch"]),
    ("sft.init is 'sft': give a checkpoint's directory", ["--config.sft.init=sft"]),
    (r"no vocabulary 'foo', but sentencepiece and bytes",
     [f"--config={ROOT}/configs/hh_small.py:foo"]),
    ("sft.init is '': give a checkpoint's directory", ["--config.sft.init="]),
    ("judge_context_length 20 cannot hold two responses of 96 tokens",
     ["--config.judge_context_length=20"]),
    (r"mesh \(data=3, fsdp=1, tensor=1\) does not cover 1 devices",
     ["--config.mesh.data=3"]),
    ("proxy_pm: microbatches 3 does not divide batch_size 16",
     ["--config.proxy_pm.microbatches=3"]),
  ],
)  # fmt: skip
def test_bad_configurations_leave_nothing(fails, pairs, pattern, arguments):
  fails(pattern, CONFIG, f"--config.data.path={pairs}", *arguments)
  assert not fails.workdir.exists()


@pytest.mark.parametrize(
  "lines, pattern",
  [
    (
      "c.policy.lerning_rate = 1",
      "py:4: AttributeError: Key .lerning_rate. does not exist and .* is locked; all "
      "keys are in alignment/study/schema.py",
    ),
    ("c.policy.update({'bta': 1})", "py:4: KeyError: Key .bta. does not .*; all keys"),
    ("c.polcy.steps = 3", "py:4: AttributeError: .*polcy.*; all keys"),
    ("c.policy.update(", "mine.py: SyntaxError: .*never closed .mine.py, line 4"),
    ("raise OSError('any')", "mine.py:4: OSError: any"),
    ("return 3", "get_config.. returns no ConfigDict, but 3"),
    ("c.policy.steps = 'many'", "py:4: TypeError: .*'steps'"),
    ("c.data.language.word = 3", "data.language has no 'word'; there are num_words"),
    ("c.data.language.num_words = 0", "data.language needs 2 to 48 num_words"),
    ("c.policy.optimizer.b1 = 1.5", "optimizer.b1 is 1.5; give at least 0 and less"),
    ("c.golden_policy.temperature = float('nan')", "temperature is nan; give a number"),
    ("c.workers = 0", "workers is 0; give at least 1"),
    ("c.evaluation = {'prompts': 48, 'kl_promts': 16}",
     "'evaluation.kl_promts' is no key of the configuration"),
    ("c.model = {'dtype': 'float32'}", "the configuration has no 'model.[ars]"),
  ],
)  # fmt: skip
def test_mistakes_in_a_configuration_file_are_named(fails, tmp_path, lines, pattern):
  path = tmp_path / "mine.py"
  path.write_text(
    f"from alignment.study.documents import load\ndef get_config():\n"
    f"  c = load('{ROOT}/configs/quickstart.py').get_config()\n  {lines}\n  return c\n"
  )
  fails(pattern, f"--config={path}")


def test_an_argument_that_get_config_does_not_take(fails, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config(): pass\n")
  fails("mine.py: TypeError: get_config.. takes 0", f"--config={path}:x")


def test_a_working_directory_that_cannot_be_one(cli, tmp_path):
  (tmp_path / "file").touch()
  nano = f"--config={ROOT}/configs/quickstart.py"
  for name, pattern in (
    ("file", "error: --workdir: .*/file is not a directory"),
    ("/proc/here", "error: --workdir: /proc/here: No such file or directory"),
    ("a[0]", r"error: --workdir: .*/a\[0\] has '\[' in it"),
  ):
    status, _, err = cli(nano, f"--workdir={tmp_path / name}", "--stages=data")
    assert (status, len(err.splitlines())) == (1, 1) and re.match(pattern, err), err


def test_an_output_that_nobody_reads_is_a_line(monkeypatch, capfd):
  def program():
    raise BrokenPipeError

  monkeypatch.setattr(exits.os, "dup2", lambda *_: None)  # pytest has stdout
  with pytest.raises(SystemExit) as end:
    exits.exit_with_status(program)
  assert end.value.code == 1
  line = "error: nobody reads this output; the same command resumes\n"
  assert capfd.readouterr().err == line


def test_required_flags(cli, tmp_path):
  for arguments, missing in (
    ([CONFIG], "--workdir"),
    ([f"--workdir={tmp_path}/w"], "--config"),
  ):
    assert cli(*arguments) == (1, "", f"error: {missing} is required\n")


def test_no_such_config_file(cli, tmp_path):
  status, _, err = cli("--config=nowhere.py", f"--workdir={tmp_path}/w")
  assert status == 1
  assert err.startswith("error: ") and "nowhere.py" in err and err.count("\n") == 1


# --- data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "content, pattern",
  [
    (None, "No such file or directory"),
    (b"", "holds no pairs"),
    (GOOD + b'{"prompt": \n', r"pairs.jsonl:41: malformed JSON"),
    (GOOD + b"[]\n", r":41: not an object but a list"),
    (line(rejected=...), r":1: field 'rejected' is missing"),
    (GOOD + line(prompt=...), r":41: field 'prompt' is missing"),
    (GOOD + line(chosen=3), r":41: field 'chosen' is a int, not a string"),
    (GOOD + line(rejected=None), r":41: field 'rejected' is null, not a string"),
    (GOOD + line(chosen=" "), r":41: field 'chosen' is empty; mend the line"),
    (GOOD + line(chosen="No."), r":41: fields 'chosen' and 'rejected' are identical"),
    (GOOD + line(chosen="x" * 96),
     r":41: field 'chosen': 97 tokens with EOS, over response_length=96"),
    (GOOD + b'{"prompt": "\xff"}\n', r":41: not UTF-8 \(byte 13 of the line\)"),
  ],
)  # fmt: skip
def test_bad_pairs(fails, pairs, content, pattern):
  if content is None:
    pairs.unlink()
  else:
    pairs.write_bytes(content)
  fails(
    f"{re.escape(str(pairs))}.*" + pattern.removeprefix("pairs.jsonl"),
    CONFIG,
    f"--config.data.path={pairs}",
    "--config.data.long_response=error",
    "--config.data.on_bad_pair=error",
    "--stages=data",
  )


def test_no_data_path(fails):
  fails("data.path is not set: name a file of pairs", CONFIG)


# --- checkpoints ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A Hugging Face checkpoint of a tiny T5 whose vocabulary has 384 rows."""
  directory = tmp_path_factory.mktemp("t5") / "checkpoint"
  cfg = t5.config("nano", vocab_rows=384)
  huggingface.write(directory, cfg, tiny.params(0, cfg))
  return directory


def copied(checkpoint: Path, to: Path, **changes) -> Path:
  """The checkpoint with other values in its config.json."""
  to.mkdir()
  for path in checkpoint.iterdir():
    (to / path.name).write_bytes(path.read_bytes())
  config = json.loads((to / "config.json").read_text()) | changes
  (to / "config.json").write_text(json.dumps(config))
  return to


def test_checkpoint_of_another_shape(fails, pairs, checkpoint, tmp_path):
  directory = copied(checkpoint, tmp_path / "other", d_ff=64)
  fails(
    "model.safetensors: .*shape",
    CONFIG,
    f"--config.data.path={pairs}",
    f"--config.sft.init={directory}",
    "--config.data.validation_fraction=0.3",
    "--stages=sft_micro",
  )


def test_checkpoint_with_fewer_ids_than_the_vocabulary(
  fails, pairs, checkpoint, tmp_path
):
  directory = copied(checkpoint, tmp_path / "other", vocab_size=256)
  fails(
    f"{directory}/config.json: vocab_size is 256, but 267 are in use",
    CONFIG,
    f"--config.data.path={pairs}",
    f"--config.golden_pm.init={directory}",
  )
  assert not fails.workdir.exists()


def test_judge_of_another_vocabulary(fails, pairs, checkpoint, tmp_path):
  """Policy and judge share the study's vocabulary; a checkpoint may bring its own."""
  directory = copied(checkpoint, tmp_path / "other")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat on the mat"] * 20),
    model_prefix=str(directory / "spiece"),
    vocab_size=20,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  fails(
    f"{directory}/spiece.model: this checkpoint's vocabulary is not the study's",
    CONFIG,
    f"--config.data.path={pairs}",
    f"--config.golden_pm.init={directory}",
  )
  assert not fails.workdir.exists()


# --- a process of its own -------------------------------------------------------------


def test_a_batch_that_does_not_divide_the_mesh(pairs, tmp_path):
  workdir = tmp_path / "workdir"
  result = subprocess.run(
    [
      *(sys.executable, "-m", "alignment.main", CONFIG, f"--workdir={workdir}"),
      *(f"--config.data.path={pairs}", "--config.sft.batch_size=12"),
    ],
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 1
  assert result.stderr == (
    "error: sft_micro: batch_size / microbatches 12 is not divisible by the mesh's "
    "data x fsdp = 8 shards\n"
  )
  assert not workdir.exists()


def test_a_failed_save_is_followed_by_no_tracebacks():
  """What Orbax leaves behind when one of its writes fails; other errors are told."""
  code = """
import asyncio, sys, tensorstore
from alignment import main

promise, written = tensorstore.Promise.new()

async def write():
  await written

async def save():
  asyncio.ensure_future(write())
  await asyncio.sleep(0)

class Broken:
  def __del__(self):
    raise ValueError("of the program")

if sys.argv.pop() == "silent":
  try:
    main.cli()  # ends at once: there is no --config
  except SystemExit:
    pass
loop = asyncio.new_event_loop()
loop.run_until_complete(save())
loop.close()
promise.set_result(None)
write()
Broken()
"""
  errors = {
    how: subprocess.run(
      [sys.executable, "-c", code, how],
      cwd=ROOT,
      env={**os.environ, allocator.NAME: ""},  # or it would start itself again
      capture_output=True,
      text=True,
    ).stderr
    for how in ("silent", "not")
  }
  noise = ("Event loop is closed", "'write' was never awaited", "was destroyed")
  assert all(text in errors["not"] for text in noise), errors["not"]
  assert not any(text in errors["silent"] for text in noise), errors["silent"]
  assert "error: --config is required\n" in errors["silent"]
  assert "ValueError: of the program" in errors["silent"]
