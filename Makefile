# The commands that people and CI run. `make` alone lists them.

PYTHON ?= python3
# With deepspeed, so that the tests of ZeRO run everywhere.
EXTRAS ?= dev,deepspeed
# Tests run in this many processes; the tests of a file share what it starts, so they stay together.
WORKERS ?= 2
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
UV := $(BIN)/uv pip install --python $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup $(VENV) demo test test-slow gpu-check lint format docs refresh-constraints clean

help:  ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 picks the interpreter, EXTRAS=dev leaves out DeepSpeed, WORKERS=8 runs tests in 8 processes."

setup: $(STAMP)  ## create .venv with the pinned versions; installs again when pyproject.toml or constraints.txt change

$(VENV): $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here: install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), and this project needs Python 3.11 or newer: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) -m venv failed: on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(UV) --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## train a teacher, distil it into students and export them, on the CPU
	HF_HUB_OFFLINE=1 $(BIN)/distill train recipes/quickstart/teacher.yaml
	HF_HUB_OFFLINE=1 $(BIN)/distill train recipes/quickstart/students.yaml
	HF_HUB_OFFLINE=1 $(BIN)/distill export runs/quickstart/students exports/quickstart

test: $(STAMP)  ## the fast tests: under 10 minutes on two cores, no network
	$(PYTEST)

test-slow: $(STAMP)  ## the tests marked slow: several processes, SLURM, kills, benchmarks
	$(PYTEST) -m slow

# Without setup: such a machine often has its own torch and no network.
gpu-check:  ## on a machine with a GPU: its tests, the step table, the rate from JPEGs, in 9 minutes; ARGS="--wheels FOLDER"
	scripts/gpu_check.sh $(ARGS)

lint: $(STAMP)  ## ruff check, ruff format --check, mypy, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: $(STAMP)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## write docs/recipes.md from the schema, and the figure of docs/architecture.md from the imports
	$(BIN)/distill recipe keys --markdown > docs/recipes.md
	$(BIN)/python tests/layout.py

refresh-constraints: $(STAMP)  ## pin the newest versions that pyproject.toml allows
	{ grep '^#' constraints.txt; echo uv | $(BIN)/uv pip compile pyproject.toml - --extra dev --extra deepspeed --extra trackers \
	  --python-version 3.11 --upgrade --quiet --no-header --no-annotate; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:  ## remove caches and build output; keeps .venv, runs/ and exports/
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
