# Everything is installed into .venv, by a Python that PYTHON=/path/to/python3 may name. `make` lists the targets.
python = .venv/bin/python

.PHONY: help setup packages demo test test-oldest soak card check fix lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Make .venv, or bring it up to date: all that this machine needs to run and to test
	@sh scripts/setup

packages: setup
	@sh scripts/system-packages tests
	@sh scripts/engines-venv
	@sh scripts/clients-venv
	@sh scripts/agents-sdk

demo: setup ## Run the demonstration
	@sh scripts/demo

test: packages check ## Run the linters, the type checker and the tests
	$(python) -m pytest -n auto --dist loadfile

test-oldest: ## Run the tests with the oldest versions that pyproject.toml allows (in .venv-oldest, Python 3.11)
	@"$${PYTHON:-python3.11}" -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip install -qq uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct -e '.[cpu,dev]'
	.venv-oldest/bin/python -m pytest -q

soak: packages ## Run tests for long: half-hour calls, hundreds of examples, ten thousand words
	PERSONAPLEX_SOAK=1 $(python) -m pytest tests/property tests/e2e/test_speak.py tests/server/test_http_fuzz.py

# What kernels compute, what it must come to, and that nobody hears who is beside them.
card_tests = tests/cuda tests/parity tests/unit/test_respond.py $(addprefix tests/property/test_, $(addsuffix .py, \
	conversation neighbours slots engine kept forced sinks shared_prompts packed_ring))

card: setup ## Run the tests of CUDA kernels on this machine's NVIDIA card, all others as well that compute with them
	@$(python) -c 'import sys; from personaplex.cuda.kernel import on_card; on_card() or sys.exit("MLX sees no NVIDIA card here: see personaplex doctor")'
	PERSONAPLEX_KERNELS=auto $(python) -m pytest -n 8 --dist loadfile $(card_tests)

check: setup ## Run the linters and the type checker
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy

fix: setup ## Format the code and mend what ruff can mend
	$(python) -m ruff format
	$(python) -m ruff check --fix

lock: ## Pin anew after pyproject.toml changed (LOCK=--upgrade: the newest of everything)
	@sh scripts/lock $(LOCK)

clean: ## Remove .venv and everything else that these targets made, but for demo/
	rm -rf artefacts .venv .venv-engines .venv-clients .agents-sdk .venv-oldest build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
