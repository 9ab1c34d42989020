"""Chatbot Arena, side by side, at the paper's scale.

  python -m alignment.main --config=configs/chat_arena.py --workdir=WORKDIR \\
    --config.data.data_dir=DATA --config.vocab.path=T5/spiece.model \\
    --config.sft.init='T5/{size}'

What DATA and T5 hold, hardware and duration: as in `tldr.py`, whose SFT this shares if
WORKDIR/artefacts is a link to that of tldr's working directory.
Expected (the paper's figure 1): online is above offline at equal KL; the gap
between their peaks is small.
"""

from alignment.study import schema


def get_config():
  return schema.paper_task("chat_arena")
