"""What the four preference data sets share: features, checked fields, skipped rows."""

import abc
import collections
from collections.abc import Iterator, Mapping
import json
from typing import Any, NamedTuple, TypeVar

from etils import epath
import tensorflow_datasets.public_api as tfds

from alignment.types import UserError

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"

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


def json_lines(path: epath.Path) -> Iterator[Any]:
  """Yields the values of a JSON lines file; UserError names a line that is not JSON."""
  # Bytes, because text may hold other line separators than "\n" (U+2028) unescaped.
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      try:
        yield json.loads(line)
      except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error})") from None


def split_transcript(transcript: str) -> tuple[str, str]:
  """Splits "\\n\\nHuman: … \\n\\nAssistant: …" into the prompt and the last reply.

  The prompt ends in "\\n\\nAssistant:". Raises Skip when the last turn is not a reply.
  """
  before, assistant, reply = transcript.rpartition(ASSISTANT)
  if not assistant or HUMAN in reply:
    raise Skip("last turn is not the assistant's")
  return before + assistant, reply


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

  def _values(self, path: epath.Path) -> Iterator[Any]:
    """Yields the rows of a source file."""
    return json_lines(path)

  def _rows(self, files: Mapping[str, epath.PathLike]) -> Iterator[Row]:
    for name, path in files.items():
      for number, value in enumerate(self._values(epath.Path(path)), start=1):
        yield Row(value, where=f"{path}, line {number}", id=f"{name}/{number}")

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

  A row is two whole transcripts. They are split at the last assistant turn of each;
  where they differ earlier, the two replies answer different prompts, and the row is
  skipped. (Others cut the rejected transcript at the length of the chosen one's
  prompt, which leaves fragments of turns in its place.)
  """

  HOMEPAGE = "https://huggingface.co/datasets/Anthropic/hh-rlhf"
  SUBSETS: tuple[str, ...]

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    files = dl_manager.download_and_extract(
      {
        split: {
          subset: tfds.download.Resource(
            url=f"{self.HOMEPAGE}/resolve/main/{subset}/{split}.jsonl.gz",
            extract_method=tfds.download.ExtractMethod.GZIP,
          )
          for subset in self.SUBSETS
        }
        for split in ("train", "test")
      }
    )
    return {split: self._generate_examples(split, files[split]) for split in files}

  def _parse(self, row: Row, split: str) -> Example:
    prompt, chosen = split_transcript(row.get("chosen"))
    other_prompt, rejected = split_transcript(row.get("rejected"))
    if prompt != other_prompt:
      raise Skip("transcripts differ before the last reply")
    return Example(row.id, prompt, chosen, rejected)
