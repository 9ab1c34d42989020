"""A real language model and human judgement: SmolLM2 135M argues in debates.

  python -m alignment.main --config=configs/smollm2_arguments.py:MODEL \\
    --workdir=WORK --config.data.path=ARGUMENTS

MODEL is as in smollm2.py. ARGUMENTS holds human comparisons of two arguments for a side
of a debate, as `prompt`, `chosen`, `rejected`: those of UKPConvArg1Strict (Habernal
and Gurevych, ACL 2016) with prompts as in configs/motions.txt.

  SFT        MODEL on the arguments of at most 56 tokens: it then ends its own
  golden PM  learns from the human pairs; its accuracy is of prompts held out whole
  D_golden   three pairs of SFT's own arguments to each motion of
             configs/motions.txt, in the golden PM's order
  proxy PM   learns from D_golden; the motions are every method's prompts

Hardware: as smollm2.py. Duration, measured likewise: three hours, of which
  pairs read   11,650 and 3,600, through the chat template                   under 1 min
  SFT          40 steps                                                          6 min
  samples      390 motions x 6 x 56 tokens                                       6 min
  judges       150 and 100 steps; 1,076 pairs judged for reports                38 min
  D_golden     1,170 pairs judged, 936 scored under SFT                          7 min
  online       5 runs (golden policy too) x 40 steps                            71 min
  offline      3 runs x 40 steps                                                17 min
  evaluations  16 checkpoints, best-of-n                                        35 min
"""

from pathlib import Path

from alignment.study import documents

smollm2 = documents.load("smollm2.py", beside=__file__)


def get_config(model: str = ""):
  c = smollm2.world(model, "smollm2_arguments")
  c.data.update({"prompt_format": smollm2.FORMAT, "validation_fraction": 0.15})
  c.prompt_length, c.response_length = 56, 56
  c.sampled.update(
    {"data": "golden", "path": str(Path(__file__).with_name("motions.txt")),
     "validation_fraction": 0.2, "pairs": 3}
  )  # fmt: skip
  c.notes = (
    "The golden preference model stands for the humans whose comparisons it learned. "
    "Length is its easiest feature: the longer argument wins most of their pairs. Read "
    "every win rate beside the responses' lengths.",
    "Arguments are cut at 56 tokens, for judges and policies.",
  )
  return c
