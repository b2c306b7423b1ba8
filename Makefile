PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check bench

demo: $(VENV)/.installed
	$(BIN)/python reproduce.py recipes/digits.yaml

test: check
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.installed
	set -e; for name in $(patsubst benchmarks/%.py,%,$(filter-out %/__init__.py,$(wildcard benchmarks/*.py))); do \
		echo "== python -m benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name; done

# The stamp is newer than pyproject.toml once everything in it is installed: a second call reuses the environment.
$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
