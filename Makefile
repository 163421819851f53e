# The two commands that matter: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
# Passed on to every `pip install`, such as another index: make demo PIP_ARGS=--no-cache-dir
PIP_ARGS ?=
INSTALL := $(BIN)/python -m pip install $(PIP_ARGS)
# One process for each processor, up to eight; who is through takes tests over from the others.
SIDE_BY_SIDE := --numprocesses=logical --maxprocesses=8 --dist=worksteal

.PHONY: help demo test test-fast docs check resolve stranger bench clean
help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet --upgrade pip
	$(INSTALL) --progress-bar on -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(INSTALL) --progress-bar on -c constraints.txt -e .
	@touch $(READY)

$(TOOLS): $(READY) tests/peers.txt
	$(INSTALL) --progress-bar on -c constraints.txt -e '.[dev,docs,peers]'
	$(INSTALL) --quiet --no-deps -r tests/peers.txt
	@touch $(TOOLS)

demo: $(READY)  ## the whole path on a real model: about 5 minutes on two cores; FULL=1 for more
	$(BIN)/sae demo $(if $(FULL),run=runs/demo-full preset=full)

test: $(TOOLS)  ## run all tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: $(TOOLS)  ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

docs: $(TOOLS)  ## run the code of the documentation, and build it into site/
	$(BIN)/python scripts/page_code.py
	$(BIN)/python scripts/notebooks.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

check: $(TOOLS)  ## format, lint, types and the order of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

resolve: $(TOOLS)  ## resolve the installation for every Python, without local configuration
	$(BIN)/python scripts/resolve.py

stranger: $(TOOLS)  ## install the wheel in empty environments, and use it away from the clone
	$(BIN)/python scripts/stranger.py

bench: $(TOOLS)  ## measure; tables and JSON go to benchmarks/results
	$(BIN)/python -m benchmarks

clean:  ## remove the environment, runs and caches of tools (not the downloaded model)
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
