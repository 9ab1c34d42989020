"""Rules: judges that are functions of text, one's own or the toy language's truth.

  from alignment.core.rules import rule

  @rule
  def brevity(prompt: str, response: str, *, cost: float = 1.0) -> float:
    return -cost * len(response)

Registered in one's own configuration document, or in what it imports, it is a `kind` of
judge: `proxy_pm.kind="brevity"`, `proxy_pm.options={"cost": 2.0}`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import inspect
import json
import math
from types import FunctionType
from typing import Any

from alignment.core.digests import in_one_file, source_digest
from alignment.data.toy import Language
from alignment.types import UserError

RuleFn = Callable[..., float]
TRAINED = ("pairwise", "pointwise")  # kinds of judges that are models
TRUTH = "truth"  # the kind that is the toy language's utility
RULES: dict[str, FunctionType] = {}


def rule(function: RuleFn) -> RuleFn:
  """Registers `(prompt, response, *, options) -> number`; more is better.

  It must be a function of its arguments alone: it is called again where a run resumes
  and where responses are evaluated, in any order, in every process for its own rows.
  """
  name = getattr(function, "__name__", repr(function))
  if not isinstance(function, FunctionType) or len(_positional(function)) != 2:
    raise ValueError(f"rule {name!r} must be a function of (prompt, response)")
  if name in (*TRAINED, TRUTH):
    raise ValueError(f"{name!r} is a kind of judge already: give the rule another name")
  other = RULES.get(name, function)
  if not in_one_file(other, function):  # which may be run again
    raise ValueError(f"two rules are called {name!r}")
  RULES[name] = function
  return function


@dataclasses.dataclass(frozen=True)
class Rule:
  """A registered function with its options; hashable."""

  function: FunctionType
  options: tuple[tuple[str, Any], ...] = ()

  @classmethod
  def of(cls, name: str, options: Mapping[str, Any]) -> "Rule":
    """The rule of that name.

    Raises:
      UserError: for a name that no rule has, and an option that it does not have.
    """
    if name not in RULES:
      raise UserError(
        f"there is no rule '{name}': there are {', '.join(sorted(RULES)) or 'none'}; a "
        "rule of your own is registered in the document of --config, or what it imports"
      )
    function = RULES[name]
    keywords = [
      p.name
      for p in inspect.signature(function).parameters.values()
      if p.kind is p.KEYWORD_ONLY
    ]
    check_options(name, options, keywords)
    return cls(function, tuple(sorted(options.items())))

  @property
  def name(self) -> str:
    return self.function.__name__

  def __call__(self, prompt: str, response: str) -> Any:
    return self.function(prompt, response, **dict(self.options))

  def described(self) -> dict[str, Any]:
    """What determines its numbers, as JSON: see `source_digest`."""
    return {"source": source_digest(self.function), "options": dict(self.options)}


@dataclasses.dataclass(frozen=True)
class Truth:
  """The utility by which a toy language's raters choose.

  Attributes:
    temperature: of the raters' noise; 0 is none. At the language's own the response
      that scores higher is one that its raters would prefer: Gumbel noise on utilities
      is sigmoid((u_a - u_b) / temperature) on preferences. The noise is a function of
      (seed, prompt, response): who asks again hears the same.
  """

  language: Language
  temperature: float = 0.0
  seed: int = 0

  name = TRUTH

  @classmethod
  def of(cls, language: Language | None, options: Mapping[str, Any], seed: int):
    """The truth about a world.

    Raises:
      UserError: for a world whose truth is not known, and for options that it does not
        have.
    """
    if language is None:
      raise UserError(
        f"a judge of kind '{TRUTH}' is the toy language's utility: set data.format "
        "to 'toy', or choose another kind"
      )
    check_options(TRUTH, options, ["temperature"])
    temperature = options.get("temperature", 0.0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
      raise UserError(f"option 'temperature' of '{TRUTH}' is {temperature!r}")
    if not 0 <= temperature < math.inf:
      raise UserError(
        f"option 'temperature' of '{TRUTH}' is {temperature}; give 0 or more"
      )
    return cls(language, float(temperature), seed)

  def __call__(self, prompt: str, response: str) -> float:
    utility = self.language.utility(prompt.split(), response.split())
    if not self.temperature:
      return utility
    return utility + self.temperature * _gumbel(self.seed, prompt, response)

  def described(self) -> dict[str, Any]:
    noise = {"temperature": self.temperature}
    if self.temperature:
      noise["seed"] = self.seed
    return {"language": dataclasses.asdict(self.language), **noise}


@dataclasses.dataclass(frozen=True)
class Noisy:
  """A rule with raters' noise: a over b with probability sigmoid((u_a - u_b) / t).

  Attributes:
    rule: the utility u.
    temperature: t, of the Gumbel noise on each utility; 0 is none.
    seed: of the noise, a function of (seed, prompt, response): who asks again hears
      the same.
  """

  rule: Rule
  temperature: float
  seed: int

  @property
  def name(self) -> str:
    return self.rule.name

  def __call__(self, prompt: str, response: str) -> Any:
    utility = self.rule(prompt, response)
    if not self.temperature:
      return utility
    return utility + self.temperature * _gumbel(self.seed, prompt, response)

  def described(self) -> dict[str, Any]:
    noise = {"temperature": self.temperature, "seed": self.seed}
    return self.rule.described() | noise


def check_options(name: str, options: Mapping[str, Any], keywords: list[str]) -> None:
  """Raises UserError for an option that a rule does not have."""
  for key in options:
    if key not in keywords:
      choice = ", ".join(keywords) or "none"
      raise UserError(f"judge {name!r} has no option {key!r}: its options are {choice}")


def _gumbel(*key: Any) -> float:
  """A draw from Gumbel(0, 1) that is a function of the key alone."""
  digest = hashlib.sha256(json.dumps(key).encode()).digest()
  uniform = ((int.from_bytes(digest[:8], "big") >> 11) + 0.5) * 2.0**-53
  return -math.log(-math.log(uniform))


def _positional(function: FunctionType) -> list[str]:
  """Names of the arguments that a function must be given."""
  parameters = inspect.signature(function).parameters.values()
  kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  return [p.name for p in parameters if p.kind in kinds]
