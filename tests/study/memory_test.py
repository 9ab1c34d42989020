"""What cannot fit this machine is refused with the numbers; what works is not."""

import types

import jax
import pytest

from alignment.study import commands, memory
from alignment.study.artefacts import closure
from alignment.types import UserError
from tests import studies

GIB = 2**30


def limited(monkeypatch, size: float, devices: int = 1) -> None:
  limit = memory.Limit(int(size), "available on this machine", devices)
  monkeypatch.setattr(memory, "available", lambda: limit)


def check(config, workdir, names=()):
  graph = studies.graph(config)
  commands.check_memory([graph], workdir, names, config.workers)


@pytest.mark.parametrize("config", [studies.nano, studies.quickstart.get_config])
def test_what_works_here_is_not_refused(config, tmp_path):
  check(config(), tmp_path)


def test_what_is_too_large_is_refused_with_the_numbers(monkeypatch, tmp_path):
  limited(monkeypatch, 24 * GIB)
  config = studies.nano(**{"golden_pm.size": "t5_1_1_xxl"})
  with pytest.raises(UserError) as error:
    check(config, tmp_path)
  told = str(error.value)
  assert told.startswith("out of memory, by estimate: golden_pm ")
  assert "(golden_pm step, t5_1_1_xxl) GiB of 24.0 GiB available" in told
  assert told.endswith("--config.check_memory=False tries it all the same")
  check(config, tmp_path, ["data"])  # which needs no model


def test_devices_of_a_cpu_and_workers_share_its_memory(monkeypatch, tmp_path):
  config = studies.nano(workers=2)
  graph = studies.graph(config)
  stages = closure(graph.artefacts().values())
  needs = sorted(n[0] for stage in stages if (n := memory._need(stage)))
  alone = memory._TRUSTED * needs[-1]
  limited(monkeypatch, 1.01 * alone)
  memory.check(stages, workers=1)
  with pytest.raises(UserError, match="set --config.workers=1, or take"):
    memory.check(stages, workers=2)
  limited(monkeypatch, 1.01 * alone, devices=8)
  with pytest.raises(UserError):
    memory.check(stages, workers=1)


def test_stages_that_wait_for_each_other_do_not_run_at_once():
  graph = studies.graph(studies.nano())
  chain = [graph.golden_pm(), graph.proxy_pm(), graph.golden_policy()]
  needs = [(stage, 3 - i, None) for i, stage in enumerate(chain)]
  assert [one[0].name for one in memory._at_once(needs, 3)] == ["golden_pm"]
  assert [one[0].name for one in memory._at_once(needs[1:], 3)] == [
    "proxy_pm", "golden_policy"
  ]  # fmt: skip


def test_finished_stages_are_not_asked(monkeypatch, nano):
  limited(monkeypatch, 1)
  commands.check_memory([nano.study], nano.workdir, [], 1)


def test_memory_is_what_the_machine_and_its_container_have_left(monkeypatch, tmp_path):
  meminfo = tmp_path / "meminfo"
  meminfo.write_text("MemTotal: 16 kB\nMemAvailable:    8 kB\nSwapFree: 1 kB\n")
  monkeypatch.setattr(memory, "_MEMINFO", meminfo)
  monkeypatch.setattr(memory, "_CGROUP", tmp_path)
  assert memory.available().bytes == 9 * 1024
  assert memory.available().devices == jax.local_device_count()
  for name, text in {
    "max": "4096\n", "current": "3000\n", "stat": "anon 1\ninactive_file 1000\n"
  }.items():  # fmt: skip
    (tmp_path / f"memory.{name}").write_text(text)
  assert memory.available().bytes == 4096 - 2000
  (tmp_path / "memory.max").write_text("max\n")
  assert memory.available().bytes == 9 * 1024
  meminfo.unlink()
  assert memory.available() is None


def test_accelerators_say_what_they_have(monkeypatch):
  device = types.SimpleNamespace(
    platform="gpu", device_kind="card", memory_stats=lambda: {"bytes_limit": 7}
  )
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert memory.available() == memory.Limit(7, "of a card", 1)
  device.memory_stats = lambda: None
  assert memory.available() is None
