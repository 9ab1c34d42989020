r"""Dialogues as text, "\n\nHuman: ...\n\nAssistant: ...", and what is read out of them.

Anthropic's HH files hold whole transcripts; chat messages become transcripts for a
vocabulary without a chat template. Files and TFDS builders are split by `pair` alike.
"""

from alignment.data.chats import ASSISTANT, HUMAN
from alignment.data.examples import BadPair, Messages


def split(transcript: str) -> tuple[str, str]:
  r"""The prompt, which ends in "\n\nAssistant:", and the last reply.

  Raises:
    BadPair: the last turn is not the assistant's.
  """
  before, marker, reply = transcript.rpartition(ASSISTANT)
  if not marker or HUMAN in reply:
    raise BadPair("without a last reply", "last turn is not the assistant's")
  return before + marker, reply.removeprefix(" ")


def pair(chosen: str, rejected: str) -> tuple[str, str, str]:
  """(prompt, chosen, rejected) of two transcripts that differ in their last reply.

  Each is split at its own last reply. Where they differ earlier, the replies answer
  different prompts. (Others cut the rejected transcript at the length of the chosen
  one's prompt, which leaves fragments of turns in its place.)

  Raises:
    BadPair: a last turn is not the assistant's, or the prompts differ.
  """
  prompt, chosen_reply = split(chosen)
  other_prompt, rejected_reply = split(rejected)
  if prompt != other_prompt:
    raise BadPair("diverging", "transcripts differ before the last reply")
  return prompt, chosen_reply, rejected_reply


def opening(prompt: str | Messages) -> str:
  """The first user turn, with its mark; of text without marks, all of it."""
  if not isinstance(prompt, str):
    for message in prompt:
      if message["role"] == "user":
        return f"{HUMAN} {message['content']}"
    return ""
  start = prompt.find(HUMAN)
  if start < 0:
    return prompt.partition(ASSISTANT)[0] or prompt
  turn, _, _ = prompt[start + len(HUMAN) :].partition(HUMAN)
  return HUMAN + turn.partition(ASSISTANT)[0]


def with_system(system: str, prompt: str) -> str:
  """A prompt of text after what the system says, as transcripts have it."""
  return system + prompt if prompt.startswith("\n\n") else f"{system}\n\n{prompt}"
