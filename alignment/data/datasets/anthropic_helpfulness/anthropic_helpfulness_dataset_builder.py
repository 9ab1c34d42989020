"""Anthropic HH, helpfulness: see README.md."""

from alignment.data.datasets import common


class Builder(common.AnthropicBuilder):
  """Human comparisons of helpful replies in a dialogue."""

  SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled")
