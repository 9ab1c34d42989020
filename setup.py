"""Installs `alignment`: `pip install -e .`, or with exact versions `make install`.

`requirements.lock` holds the versions that are tested; the bounds here say how far from
them one may go. The JAX family breaks its users between minor versions, hence its
upper bounds.
"""

import setuptools

# tensorflow-cpu has wheels for x86-64 only; elsewhere tensorflow itself is CPU-only.
_X86 = 'platform_machine == "x86_64" or platform_machine == "AMD64"'
_NOT_X86 = 'platform_machine != "x86_64" and platform_machine != "AMD64"'

INSTALL_REQUIRES = [
  "absl-py>=2.1",  # flags and logging
  "clu>=0.0.12,<0.1",  # metric writers; 0.0.12 is the first that accepts NumPy 2
  "flax>=0.12.8,<0.13",  # Linen modules
  "importlib_resources>=6",  # imported by tensorflow-datasets 4.9.10, not declared
  "jax>=0.10.2,<0.12",  # minor versions remove APIs and change random bits
  "matplotlib>=3.9",  # figures
  "ml-collections>=1.0,<2",  # configs
  "ml_dtypes>=0.5",  # bfloat16 in NumPy
  "numpy>=2.0",  # what JAX 0.10 needs
  "optax>=0.2.8,<0.3",  # optimizers; their state's layout is part of checkpoints
  "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints; the API moves between minors
  "pyarrow>=16",  # Parquet files of preference pairs
  "safetensors>=0.5",  # Hugging Face weights; 0.5 writes bfloat16 from NumPy
  "sentencepiece>=0.2",  # the T5 vocabulary
  "tensorboard>=2.20,<3",  # imported by clu's writers, not declared
  "tensorflow-datasets>=4.9.10,<5",  # data set builders; 4.9.10 reads NumPy 2.4
  f"tensorflow-cpu>=2.20,<3; {_X86}",  # behind clu's event files and tfds
  f"tensorflow>=2.20,<3; {_NOT_X86}",
]

EXTRAS_REQUIRE = {
  "test": [
    "dill>=0.3.8",  # imported by tfds.testing, not declared
    "hypothesis>=6.100",
    "mypy>=1.15",
    "pytest>=8.3",
    "pytest-xdist>=3.6",  # `make test` uses two processes
    "ruff>=0.12",  # other versions may format differently
  ],
  "peers": [  # the independent implementations of `make peers`
    "torch>=2.8",
    "transformers>=5",  # T5 in PyTorch
    "trl>=1.0,<2",  # the tests call methods of its DPOTrainer
  ],
  "cuda": ["jax[cuda12]"],
  "tpu": ["jax[tpu]"],
}

setuptools.setup(
  name="online-offline-alignment",
  version="0.1.0",
  description="Online and offline alignment from preference pairs, compared in JAX",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["alignment", "alignment.*"]),
  package_data={"": ["README.md", "CITATIONS.bib", "TAGS.txt", "dummy_data/*"]},
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
)
