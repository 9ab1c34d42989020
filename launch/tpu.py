"""Training on Cloud TPU VMs: create, run, watch, log, doctor, delete.

  python -m launch.tpu run --name=xxl --tpu=v5p-16 --zone=us-east5-a --capacity=spot \\
    --workdir=gs://BUCKET/xxl \\
    -- --config=configs/tldr.py --config.policy.size=t5_1_1_xxl --config.mesh.tensor=2

What follows `--` goes to `alignment.main`; in it, gs://BUCKET/... is where the hosts
have the bucket mounted. The same options serve every command, so keep them in a file:
`python -m launch.tpu run @xxl.args` (line breaks and # comments as you like).
"""

import argparse
from collections.abc import Callable
import math
from pathlib import Path
import shlex
import sys

from alignment.runtime import output
from alignment.types import UserError
from launch import gcloud, watch
from launch.gcloud import Cloud, Job

COMMANDS = {
  "create": "ask for the slice; training starts by itself when it comes up",
  "run": "ask for the slice if there is none, then watch",
  "watch": "until training ends: replace the slice whenever it is pre-empted",
  "log": "follow the log of the first host; of ended training, its last lines",
  "doctor": "say what keeps the hosts from training together",
  "delete": "delete the slice; what is in the bucket stays",
}


class Parser(argparse.ArgumentParser):
  """Errors are one line."""

  def error(self, message: str):
    raise UserError(f"{message}; see --help")


def expand(argv: list[str]) -> tuple[list[str], list[str]]:
  """Arguments before and after `--`; @FILE stands for both kinds that FILE holds."""
  at = argv.index("--") if "--" in argv else len(argv)
  before, after = [], argv[at + 1 :]
  for word in argv[:at]:
    if not word.startswith("@"):
      before.append(word)
      continue
    try:
      text = Path(word[1:]).read_text(encoding="utf-8")
      inner_before, inner_after = expand(shlex.split(text, comments=True))
    except (OSError, ValueError, RecursionError) as error:
      raise UserError(f"{word[1:]}: {error}") from None
    before += inner_before
    after = inner_after + after  # what the command line adds comes last, and counts
  return before, after


def seconds(text: str) -> float:
  """What `sleep` takes."""
  if not 0 <= (value := float(text)) < math.inf:
    raise ValueError(text)
  return value


def add_slice_options(parser: argparse.ArgumentParser, required: bool) -> None:
  """What `run` and a sweep need to know of the cloud."""
  parser.add_argument("--zone", required=required, help="where the slice shall be")
  parser.add_argument("--project", default="", help="gcloud's own, if not given")
  parser.add_argument("--capacity", default="on-demand", choices=gcloud.CAPACITIES)
  parser.add_argument(
    "--create_flag",
    action="append",
    default=[],
    help="a further flag of `gcloud compute tpus queued-resources create`; repeatable",
  )
  parser.add_argument(
    "--poll", type=seconds, default=30, help="seconds between looks (default 30)"
  )
  parser.add_argument(
    "--keep", action="store_true", help="do not delete the slice when training ends"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print the commands, run none"
  )


def parse(argv: list[str]) -> tuple[argparse.Namespace, Job]:
  parser = Parser(
    prog="python -m launch.tpu",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="commands:\n" + "\n".join(f"  {c:8}{d}" for c, d in COMMANDS.items()),
  )
  parser.add_argument("command", choices=list(COMMANDS))
  parser.add_argument("--name", required=True, help="of the request and its slice")
  parser.add_argument("--tpu", required=True, help="v4-N, v5e-N, v5p-N or v6e-N")
  parser.add_argument("--workdir", required=True, help="gs://BUCKET/DIRECTORY")
  parser.add_argument("--slices", type=int, default=1, help="more: multislice")
  add_slice_options(parser, required=True)
  before, after = expand(argv)
  options = parser.parse_args(before)
  return options, Job(
    name=options.name,
    tpu=options.tpu,
    zone=options.zone,
    workdir=options.workdir,
    arguments=tuple(after),
    capacity=options.capacity,
    project=options.project,
    slices=options.slices,
    create_flags=tuple(options.create_flag),
  )


def dry_run(command: str, job: Job) -> list[list[str]]:
  """The commands that a command runs; LAUNCH stands for the time of the request."""
  archive = gcloud.pack()
  source = gcloud.archive_address(job, archive)
  create = [
    gcloud.upload(Path(source.rpartition("/")[2]), source),
    gcloud.create(job, "LAUNCH", source),
  ]
  look = [gcloud.describe(job), gcloud.read_status(job, "LAUNCH")]
  ended = [gcloud.read_log(job, "LAUNCH"), gcloud.delete(job)]
  return {
    "create": create,
    "run": [*create, *look, *ended],
    "watch": [*look, *ended, *create],
    "log": [gcloud.describe(job), _follow(job), gcloud.read_log(job, "LAUNCH")],
    "doctor": _doctor(job),
    "delete": [gcloud.delete(job)],
  }[command]


def _follow(job: Job) -> list[str]:
  return gcloud.ssh(job, job.nodes[0], f"tail -n 100 -F {gcloud.LOG}", worker="0")


def _doctor(job: Job) -> list[list[str]]:
  command = f"sudo bash {gcloud.DIRECTORY}/startup.sh doctor"
  return [gcloud.ssh(job, node, command) for node in job.nodes]


def main(argv: list[str]) -> int:
  options, job = parse(argv)
  if options.command in ("create", "run", "watch") and not any(
    a.startswith("--config=") for a in job.arguments
  ):
    raise UserError("no --config=... after --: what shall the slice run?")
  if options.dry_run:
    for command in dry_run(options.command, job):
      print(shlex.join(command))
    print("source-*.tar.gz is this code, packed; LAUNCH the time", file=sys.stderr)
    return 0
  return _run(options, job, Cloud(gcloud.run))


def _run(options: argparse.Namespace, job: Job, cloud: Cloud) -> int:
  command = options.command
  if command == "delete":
    if cloud.describe(job) is None:
      print(f"{job.name}: there is none in {job.zone}")
    else:
      cloud.delete(job)
    return 0
  slice_ = cloud.describe(job)
  if command == "create":
    if slice_ is not None:
      raise UserError(f"{job.name} is there already ({slice_.state}): watch it")
    cloud.create(job)
    print(f"{job.name}: requested; `watch` with the same options sees it through")
    return 0
  if command in ("run", "watch"):
    if command == "watch" and slice_ is None:
      raise UserError(f"no {job.name} in {job.zone} to watch: `run` creates it")
    watcher = watch.Watcher(job, cloud, options.keep)
    verdict = watch.watch([watcher], options.poll)[job.name]
    if not verdict.ok:
      raise UserError(f"{job.name}: {verdict.words}")
    return 0
  if slice_ is None:
    raise UserError(f"no {job.name} in {job.zone}; `run` creates it")
  if command == "log" and (
    slice_.state != "ACTIVE" or _ended(cloud, job, slice_.launch)
  ):
    print(cloud.log(job, slice_.launch))
    return 0
  if slice_.state != "ACTIVE":
    raise UserError(f"{job.name} is {slice_.state}: there is no host to ask yet")
  commands = [_follow(job)] if command == "log" else _doctor(job)
  return max(gcloud.interact(each) for each in commands)


def _ended(cloud: Cloud, job: Job, launch: str) -> bool:
  hosts = cloud.status(job, launch)
  return bool(hosts) and "running" not in hosts.values()


def cli(main: Callable[[list[str]], int]) -> None:
  """Ends this program with what `main` returns, or with one line that says why not."""
  output.any_text()
  try:
    sys.exit(main(sys.argv[1:]))
  except (UserError, gcloud.GcloudError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("stopped; the same command goes on, slices stay as they are", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
  cli(main)
