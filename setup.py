"""Installs `alignment`: `pip install -e .`, or with exact versions `make install`.

`requirements.lock` holds the versions that are tested, the bounds here say how far from
them one may go. Nothing older than the lock's minor versions has been tried. The JAX
family breaks its users between minor versions, hence its upper bounds.
"""

import setuptools

# tensorflow-cpu has wheels for x86-64 only; elsewhere tensorflow itself is CPU-only.
_X86 = 'platform_machine == "x86_64" or platform_machine == "AMD64"'
_NOT_X86 = 'platform_machine != "x86_64" and platform_machine != "AMD64"'

INSTALL_REQUIRES = [
  "absl-py>=2.5,<3",  # flags and logging
  "array_record>=0.8.6,<0.9",  # recorded online runs
  "clu>=0.0.12,<0.1",  # metric writers
  "etils[epath]>=1.15,<2",  # paths of the data set builders, as TFDS passes them
  "flax>=0.12.8,<0.13",  # Linen modules
  "importlib_resources>=7",  # imported by TFDS 4.9.10, which does not declare it
  "jax>=0.10.2,<0.12",  # random bits and compiled programs change with it
  "jinja2>=3.1.6,<4",  # chat templates; older sandboxes have known holes
  "matplotlib>=3.11,<4",  # figures
  "ml-collections>=1.1,<2",  # configs
  "ml_dtypes>=0.6,<1",  # bfloat16 in NumPy
  "numpy>=2.4,<3",
  "optax>=0.2.8,<0.3",  # optimizers; the layout of their state is in checkpoints
  "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints
  "pyarrow>=26",  # Parquet files of the chatbot arena
  "safetensors>=0.8,<1",  # Hugging Face weights
  "scipy>=1.17,<2",  # Student's t
  "sentencepiece>=0.2.3,<0.3",  # the T5 vocabulary
  "tensorboard>=2.21,<3",  # imported by clu's writers, which do not declare it
  "tensorflow-datasets>=4.9.10,<5",  # data set builders
  "tokenizers>=0.23.3,<0.24",  # tokenizer.json; another version may read it otherwise
  f"tensorflow-cpu>=2.21,<3; {_X86}",  # event files of clu, records of TFDS
  f"tensorflow>=2.21,<3; {_NOT_X86}",
]

EXTRAS_REQUIRE = {
  "test": [
    "dill>=0.4,<1",  # imported by tfds.testing, not declared
    "hypothesis>=6.170,<7",
    "mypy>=2.4,<3",
    "pytest>=9.1,<9.2",  # 9.2 hides xdist's groups: all workers make all fixtures
    "pytest-xdist>=3.8,<4",  # `make test` uses two processes
    "ruff>=0.17.6,<0.18",  # minor versions format differently
  ],
  "peers": [  # the independent implementations of `make peers`
    "torch>=2.13,<3",
    "peft>=0.21.2,<0.22",  # reads the adapters that we write
    "transformers>=5.23,<6",  # T5 in PyTorch
    "trl>=1.16,<1.17",  # the tests call private methods of its DPOTrainer
  ],
  "docs": [  # `make docs`, in the way of Flax and Optax
    "myst-parser>=5.2,<6",  # pages in Markdown
    "sphinx>=9,<9.1",  # 9.1 needs Python 3.12
    "sphinx-book-theme>=1.4,<2",
    "sphinx-copybutton>=0.5.2,<0.6",
  ],
  "wandb": ["wandb>=0.31,<1"],  # tracking = ("tensorboard", "wandb")
  "cuda": ["jax[cuda12]"],
  "tpu": ["jax[tpu]"],
}

setuptools.setup(
  name="online-offline-alignment",
  version="0.1.0",
  description="Online and offline alignment from preference pairs, compared in JAX",
  license="Apache-2.0",
  python_requires=">=3.11,<3.14",
  packages=setuptools.find_packages(
    include=["alignment", "alignment.*", "launch", "launch.*"]
  ),
  package_data={
    "": ["README.md", "CITATIONS.bib", "TAGS.txt", "dummy_data/*"],
    "launch": ["startup.sh"],
  },
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
)
