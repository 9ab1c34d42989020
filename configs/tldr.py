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
proxy preference model and policies) and T5/t5_1_1_xxl (golden preference model).
Without a Chatbot Arena licence, SFT on this task alone: '--config.sft.data=()'.

Hardware, as compiled (docs/memory.md): v4-16, v5p-8 or v6e-8, for the 11B golden
preference model. A number of chips that does not divide its batch of 16 needs other
--config.mesh sizes.
Duration: not known, this config has not been run at its size. By arithmetic (2 and 6
operations per parameter and token) about 1e20 operations: 3e19 to train the golden
preference model, 3e19 to judge 220 checkpoints with it, 2e19 for the offline sweep. At
40 % of the peak of 16 TPU v4 chips that is 16 hours; sampling comes on top.
Expected (the paper's figure 1): win rate against KL rises, then falls for both methods;
online is above offline at equal KL and at its peak.
"""

from alignment.study import schema


def get_config():
  return schema.paper_task("tldr")
