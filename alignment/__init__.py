"""Online and offline alignment of T5 policies, as one program (arXiv 2405.08448)."""
