"""Anthropic HH, harmlessness: see README.md."""

from alignment.data.datasets import common


class Builder(common.AnthropicBuilder):
  """Human comparisons of harmless replies to red-teaming."""

  SUBSETS = ("harmless-base",)
