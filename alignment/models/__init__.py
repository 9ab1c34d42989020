"""Models as pure functions over one parameter pytree, and their Hugging Face files.

May import: `alignment.runtime`, `alignment.types`. Start with `t5.py`.
"""
