"""OpenAI's human comparisons of TL;DR summaries: see README.md."""

from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds

from alignment.data.datasets import common

_URL = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset"
_BATCHES = (*range(3, 21), 22)  # there is no batch 21
# Posts of valid1 selected OpenAI's models, those of valid2 gave their final numbers.
_SPLITS = {"train": "train", "valid1": "validation", "valid2": "test"}


class Builder(common.PairsBuilder):
  """Human comparisons of summaries of Reddit posts."""

  COLUMNS = ("split", "info", "summaries", "choice")
  HOMEPAGE = "https://github.com/openai/summarize-from-feedback"

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    names = [f"batch{n}" for n in _BATCHES]
    if self.local_dir is None:
      files = dl_manager.download({n: f"{_URL}/comparisons/{n}.json" for n in names})
    else:
      choices = ([f"{n}.json", f"comparisons/{n}.json"] for n in names)
      files = dict(zip(names, self._local_files(*choices), strict=True))
    return {split: self._generate_examples(split, files) for split in _SPLITS.values()}

  def _parse(self, row: common.Row, split: str) -> common.Example | None:
    if row.choose(_SPLITS, "split") != split:
      return None
    if "article" in row.get("info", kind=dict):
      raise common.Skip("CNN/DM article")
    prompt = (
      f"SUBREDDIT: r/{row.get('info', 'subreddit')}\n\n"
      f"TITLE: {row.get('info', 'title')}\n\n"
      f"POST: {row.get('info', 'post')}\n\n"
      "TL;DR:"
    )
    chosen, rejected = row.choose({0: (0, 1), 1: (1, 0)}, "choice")
    return common.Example(
      row.id,
      prompt,
      row.get("summaries", chosen, "text"),
      row.get("summaries", rejected, "text"),
    )
