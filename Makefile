# feature_platform: everything a newcomer needs, with Python 3.11 or newer and make.

PYTHON ?= python3
BARS ?=
PORT ?= 3000
PYTEST_ARGS ?=
DEV_ARGS ?=
# More than the cores: some tests wait most of their time.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo dev check test bench lint fmt docs schema-hash clean

help: ## Show this help
	@echo "make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP) ## Make .venv and install everything into it

demo: setup ## Import bars, refresh, verify, show it all (BARS='files' for your own)
	$(BIN)/feature-platform demo $(BARS)

dev: setup ## Run everything, with Dagster's UI on http://127.0.0.1:3000 (PORT=3001 for another)
	$(BIN)/feature-platform dev --port $(PORT) $(DEV_ARGS)

check: lint test ## Check style and types, run every test: all that a change must pass

# Tests of a wall-clock bound run one by one, when no other test loads the machine. No such test
# among those that PYTEST_ARGS selects (exit status 5) is no failure. Without a selection, only the
# files with such tests are loaded.
TIMED = $(if $(PYTEST_ARGS),,$(shell grep -rlF mark.timing feature_platform_tests --include='test_*.py'))
test: setup ## Run every test (PYTEST_ARGS='-k import' for some)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not timing' $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m timing $(PYTEST_ARGS) $(TIMED) || [ $$? -eq 5 ]

bench: setup ## Measure the speeds that are promised
	$(BIN)/python -m benchmarks

lint: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict feature_platform feature_platform_tests benchmarks

fmt: setup ## Put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema-hash: setup ## Compile features_1m, and record the hash of sql/ after a change
	$(BIN)/python -m feature_platform.views.features_1m
	$(BIN)/python -m feature_platform.schema

docs: setup ## Write the pages that are generated from the code
	$(BIN)/python -m feature_platform.dev.settings_page

clean: ## Remove everything that the targets above made, except data
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Install again only when the requirements have changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || { \
	  echo "make: $(PYTHON) is not Python 3.11 to 3.14; name one that is: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "make: installing into $(VENV), about 2 GB on disk: Dagster, PostgreSQL's programs, ccxt and the tools of the tests"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
