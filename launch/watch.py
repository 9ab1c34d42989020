"""The restart loop of a slice: one look and at most one action at a time.

  no resource -> create                WAITING_FOR_RESOURCES, PROVISIONING -> wait
  ACTIVE      -> wait for training     SUSPENDING, DELETING                -> wait
  SUSPENDED   -> delete, create again  FAILED -> delete, create again, a few times

A slice that was pre-empted is SUSPENDED for good: it cannot be started again, only
deleted and asked for anew, and training resumes from the bucket. Training has ended
when a host says so in the bucket; then the slice is deleted, for it costs money.
"""

from collections.abc import Callable, Sequence
import dataclasses
import datetime
import time
from typing import Protocol

from launch.gcloud import Cloud, GcloudError, Job

MAX_FAILURES = 5  # in a row, of requests or of gcloud itself, before giving up
SILENCE = 3600  # seconds without a word from the hosts of an ACTIVE slice
LOG_LINES = 15  # of training's log, shown when it failed


def say(line: str) -> None:
  """A line with the time: a watch runs for days."""
  print(f"{datetime.datetime.now():%H:%M:%S} {line}", flush=True)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """How a job ended."""

  ok: bool
  words: str


class Watcher:
  """Brings one job to its end; `step` is called until it returns a verdict."""

  def __init__(self, job: Job, cloud: Cloud, keep: bool = False):
    """With `keep`, the slice of a job that has ended is left running."""
    self.job, self.cloud, self.keep = job, cloud, keep
    self.name = job.name
    self._ended: Verdict | None = None
    self._failures = 0  # requests that FAILED since one was last ACTIVE
    self._errors = 0  # gcloud commands that failed in a row
    self._shown = ""
    self._silent_since: float | None = None

  def step(self) -> Verdict | None:
    """Looks, acts, and returns the verdict once the job has ended and is cleaned up.

    It has also ended if gcloud fails at once, or MAX_FAILURES times in a row.
    """
    try:
      verdict = self._step()
    except GcloudError as error:
      self._errors += 1
      if not self._shown or self._errors >= MAX_FAILURES:
        return Verdict(False, str(error))
      say(f"{self.name}: {error}; trying again")
      return None
    self._errors = 0
    return verdict

  def _step(self) -> Verdict | None:
    resource = self.cloud.describe(self.job)
    if resource is None:
      if self._ended:
        return self._ended
      self.cloud.create(self.job)
      self._show("requested")
      return None
    if not resource.runs(self.job) and resource.state != "DELETING":
      what = "is not this launcher's"
      if resource.launch:
        what = f"was given {resource.arguments} and {resource.workdir}"
      words = (
        f"there is a slice of this name, which {what}: delete it, or choose another"
      )
      return Verdict(False, f"{words} --name")
    hosts: dict[str, str] = {}
    if resource.launch and resource.state in ("ACTIVE", "SUSPENDING", "SUSPENDED"):
      self._failures = 0
      hosts = self.cloud.status(self.job, resource.launch)
      self._ended = self._ended or self._judge(hosts, resource.launch)
    self._show(resource.state, hosts)
    self._warn_of_silence(resource.state, hosts)
    if self._ended and self.keep:
      return self._ended
    if resource.state == "DELETING":
      return None
    if self._ended:
      self.cloud.delete(self.job)
    elif resource.state == "SUSPENDED":
      say(f"{self.name}: pre-empted; asking for another slice")
      self.cloud.delete(self.job)
    elif resource.state == "FAILED":
      self._failures += 1
      words = f"the request failed: {resource.error or 'no reason given'}"
      say(f"{self.name}: {words}")
      if self._failures == MAX_FAILURES:
        self._ended = Verdict(False, words)
      self.cloud.delete(self.job)
    return None

  def _warn_of_silence(self, state: str, hosts: dict[str, str]) -> None:
    """A host that cannot mount the bucket cannot say so there."""
    if state != "ACTIVE" or hosts:
      self._silent_since = None
    elif self._silent_since is None:
      self._silent_since = time.monotonic()
    elif time.monotonic() - self._silent_since > SILENCE:
      say(
        f"{self.name}: ACTIVE for an hour, and no host has said anything in the "
        "bucket: `launch.tpu doctor` may tell why"
      )
      self._silent_since = time.monotonic()

  def _judge(self, hosts: dict[str, str], launch: str) -> Verdict | None:
    """None while training goes on. One host that finished speaks for all: JAX lets
    none finish alone, but one that is late may fail because the others have gone."""
    ended = {host: s for host, s in hosts.items() if s != "running"}
    if not ended:
      return None
    if "0" in ended.values():
      return Verdict(True, "finished")
    log = self.cloud.log(self.job, launch).splitlines()
    said = ", ".join(f"{host} with status {s}" for host, s in sorted(ended.items()))
    tail = "".join(f"\n  {line}" for line in log[-LOG_LINES:])
    return Verdict(False, f"training ended: {said}{tail}")

  def _show(self, state: str, hosts: dict[str, str] | None = None) -> None:
    """A line whenever something has changed."""
    running = sum(status == "running" for status in (hosts or {}).values())
    text = f"{state}, training on {running} host(s)" if running else state
    if text != self._shown:
      say(f"{self.name}: {text}")
      self._shown = text


class Steps(Protocol):
  """What `watch` brings to an end: a Watcher, or a process of this machine."""

  name: str

  def step(self) -> Verdict | None: ...


def watch(
  watchers: Sequence[Steps],
  poll: float,
  limit: int | None = None,
  sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Verdict]:
  """Steps watchers, at most `limit` at a time, until each has its verdict; by name."""
  verdicts: dict[str, Verdict] = {}
  waiting = list(watchers)
  while waiting:
    for watcher in waiting[:limit]:
      if verdict := watcher.step():
        verdicts[watcher.name] = verdict
        waiting.remove(watcher)
        say(f"{watcher.name}: {verdict.words}")
    if waiting:
      sleep(poll)
  return verdicts
