"""Summarisation (OpenAI TL;DR comparisons) at the paper's scale.

  python -m alignment.data.datasets --prepare openai_comparisons --data_dir=DATA
  python -m alignment.data.datasets --prepare anthropic_helpfulness --data_dir=DATA
  python -m alignment.data.datasets --prepare anthropic_harmlessness --data_dir=DATA
  python -m alignment.data.datasets --prepare chatbot_arena --data_dir=DATA \\
    --manual_dir=YOUR_DOWNLOAD
  python -m alignment.main --config=configs/tldr.py --workdir=WORKDIR \\
    --config.data.data_dir=DATA --config.vocab.path=T5/spiece.model \\
    --config.sft.init='T5/{size}'

T5 holds Hugging Face checkpoints of T5 1.1, in T5/t5_1_1_large (SFT, and by way of it
proxy preference model and policies) and T5/t5_1_1_xxl (golden preference model). Without
a Chatbot Arena licence, or to save time, SFT on this task alone: --config.sft.data='()'.

Hardware: 16 chips of 32 GB or more, for the 11B golden preference model. A number of
chips that does not divide its batch of 16 needs another --config.mesh.
Duration: not known, nobody has run this config. By arithmetic (6 or 2 operations per
parameter and token), training the golden preference model takes about 3e19 operations,
the 220 evaluations 1e19, and everything else together less than that.
Expected (the paper's figure 1): win rate against KL rises, then falls for both methods;
online is above offline at equal KL and at its peak.
"""

from configs import base


def get_config():
  return base.paper_task("tldr")
