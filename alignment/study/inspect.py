"""Inspecting a study: samples of a model, its export; and `show_batch.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignment.core import evaluation
from alignment.data import pairs, vocabularies
from alignment.models import huggingface, protocol
from alignment.models.huggingface import peft
from alignment.models.lora import LORA, LoraModel
from alignment.runtime import hosts, sharding
from alignment.runtime.activity import progress
from alignment.runtime.files import directory_option
from alignment.study.graph import Study
from alignment.study.show_batch import show_batch
from alignment.study.stages.models import ImportedModel, Model, TrainedModel
from alignment.types import Batch, UserError


def sample(study: Study, workdir: Path) -> None:
  """Prints a model's responses to given prompts, or to the first of the data."""
  c = study.setting.config.sample
  artefact = _model(study, workdir, c.model or "golden_policy", "sample.model")
  setting = artefact.setting
  if setting.vocabulary is not study.setting.vocabulary and not c.prompts:
    raise UserError(f"sample.model '{c.model}' reads not the data's ids: give prompts")
  if not isinstance(artefact.model(), protocol.Model):
    raise UserError(f"sample.model '{artefact.name}' is a reward model: it writes none")
  params = artefact.load_fixed(lambda a: a.verified(workdir), c.step or None)
  for prompt in c.prompts:
    if not isinstance(prompt, str):
      raise UserError(f"sample.prompts has {prompt!r}; its entries are texts")
  S, T = setting.config.prompt_length, setting.config.response_length
  side = setting.config.data.truncate_prompt
  rows = [setting.vocabulary.fit_prompt(p, S, side).ids for p in c.prompts]
  if not rows:
    data = study.data().verified(workdir)
    dataset = pairs.PairDataset.load(data / "train")
    rows = [list(dataset.prompts[i]) for i in range(min(4, len(dataset)))]
  batch = Batch(
    prompts_BxS=np.stack([np.pad(r, (0, S - len(r))) for r in rows]).astype(np.int32),
    prompt_lengths_B=np.array([len(r) for r in rows], np.int32),
    responses_BxNxT=np.zeros((len(rows), 1, T), np.int32),
    lengths_BxN=np.zeros((len(rows), 1), np.int32),
    ref_logps_BxN=np.zeros((len(rows), 1), np.float32),
    weights_B=np.ones(len(rows), np.float32),
    ids_B=np.arange(len(rows), dtype=np.int32),
  )
  sampler = setting.sampler(artefact.start, c.temperature)
  samples = sharding.fetch(
    evaluation.sample(sampler, params, batch, jax.random.key(0), c.responses, T)
  )
  if not hosts.is_first():
    return
  for i, row in enumerate(rows):
    print(f"prompt: {setting.vocabulary.decode_prompt(row)}")
    for n in range(c.responses):
      length = int(samples.lengths_BxN[i, n])
      tokens = samples.tokens_BxNxT[i, n, :length]
      cut = "" if bool(samples.ended_BxN[i, n]) else "  [cut off]"
      print(f"  {n + 1}: {setting.vocabulary.decode(tokens)}{cut}")


def export(study: Study, workdir: Path) -> None:
  """Writes a trained model as a Hugging Face checkpoint, or its adapters as PEFT's."""
  c = study.setting.config.export
  if not c.directory:
    raise UserError("export.directory is not set: where should the checkpoint go?")
  directory = directory_option(c.directory, "export.directory")
  artefact = _model(study, workdir, c.model or "golden_policy", "export.model")
  if not c.merge:
    return _export_adapters(artefact, workdir, directory)
  setting, model = artefact.setting, artefact.model()
  params = artefact.load(lambda a: a.verified(workdir), c.step or None)
  whole, vocabulary = sharding.fetch(params), setting.vocabulary
  about: dict[str, Any] = {vocabularies.FINGERPRINT: vocabulary.fingerprint}
  first, *others = vocabulary.ending_ids
  about["eos_token_id"] = [first, *others] if others else first
  if vocabulary.pad_id is not None:
    about["pad_token_id"] = vocabulary.pad_id
  hosts.on_first(
    lambda: huggingface.write(
      directory,
      model.cfg,
      whole,
      c.dtype,
      about=about,
      tokenizer=vocabulary.files(),
    )
  )
  progress(f"{artefact.name}: exported to {directory}")


def _export_adapters(artefact: Model, workdir: Path, directory: Path) -> None:
  """Writes only what was trained, in PEFT's format.

  Raises:
    UserError: for a model without adapters.
  """
  c, base = artefact.setting.config.export, artefact.base
  if base is None or not isinstance(artefact, TrainedModel):
    raise UserError(
      f"export.merge is False, but '{artefact.name}' has no adapters: leave it True"
    )
  model = artefact.trained_model()
  if not isinstance(model, LoraModel):  # a reward model
    raise UserError(
      f"export.merge is False, but of '{artefact.name}', a reward model, the head is "
      "trained, too: leave it True"
    )
  trained = artefact.load_trained(lambda a: a.verified(workdir), c.step or None)
  adapters = sharding.fetch(trained[LORA])
  origin = base.start.init if isinstance(base, ImportedModel) else ""
  origin = origin.replace("{size}", base.start.size)
  hosts.on_first(
    lambda: peft.write(directory, model.cfg, model.settings, adapters, c.dtype, origin)
  )
  progress(
    f"{artefact.name}: adapters of {origin or base.name} exported to {directory}"
  )


def _model(study: Study, workdir: Path, name: str, key: str) -> Model:
  """The finished model artefact of that name.

  Raises:
    UserError: if there is none, or it is not made yet.
  """
  models = {n: a for n, a in study.artefacts().items() if isinstance(a, Model)}
  if name not in models:
    raise UserError(f"{key} '{name}' is no model; there are {', '.join(models)}")
  if not models[name].is_done(workdir):
    raise UserError(f"{key} '{name}' is not trained yet: run --stages={name} first")
  return models[name]


# What `--stages` takes besides stages; each looks at the first world.
INSPECTIONS: dict[str, Callable[[Study, Path], None]] = {
  "show_batch": show_batch,
  "sample": sample,
  "export": export,
}
