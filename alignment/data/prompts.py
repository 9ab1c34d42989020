r"""Prompts without replies that count: of a file of texts, of prompts, or of pairs.

A format is a text in which {prompt} stands for a prompt, as in
"Answer in one sentence.\n\nHuman: {prompt}\n\nAssistant:". What stands in its place is
what the user says, without marks, so that all data of a study may be written alike.
"""

from collections.abc import Iterator, Mapping

from alignment.data import chats, layouts, records, transcripts
from alignment.data.examples import BadPair, Example, Messages, Reading

PLACE = "{prompt}"


def read(path: str, columns: Mapping[str, str], reading: Reading) -> Iterator[Example]:
  """Yields every prompt, as a pair without replies.

  A file that is no JSON and no Parquet has a prompt on each line. Records may have
  replies, which are not read; those whose replies answer no one prompt are left out.

  Args:
    path: what `records.files` takes.
    columns: what the file's fields are called, by the names that layouts know.
    reading: counts what is left out.

  Raises:
    UserError: a file that cannot be read, or a record without a prompt.
  """
  columns = layouts.mapping(columns)
  for file in records.files(path):
    if records.is_text(file):
      for number, text in records.lines(file):
        yield Example(text, "", "", f"{file}:{number}")
      continue
    for record in records.read_file(file, layouts.wanted(columns)):
      try:
        yield layouts.read_prompt(record, columns)
      except BadPair as fault:
        reading.dropped[fault.reason] += 1


def formatted(template: str, example: Example) -> Example:
  """With the prompt's first user turn in a format; without one ("") as it is."""
  if not template:
    return example
  said = transcripts.opening(example.asked or example.prompt)
  said = said.removeprefix(chats.HUMAN).strip()
  return example._replace(prompt=template.replace(PLACE, said), asked="")


def formatted_pair(template: str, example: Example) -> Example:
  """A pair whose prompt is in a format.

  Raises:
    BadPair: the user said more than one thing, or not alone; or replies are no texts.
  """
  if not template:
    return example
  prompt = example.prompt
  if isinstance(prompt, str):
    count = max(1, prompt.count(chats.HUMAN))
    before, mark, _ = prompt.partition(chats.HUMAN)
    system = example.asked or mark and before.strip()
  else:
    system = prompt[0]["role"] == "system"
    count = sum(message["role"] != "system" for message in prompt)
  if count != 1:
    raise BadPair("of several turns", "data.prompt_format has a place for one turn")
  if system:  # the replies were written under it
    raise BadPair(
      "with a system text", "data.prompt_format has no place for the pair's system text"
    )
  replies = [_text(reply) for reply in (example.chosen, example.rejected)]
  return formatted(template, example)._replace(chosen=replies[0], rejected=replies[1])


def _text(reply: str | Messages) -> str:
  """A reply as text."""
  if isinstance(reply, str):
    return reply
  if len(reply) != 1 or chats.hidden_fields(chats.Conversation(reply)):
    raise BadPair("of several turns", "data.prompt_format has a place for text alone")
  return reply[0]["content"]
