"""Policies of several sizes (figures 10, 11 and 14 of the paper), a slice for each.

On this machine, two members at a time; then at the paper's scale on Cloud TPU:

  python -m launch.sweep --config=configs/study.py:figure_14 \\
    --sweep=configs/sweeps/scaling.py --workdir=/tmp/scaling --jobs=2
  python -m launch.sweep --config=configs/study.py:figure_14,tldr \\
    --sweep=configs/sweeps/scaling.py --workdir=gs://BUCKET/scaling --tpu=v5p \\
    --name=scaling --zone=ZONE --capacity=spot -- \\
    --config.sft.init='gs://BUCKET/T5/{size}' --config.data.data_dir=gs://BUCKET/data \\
    --config.vocab.path=gs://BUCKET/T5/spiece.model

All sizes meet the same proxy preference model and the same golden policy, so these are
made first, by whichever slice holds the golden preference model.
"""


def get_sweep():
  """What `launch.sweep.Sweep` declares."""
  return {
    "by": "size",
    # What more than one member reads. Two slices must not make the same stage.
    "shared": ("proxy_pm", "golden_samples", "sft_samples"),
    # generation -> size -> accelerator type that holds a policy of that size, and the
    # golden preference model: docs/memory.md says what was compiled.
    # XXL trains on batches of 4 and 8, fewer than the slice has chips: hence `tensor`.
    "slices": {
      "v4": {
        "t5_1_1_large": "v4-8",
        "t5_1_1_xl": "v4-8",
        "t5_1_1_xxl": "v4-16 --config.mesh.tensor=2",
      },
      "v5e": {
        "t5_1_1_large": "v5e-8",
        "t5_1_1_xl": "v5e-8",
        "t5_1_1_xxl": "v5e-32 --config.mesh.tensor=8",
      },
      "v5p": {
        "t5_1_1_large": "v5p-8",
        "t5_1_1_xl": "v5p-8",
        "t5_1_1_xxl": "v5p-16 --config.mesh.tensor=2",
      },
      "v6e": {
        "t5_1_1_large": "v6e-4",
        "t5_1_1_xl": "v6e-4",
        "t5_1_1_xxl": "v6e-8 --config.mesh.tensor=2",
      },
    },
  }
