"""The artefact of figure 6: who classifies the online stream how well."""

from collections.abc import Callable, Iterator
import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from alignment.core import evaluation
from alignment.core.rows import map_rows
from alignment.data import stream
from alignment.runtime.files import read_json, write_atomically
from alignment.study.artefacts import Artefact, Read
from alignment.study.programs import Program
from alignment.study.stages.judging import Judge
from alignment.study.stages.policies import TrainedPolicy


@dataclasses.dataclass(frozen=True, eq=False)
class StreamClassification(Artefact):
  """Figure 6: who classifies the pairs of the online stream as the golden PM does.

  At evenly spaced steps of the recorded run, pairs of that step and those after it (of
  a run that has fewer, all) are labelled by the golden preference model, and by each
  classifier: the proxy PM by its margin, a finished policy by rho > 0. Writes
  `classification.jsonl`; steps at which fewer than two pairs have a label are left out.
  """

  kind: ClassVar[str] = "classify_stream"
  online: TrainedPolicy  # whose stream it is
  offline: TrainedPolicy
  golden_pm: Judge
  proxy_pm: Judge

  def settings(self) -> dict[str, Any]:
    c = self.setting.config
    counts = {key: c.evaluation[key] for key in ("stream_steps", "stream_pairs")}
    return self.setting.judging | counts | {"task": c.task}

  def make(self, directory: Path, read: Read) -> None:
    c = self.setting.config.evaluation
    steps = read_json(read(self.online) / "model.json")["step"]
    recorded = stream.Stream.load(read(self.online) / "stream", steps)
    count = min(c.stream_pairs, len(recorded))
    last = steps - -(-count // recorded.batch_size)
    starts = np.unique(np.linspace(0, last, c.stream_steps).round().astype(int))
    rows = starts[:, None] * recorded.batch_size + np.arange(count)[None, :]
    golden, margins = self._margins(read, recorded, rows.ravel())
    lines = []
    for classifier, values in margins.items():
      for i, step in enumerate(starts):
        part = slice(i * count, (i + 1) * count)
        right = evaluation.classified(values[part], golden[part])
        if len(right) < 2:  # a collapsed policy's pairs: nothing to classify
          continue
        lines.append(
          {
            "task": self.setting.config.task,
            "world": self.setting.world,
            "classifier": classifier,
            "step": int(step),
            "accuracy": float(right.mean()),
            "stderr": float(right.std(ddof=1) / np.sqrt(len(right))),
            "pairs": len(right),
          }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(directory / "classification.jsonl", text.encode())

  def _margins(
    self, read: Read, recorded: stream.Stream, rows: np.ndarray
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The golden margins of rows of the stream, and those of every classifier."""
    setting = self.setting

    def over_rows(function: Callable[[Any], Any]) -> np.ndarray:
      size = setting.config.evaluation.batch_size
      batch = lambda i: (recorded.batch(i),)  # noqa: E731
      return map_rows(function, batch, rows, size, setting.mesh)

    def judged(pm: Judge) -> np.ndarray:
      judge, params = pm.judge(), pm.load_fixed(read)
      return over_rows(lambda b: evaluation.margins(judge, params, b))

    def classified(policy: TrainedPolicy) -> np.ndarray:
      model, params = policy.model(), policy.load_fixed(read)
      ratios = over_rows(lambda b: evaluation.log_ratios(model, params, b))
      return ratios[:, 0] - ratios[:, 1]

    golden = judged(self.golden_pm)
    return golden, {
      "proxy_pm": judged(self.proxy_pm),
      "online": classified(self.online),
      "offline": classified(self.offline),
    }

  def programs(self) -> Iterator[Program]:
    for judge in (self.golden_pm, self.proxy_pm):
      yield from judge.margins_programs((self.name,), {})
    for policy in (self.online, self.offline):
      yield policy.log_ratios_program((self.name,), {})
