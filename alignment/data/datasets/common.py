"""What the four preference data sets share: features, checked fields, skipped rows.

Their sources are read as any file is (records.py), and transcripts are split as in any
file (transcripts.py).
"""

import abc
import collections
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath
import tensorflow_datasets.public_api as tfds

from alignment.data import records, transcripts
from alignment.data.examples import BadPair
from alignment.types import UserError

T = TypeVar("T")


class Example(NamedTuple):
  """One human comparison of two responses to a prompt."""

  id: str
  prompt: str
  chosen: str
  rejected: str


class Skip(Exception):
  """A sound row without a usable pair; its message names the kind and is counted."""


class Row(NamedTuple):
  """A row of a source file that can say where it stands."""

  fields: Any
  where: str  # in errors: the file and the line
  id: str  # the source file's name and the line, the same on every machine

  def get(self, *path: str | int, kind: type[T] = str) -> T:  # type: ignore[assignment]
    """The value under nested keys and indices; UserError if absent or not a `kind`."""
    name = ".".join(map(str, path))
    value = self.fields
    try:
      for key in path:
        value = value[key]
    except (KeyError, IndexError, TypeError):
      raise UserError(f"{self.where}: field {name!r} is missing") from None
    if not isinstance(value, kind):
      raise UserError(
        f"{self.where}: field {name!r} must be of type {kind.__name__}, is {value!r}"
      )
    if isinstance(value, str):
      try:
        value.encode()
      except UnicodeEncodeError:  # JSON can escape half a surrogate pair
        raise UserError(f"{self.where}: field {name!r} is not valid Unicode") from None
    return value

  def choose(self, options: Mapping[Any, T], *path: str | int) -> T:
    """The option that the value under `path` names; UserError if it names none."""
    value = self.get(*path, kind=type(next(iter(options))))
    if value not in options:
      raise UserError(
        f"{self.where}: field {'.'.join(map(str, path))!r} is {value!r}, "
        f"must be one of {', '.join(map(repr, options))}"
      )
    return options[value]


class PairsBuilder(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Writes the pairs of a source, and into `info.metadata` what it skipped.

  Pairs without a preference between two responses are left out: a response that is
  empty, or two that are the same, apart from white space at their ends (stripped).
  `info.metadata["skipped"]` is {split: {reason: number of rows}}.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Initial release."}
  HOMEPAGE: str
  COLUMNS: Collection[str]  # of its sources, if they are Parquet
  local_dir: epath.Path | None = None  # files to read in place of downloads

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in Example._fields}
      ),
      homepage=self.HOMEPAGE,
      metadata=tfds.core.MetadataDict(),
    )

  @abc.abstractmethod
  def _parse(self, row: Row, split: str) -> Example | None:
    """The row's example, None if it belongs to another split; may raise Skip."""

  def _local_files(self, *choices: Sequence[str]) -> list[epath.Path]:
    """Of each choice of names the first that is in `local_dir`.

    Raises:
      UserError: none of a choice's names is there.
    """
    assert self.local_dir is not None
    files = []
    for names in choices:
      there = [self.local_dir / n for n in names if (self.local_dir / n).exists()]
      if not there:
        raise UserError(f"{self.local_dir}: has no {' or '.join(names)}")
      files.append(there[0])
    return files

  def _rows(self, files: Mapping[str, epath.PathLike]) -> Iterator[Row]:
    for name, path in files.items():
      for record in records.read_file(epath.Path(path), self.COLUMNS.__contains__):
        yield Row(record.fields, where=record.source, id=f"{name}/{record.number}")

  def _generate_examples(
    self, split: str, files: Mapping[str, epath.PathLike]
  ) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the examples of `files` (by a name that enters their ids) in `split`."""
    skipped: collections.Counter[str] = collections.Counter()
    seen = set()
    for row in self._rows(files):
      try:
        example = self._parse(row, split)
        if example is None:
          continue
        example = example._replace(
          chosen=example.chosen.strip(), rejected=example.rejected.strip()
        )
        if not example.chosen or not example.rejected:
          raise Skip("empty response")
        if example.chosen == example.rejected:
          raise Skip("identical responses")
      except Skip as reason:
        skipped[str(reason)] += 1
        continue
      if example.id in seen:
        raise UserError(f"{row.where}: {example.id!r} occurs twice; remove one of them")
      seen.add(example.id)
      yield example.id, example._asdict()
    counts = dict(sorted(skipped.items()))
    if not seen:
      raise UserError(
        f"{self.name}: no pairs for split {split!r} in "
        f"{', '.join(map(str, files.values()))} (skipped: {counts})"
      )
    self.info.metadata.setdefault("skipped", {})[split] = counts


class AnthropicBuilder(
  PairsBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Subsets of Anthropic HH: https://huggingface.co/datasets/Anthropic/hh-rlhf.

  A row is two whole transcripts, which `transcripts.pair` splits for files as well.
  """

  HOMEPAGE = "https://huggingface.co/datasets/Anthropic/hh-rlhf"
  COLUMNS = ("chosen", "rejected")
  SUBSETS: tuple[str, ...]

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    splits = ("train", "test")
    if self.local_dir is not None:
      return {
        split: self._generate_examples(split, self._local_subsets(split))
        for split in splits
      }
    files = dl_manager.download_and_extract(
      {
        split: {
          subset: tfds.download.Resource(
            url=f"{self.HOMEPAGE}/resolve/main/{subset}/{split}.jsonl.gz",
            extract_method=tfds.download.ExtractMethod.GZIP,
          )
          for subset in self.SUBSETS
        }
        for split in splits
      }
    )
    return {split: self._generate_examples(split, files[split]) for split in files}

  def _local_subsets(self, split: str) -> dict[str, epath.Path]:
    names = [f"{subset}/{split}.jsonl" for subset in self.SUBSETS]
    choices = ([f"{name}.gz", name] for name in names)
    return dict(zip(self.SUBSETS, self._local_files(*choices), strict=True))

  def _parse(self, row: Row, split: str) -> Example:
    try:
      texts = transcripts.pair(row.get("chosen"), row.get("rejected"))
    except BadPair as bad:
      raise Skip(str(bad)) from bad
    return Example(row.id, *texts)
