"""What vocabularies without a chat template make of an example, as texts."""

from alignment.data import chats
from alignment.data.examples import Example
from alignment.data.vocabularies import base
from alignment.types import UserError


def texts(example: Example) -> tuple[str, str, str]:
  """The prompt and both replies; refused as a tokenizer refuses them."""
  prompt, field = example.prompt, "prompt"
  try:
    if not isinstance(prompt, str):
      prompt = chats.transcript(chats.Conversation(prompt, example.tools))
    elif example.tools:
      raise UserError("'tools' stand beside a prompt that is no list of messages")
    replies = []
    for field in ("chosen", "rejected"):
      replies.append(base.text_of(getattr(example, field)))
  except UserError as e:
    raise UserError(f"{example.source}: field '{field}': {e}") from e
  return prompt, *replies
