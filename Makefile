# `make` lists what there is. Needs Python 3.11 to 3.13 with pip; another interpreter
# than python3 is named by `make PYTHON=python3.12 ...`.

PYTHON ?= python3
# For `make peers`. On Linux PyPI's torch brings gigabytes of CUDA; this index has builds
# without, and where it cannot be reached pip falls back to its usual sources.
TORCH = torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

PYTEST = .venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
ENVIRONMENT = .venv/.installed
PEERS = .peers/.installed
DOCS = .docs/.installed

.PHONY: help quickstart install test slow soak peers fixtures docs lint format clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

quickstart: $(ENVIRONMENT)  ## install, run the study in miniature, draw its figures
	.venv/bin/python -m alignment.main --config=configs/quickstart.py \
	  --workdir=workdir/quickstart

install: $(ENVIRONMENT)  ## only install, into .venv

test: lint  ## install, lint, check types, and run all tests but the slow and the peers'
	$(PYTEST) -m "not slow"

slow: $(ENVIRONMENT)  ## the tests that take minutes
	$(PYTEST) -m slow

soak: $(ENVIRONMENT)  ## kills, interrupts, hostile inputs, a million pairs: 80 minutes
	.venv/bin/python -m tests.endurance.soak --kills=50 --seed=0
	.venv/bin/python -m tests.endurance.interrupts --tries=100 --seed=0
	.venv/bin/python -m tests.endurance.fuzz --inputs=100000
	.venv/bin/python -m tests.endurance.fuzz_chats --inputs=10000
	.venv/bin/python -m tests.endurance.load --pairs=1000000 --kind=parquet --steps=100000

peers: $(PEERS)  ## compare with PyTorch, transformers and TRL, installed into .peers
	.peers/bin/python -m pytest tests/peers
	.peers/bin/python -m tests.peers.speed_peer

fixtures: $(PEERS)  ## rewrite tests/fixtures with transformers and TRL
	.peers/bin/python tests/peers/make_t5_fixtures.py
	.peers/bin/python tests/peers/make_decoder_fixtures.py
	.peers/bin/python tests/peers/make_reward_fixtures.py
	.peers/bin/python tests/peers/make_loss_fixtures.py
	.peers/bin/python -m tests.peers.make_chat_fixtures

docs: $(DOCS)  ## the site of docs/ and of the docstrings, in build/docs/index.html
	rm -rf build/docs docs/api
	.docs/bin/python -m sphinx -W --keep-going -q docs build/docs

lint: $(ENVIRONMENT)  ## ruff and mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: $(ENVIRONMENT)  ## rewrite the code as lint wants it
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean:  ## remove the environments and caches; results in workdir/ stay
	rm -rf .venv .peers .docs .mypy_cache .pytest_cache .ruff_cache build docs/api \
	  *.egg-info

# All environments: exactly the lock files, checked against setup.py's bounds.
define install
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= \
  (3, 13) else "error: $(PYTHON) is Python %d.%d, but 3.11 to 3.13 is needed (TensorFlow \
  has wheels for these): make PYTHON=python3.12 ..." % v)'
$(PYTHON) -m venv $(@D)
$(@D)/bin/pip install --no-deps $(patsubst %,-r %,$(filter %.lock,$^))
$(@D)/bin/pip install --no-deps --no-build-isolation -e .
endef

$(ENVIRONMENT): requirements.lock setup.py
	$(install)
	$(@D)/bin/pip check
	@touch $@

$(PEERS): requirements.lock requirements-peers.lock setup.py
	$(install)
	$(@D)/bin/pip install --extra-index-url $(TORCH_INDEX) $(TORCH)
	$(@D)/bin/pip check
	@touch $@

$(DOCS): requirements.lock requirements-docs.lock setup.py
	$(install)
	$(@D)/bin/pip check
	@touch $@
