# Every target needs .venv, which is built from pyproject.toml and constraints.txt, and again only
# when one of them changes.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)
endif
BIN = .venv/bin

.PHONY: demo test test-integration test-all faults lint docs setup clean

demo: setup
	@$(BIN)/python -m planet_jax.main journey --config configs/demo.py

test: setup
	@$(BIN)/python -m pytest -n 2 tests/unit

test-integration: setup
	@$(BIN)/python -m pytest tests/integration

test-all: lint test test-integration .venv/compilers
	@$(BIN)/python -m pytest -m slow

# Every fault of tests/faults: over an hour on two cores.
faults: setup
	@$(BIN)/python -m tests.faults

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The documentation as a site: open site/index.html. Warnings are errors.
docs: .venv/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "site/index.html"

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' 2>/dev/null || \
	  { echo "make: needs Python 3.11, 3.12 or 3.13; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@echo "make: installing into .venv (once; a few minutes)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The compilers of TPUs and GPUs, which the test of preflight needs.
.venv/compilers: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[preflight]'
	@touch $@

.venv/docs: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv site
