"""The tokenizer files of a Hugging Face directory: the tokenizer, and what is special.

Each file is optional but `tokenizer.json`. Which token begins or ends a text is said in
up to four places; the first that speaks is believed, as transformers does, but for
ending ids, of which every file may name its own.
"""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

import tokenizers

from alignment.types import UserError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
# What an export carries; the generation config is the model's.
CARRIED = (TOKENIZER, CONFIG, SPECIAL, ADDED, TEMPLATE)
_OLDER = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
  """What was read: by file name the bytes, and what they say."""

  directory: Path
  contents: Mapping[str, bytes]
  tokenizer: tokenizers.Tokenizer
  config: Mapping[str, Any]
  names: Mapping[str, str]  # bos_token, eos_token, ... as far as they are named
  generation: Mapping[str, Any]
  template: str | None  # the chat template's source

  @property
  def template_path(self) -> Path:
    """Where the template stands, for messages."""
    return self.directory / (TEMPLATE if TEMPLATE in self.contents else CONFIG)

  def id_of(self, name: str) -> int | None:
    """The id of a named token, if it is named and the tokenizer has it."""
    token = self.names.get(f"{name}_token")
    return None if token is None else self.tokenizer.token_to_id(token)

  def ending_ids(self) -> list[int]:
    """What the files say ends a text, without repetition."""
    ids = self.generation.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    named = [i for i in (self.id_of("eos"), *ids) if isinstance(i, int)]
    return [i for i in dict.fromkeys(named) if self.tokenizer.id_to_token(i)]


def read(directory: Path) -> TokenizerFiles:
  """Reads a directory's tokenizer.

  Raises:
    UserError: there is none, or a file is damaged.
  """
  contents = {}
  for name in (*CARRIED, GENERATION):
    try:
      contents[name] = (directory / name).read_bytes()
    except FileNotFoundError:
      continue
    except OSError as e:
      raise UserError(f"{directory / name}: cannot be read ({e.strerror})") from e
  if TOKENIZER not in contents:
    raise UserError(_missing(directory))
  config, special, generation = (
    read_object(directory, contents, name) for name in (CONFIG, SPECIAL, GENERATION)
  )
  names = _names(special) | _names(config)
  tokenizer = load(directory, contents)
  tokenizer.add_special_tokens(
    [t for t in names.values() if tokenizer.token_to_id(t) is not None]
  )
  return TokenizerFiles(
    directory=directory,
    contents=contents,
    tokenizer=tokenizer,
    config=config,
    names=names,
    generation=generation,
    template=_template(directory, contents, config),
  )


def load(directory: Path, contents: Mapping[str, bytes]) -> tokenizers.Tokenizer:
  """The tokenizer, with the tokens that `added_tokens.json` puts on top.

  Raises:
    UserError: a file is damaged, or the two disagree.
  """
  path = directory / TOKENIZER
  try:
    tokenizer = tokenizers.Tokenizer.from_str(contents[TOKENIZER].decode())
  except BaseException as e:  # the library's own errors, and panics of its Rust code
    if isinstance(e, (KeyboardInterrupt, SystemExit)):
      raise
    raise UserError(
      f"{path}: not a tokenizer, or damaged; fetch it again (vocab.path)"
    ) from e
  tokenizer.no_truncation()
  tokenizer.no_padding()
  added = read_object(directory, contents, ADDED)
  if not all(type(i) is int and 0 <= i < 2**31 for i in added.values()):
    raise UserError(f"{directory / ADDED}: must give each token's id")
  for token, i in sorted(added.items(), key=lambda item: item[1]):
    if tokenizer.token_to_id(token) is None:
      tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    if tokenizer.token_to_id(token) != i:
      raise UserError(
        f"{directory / ADDED}: {token!r} is {i}, but {TOKENIZER} numbers it"
        f" {tokenizer.token_to_id(token)}; fetch both files again"
      )
  return tokenizer


def read_object(
  directory: Path, contents: Mapping[str, bytes], name: str
) -> dict[str, Any]:
  """A file's JSON object; empty where there is no such file.

  Raises:
    UserError: it is none.
  """
  if name not in contents:
    return {}
  try:
    value = json.loads(contents[name])
  except (ValueError, RecursionError):
    value = None
  if not isinstance(value, dict):
    raise UserError(f"{directory / name}: not a JSON object; fetch it again")
  return value


def _names(described: Mapping[str, Any]) -> dict[str, str]:
  """Texts of the special tokens: each is a string, or an object with `content`."""
  names = {}
  for key, token in described.items():
    text = token.get("content") if isinstance(token, dict) else token
    if key.endswith("_token") and isinstance(text, str):
      names[key] = text
  return names


def _template(
  directory: Path, contents: Mapping[str, bytes], config: Mapping[str, Any]
) -> str | None:
  if TEMPLATE in contents:
    try:
      return contents[TEMPLATE].decode()
    except UnicodeDecodeError as e:
      raise UserError(f"{directory / TEMPLATE}: not UTF-8; fetch it again") from e
  source = config.get("chat_template")
  if isinstance(source, list):  # several by name
    named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
    source = named.get("default")
  if source is None or isinstance(source, str):
    return source
  raise UserError(f"{directory / CONFIG}: chat_template must be a string")


def _missing(directory: Path) -> str:
  if not directory.is_dir():
    return f"{directory}: no such directory; vocab.path names one with {TOKENIZER}"
  for name in _OLDER:
    if (directory / name).exists():
      return (
        f"{directory}: has {name} but no {TOKENIZER}; make it with transformers:"
        f" AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')"
      )
  return f"{directory}: has no {TOKENIZER}; fetch the model's tokenizer (vocab.path)"
