# Every target sets itself up: .venv is made from pyproject.toml and constraints.txt, and made anew
# only when one of them changes.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)
endif
BIN = .venv/bin

.PHONY: demo test test-all lint setup clean

demo: setup
	@$(BIN)/python -m planet_jax.main journey --config configs/demo.py

test: setup
	@$(BIN)/python -m pytest

test-all: lint .venv/compilers
	@$(BIN)/python -m pytest -m ""

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

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

# The compilers of TPUs and GPUs, for preflight's test; they look for devices unless told not to.
.venv/compilers: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[preflight]'
	@touch $@

clean:
	rm -rf .venv
