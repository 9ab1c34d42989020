"""LMSYS Chatbot Arena conversations with human votes: see README.md."""

from collections.abc import Iterator
import hashlib

import tensorflow_datasets.public_api as tfds

from alignment.data import transcripts
from alignment.data.datasets import common
from alignment.types import UserError

_SPEAKERS = {"user": transcripts.HUMAN, "assistant": transcripts.ASSISTANT}
_VOTES = {"model_a": "ab", "model_b": "ba", "tie": None, "tie (bothbad)": None}


def _prompt_and_reply(row: common.Row, field: str) -> tuple[str, str]:
  """All turns but the last as a transcript ending in "\\n\\nAssistant:"; the last."""
  turns: list[tuple[str, str]] = [
    (row.choose(_SPEAKERS, field, i, "role"), row.get(field, i, "content"))
    for i in range(len(row.get(field, kind=list)))
  ]
  if not turns or turns[-1][0] != transcripts.ASSISTANT:
    raise common.Skip("last turn is not the assistant's")
  prompt = "".join(f"{speaker} {content}" for speaker, content in turns[:-1])
  return prompt + transcripts.ASSISTANT, turns[-1][1]


def _split(row: common.Row) -> str:
  """One in twenty opening messages is for testing, with all that begins with it."""
  opening: str = row.get("conversation_a", 0, "content")
  digest = hashlib.sha256(opening.strip().encode()).digest()
  return "test" if int.from_bytes(digest[:8], "big") % 20 == 0 else "train"


class Builder(common.PairsBuilder):
  """Human votes between two anonymous chat models, side by side."""

  HOMEPAGE = "https://huggingface.co/datasets/lmsys/chatbot_arena_conversations"
  COLUMNS = ("question_id", "winner", "conversation_a", "conversation_b")
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
  Accept the licence at https://huggingface.co/datasets/lmsys/chatbot_arena_conversations
  and put into the folder (--manual_dir) either a JSON lines export (*.jsonl, with the
  original fields) or the original *.parquet files.
  """

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
    try:
      folder = dl_manager.manual_dir
    except AssertionError as error:  # there is no such folder, or it is empty
      raise UserError(" ".join(str(error).split())) from None
    paths = sorted(folder.glob("*.jsonl")) or sorted(folder.glob("*.parquet"))
    if not paths:
      raise UserError(
        f"{folder}: has neither *.jsonl nor *.parquet files; put an export of "
        f"{self.HOMEPAGE} there"
      )
    files = {path.name: path for path in paths}
    return {split: self._generate_examples(split, files) for split in ("train", "test")}

  def _parse(self, row: common.Row, split: str) -> common.Example | None:
    if _split(row) != split:
      return None
    vote = row.choose(_VOTES, "winner")
    if vote is None:
      raise common.Skip(row.get("winner"))
    prompt, chosen = _prompt_and_reply(row, f"conversation_{vote[0]}")
    other_prompt, rejected = _prompt_and_reply(row, f"conversation_{vote[1]}")
    if prompt != other_prompt:
      raise common.Skip("conversations differ before the last reply")
    return common.Example(row.get("question_id"), prompt, chosen, rejected)
