# Targets for people; `make help` lists them. Everything happens in .venv, which is made on first use.

PYTHON ?= python3
TORCH = torch==2.13.0
BIN = .venv/bin
INSTALLED = .venv/installed
ARGS ?=

.PHONY: help install train test test-rllib lint bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s%s\n", $$1, $$2}'
	@echo '  ARGS="..." adds arguments, for example: make test ARGS="-k gae"'

install: $(INSTALLED) ## make .venv with pinned dependencies and millrace, editable

# torch alone and first: a build that pip is pointed to (for example one without CUDA) is then kept.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH) --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $(INSTALLED)

train: $(INSTALLED) ## train RealmMini for three minutes and compare with the yardsticks
	@$(BIN)/millrace demo $(ARGS)

test: $(INSTALLED) ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

test-rllib: .venv-rllib/installed ## run the tests of the RLlib bridge, in a .venv-rllib of its own
	@.venv-rllib/bin/python -m pytest tests/rllib $(ARGS)

.venv-rllib/installed: pyproject.toml
	@test -x .venv-rllib/bin/python || $(PYTHON) -m venv .venv-rllib
	.venv-rllib/bin/python -m pip install --quiet $(TORCH)
	.venv-rllib/bin/python -m pip install --quiet --editable '.[rllib,onnx]' 'ray[rllib]==2.60.0' hypothesis psutil pytest pytest-timeout
	@touch $@

lint: $(INSTALLED) ## check format, style and types
	$(BIN)/ruff format --check src
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure start-up, memory per worker and scaling
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.memory_per_worker
	$(BIN)/millrace bench scaling CartPole-v1 $(ARGS)

clean: ## remove what was made and caches
	rm -rf .venv .venv-rllib .pytest_cache .mypy_cache .ruff_cache dist
